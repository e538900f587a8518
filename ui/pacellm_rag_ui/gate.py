"""What every request passes before anything else sees it: ASGI middleware, first and outermost.

It refuses foreign host names and closed addresses, finds the owner, asks strangers to log in where
guests are not wanted, and puts the security headers on every reply. Whatever Gradio or a route
below it leaves open is behind it all the same. Knows nothing of documents or models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pacellm_rag_ui.identity import Identities

__all__ = ["CONTENT_SECURITY_POLICY", "LOOPBACK_NAMES", "Gate", "owner_of"]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's own page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
}
_OPEN = re.compile(r"/(healthz|login|look/[a-z-]+\.(css|js|svg))")
# What Gradio serves and this page does not use. Its file route would hand everybody's uploads to
# everybody who knows the content's hash.
_CLOSED = re.compile(
    r"(/gradio_api)?/(openapi\.json|docs|redoc|monitoring|runs|run-history|mcp|proxy=|file[=/]|"
    r"stream|dev|custom_component|vibe-|undo-vibe|deep_link|profiling|process_recording|token|"
    r"component_server)"
)

_KEPT = ("/assets/", "/static/")
_FAULT = "Something went wrong on the server. Try again; its log says more."


def owner_of(connection: HTTPConnection) -> str:
    """The owner that the gate found for this request.

    Raises:
        LookupError: the request has not come through the gate.
    """
    owner = connection.scope.get("pacellm_owner")
    if not isinstance(owner, str):
        raise LookupError("This request has not come through the gate; nobody may see anything.")
    return owner


class Gate:
    """Wraps an application.

    Args:
        app: what is behind the gate.
        identities: who made the cookies.
        guests: whether people who have not logged in get an identity of their own.
        knows: whether an owner who once logged in still may.
        hosts: names by which this server is called; None for any. On loopback it is what keeps
            pages of other sites out that have made their name point here.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        identities: Identities,
        guests: bool,
        knows: Callable[[str], bool] = lambda owner: True,
        hosts: Iterable[str] | None = LOOPBACK_NAMES,
    ) -> None:
        self._app = app
        self._identities = identities
        self._guests = guests
        self._knows = knows
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        owner = self._owner(headers)
        cookie = ""
        if owner is None and self._guests and not _OPEN.fullmatch(path):
            owner = self._identities.new_guest()
            cookie = self._identities.header(owner, secure=scope.get("scheme") == "https")
        refusal = self._refusal(scope, headers, owner)
        if owner is not None:
            scope["pacellm_owner"] = owner

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                _add_headers(message, cookie, keep=path.startswith(_KEPT))
            await send(message)

        try:
            await (refusal or self._app)(scope, receive, send_with_headers)
        except Exception:
            if not begun:  # else the server's own reply to errors would leave without the headers
                await JSONResponse({"error": _FAULT}, 500)(scope, receive, send_with_headers)
            raise

    def _owner(self, headers: Headers) -> str | None:
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return None
        found = cookies.get(self._identities.cookie)
        owner = self._identities.open(found.value) if found is not None else None
        if owner is None or owner.startswith("guest:") != self._guests or not self._knows(owner):
            return None
        return owner

    def _refusal(self, scope: Scope, headers: Headers, owner: str | None) -> Response | None:
        path = scope["path"]
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            return JSONResponse(
                {"error": f"This server is not {headers.get('host', '')[:100]!r}."}, 421
            )
        if _OPEN.fullmatch(path):
            return None
        if owner is None:
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            return JSONResponse({"error": "Log in first.", "detail": "Not authenticated"}, 401)
        if _CLOSED.match(path):
            return JSONResponse({"error": "Not found."}, 404)
        return None


def _add_headers(message: MutableMapping[str, Any], cookie: str, *, keep: bool) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    # Everything but the parts of Gradio's page, named by their content, may be somebody's own.
    headers.setdefault("Cache-Control", "max-age=86400" if keep else "no-store")
    if cookie:
        headers.append("Set-Cookie", cookie)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return re.sub(r":\d+$", "", host).lower()
