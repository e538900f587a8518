"""The server's own addresses: pages as images or text, originals, uploads, log-in, health.

Every one but health, log-in and the page's looks answers for the owner that the gate found, and
asks the library by owner: another's id is as unknown as one that never was. Knows no Gradio.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, quote, unquote

from fastapi import APIRouter, Header, Query
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from pacellm_rag import __version__
from pacellm_rag_ui.auth import Accounts
from pacellm_rag_ui.gate import owner_of
from pacellm_rag_ui.identity import Identities
from pacellm_rag_ui.incoming import Incoming, TooLargeError
from pacellm_rag_ui.library import Library, NotFoundError
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.page_text import page_text_html
from pacellm_rag_ui.pages import PageImages
from pacellm_rag_ui.safe_text import display_name

__all__ = ["RouteParts", "build_router"]

_LOOK = Path(__file__).parent / "look"
_LOOKS = {
    "style.css": "text/css",
    "page.js": "text/javascript",
    "viewer.js": "text/javascript",
    "mark.svg": "image/svg+xml",
}
_PDF = "application/pdf"
_PDF_POLICY = (
    "default-src 'none'; object-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
)
_MOST_LOGIN_BYTES = 4096
_TROUBLE_STATUS = {"no_file": 404, "no_page": 404, "busy": 503}


@dataclass(frozen=True)
class RouteParts:
    """What the routes work with.

    Attributes:
        library: documents by owner.
        images: renders pages.
        incoming: takes uploads.
        identities: makes cookies.
        accounts: who may log in; None where everybody is a guest.
        ready: whether the model is loaded, for health.
    """

    library: Library
    images: PageImages
    incoming: Incoming
    identities: Identities
    accounts: Accounts | None
    ready: Callable[[], bool]


def build_router(parts: RouteParts) -> APIRouter:
    """All of the addresses."""
    router = APIRouter()
    _add_documents(router, parts)
    _add_login(router, parts)

    @router.get("/healthz")
    def health() -> dict[str, object]:
        return {"status": "ok", "version": __version__, "model_loaded": parts.ready()}

    @router.get("/look/{name}")
    def look(name: str) -> Response:
        if name not in _LOOKS:
            return _error(404, "Not found.")
        headers = {"Cache-Control": "no-cache"}
        return FileResponse(_LOOK / name, media_type=_LOOKS[name], headers=headers)

    @router.post("/files")
    async def receive(request: Request, name: Annotated[str, Query(max_length=1000)]) -> Response:
        # no form of another site can send this header
        if request.headers.get("x-pacellm-upload") != "1":
            return _error(400, "Send files from the page, or through the programs' interface.")
        try:
            token = await parts.incoming.receive(owner_of(request), name, request.stream())
        except TooLargeError as error:
            return _error(413, str(error))
        except ClientDisconnect:
            return _error(400, "The upload was broken off.")
        except OSError:
            return _error(507, "The server could not write the file; its disk may be full.")
        return JSONResponse({"token": token})

    return router


def _add_documents(router: APIRouter, parts: RouteParts) -> None:
    library = parts.library

    @router.get("/document/{document_id}")
    def describe(request: Request, document_id: str) -> Response:
        try:
            found = library.document(owner_of(request), document_id)
            pages = library.pages(owner_of(request), document_id).pages
        except NotFoundError as error:
            return _error(404, str(error))
        return JSONResponse(
            {
                "name": display_name(found.name),
                "pages": found.pages,
                "labels": [page.label for page in pages],
                "images": found.media_type == _PDF,
            }
        )

    @router.get("/page/{document_id}/{number}.webp")
    def image(
        request: Request,
        document_id: str,
        number: int,
        quote: Annotated[str, Query(max_length=4000)] = "",
        width: Annotated[int, Query(ge=100, le=2000)] = 1000,
        # not part of the address, which may be logged or remembered on its way
        x_pacellm_password: Annotated[str, Header(max_length=3000)] = "",
    ) -> Response:
        try:
            found = library.document(owner_of(request), document_id)
            if found.media_type != _PDF:
                return _error(415, "This document has no page images; its text can be shown.")
            path = library.file(owner_of(request), document_id)
            password = unquote(x_pacellm_password)
            page = parts.images.render(path, number, quote=quote, width=width, password=password)
        except NotFoundError as error:
            return _error(404, str(error))
        except PageImageError as error:
            status = _TROUBLE_STATUS.get(error.trouble, 422)
            return _error(status, str(error), locked=error.trouble == "password")
        headers = {"X-Marked": str(int(page.marked)), "X-Pages": str(page.pages)}
        return Response(page.webp, media_type="image/webp", headers=headers)

    @router.get("/page/{document_id}/{number}.html")
    def text(
        request: Request,
        document_id: str,
        number: int,
        quote: Annotated[str, Query(max_length=4000)] = "",
    ) -> Response:
        try:
            document = library.pages(owner_of(request), document_id)
        except NotFoundError as error:
            return _error(404, str(error))
        if not any(page.number == number for page in document.pages):
            return _error(
                404, f"There is no page {number}; the document has {len(document.pages)}."
            )
        return HTMLResponse(page_text_html(document, number, quote))

    @router.get("/original/{document_id}")
    def original(request: Request, document_id: str) -> Response:
        try:
            found = library.document(owner_of(request), document_id)
            path = library.file(owner_of(request), document_id)
        except NotFoundError as error:
            return _error(404, str(error))
        # Browsers show a PDF in a viewer of their own; anything else might act in our name.
        shown = found.media_type == _PDF
        kind = "inline" if shown else "attachment"
        headers = {"Content-Disposition": f"{kind}; filename*=UTF-8''{quote(found.name, safe='')}"}
        if shown:
            headers["Content-Security-Policy"] = _PDF_POLICY
        return FileResponse(
            path, media_type=_PDF if shown else "application/octet-stream", headers=headers
        )


def _add_login(router: APIRouter, parts: RouteParts) -> None:
    identities, accounts = parts.identities, parts.accounts

    @router.get("/login")
    def ask() -> Response:
        return RedirectResponse("/", 303) if accounts is None else _login_page("")

    @router.post("/login")
    async def login(request: Request) -> Response:
        if accounts is None:
            return RedirectResponse("/", 303)
        form = await _form(request)
        name, password = form.get("username", ""), form.get("password", "")
        known = await run_in_threadpool(accounts.verify, name, password)
        as_page = "text/html" in request.headers.get("accept", "")
        if known is None:
            wait = accounts.wait_seconds(name)
            said = "Name or password is wrong."
            if wait:
                said += f" After so many attempts, wait {wait:.0f} s before the next."
            return _login_page(said, 401) if as_page else _error(401, said)
        reply = RedirectResponse("/", 303) if as_page else JSONResponse({"success": True})
        cookie = identities.header(identities.user(known), secure=request.url.scheme == "https")
        reply.headers.append("Set-Cookie", cookie)
        return reply

    @router.post("/logout")
    async def logout() -> Response:
        reply = RedirectResponse("/login" if accounts else "/", 303)
        reply.delete_cookie(identities.cookie, httponly=True, samesite="strict")
        return reply


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form; none where it is large or no text."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_LOGIN_BYTES:
            return {}
    try:
        return {
            name: values[0] for name, values in parse_qs(body.decode(), max_num_fields=5).items()
        }
    except ValueError:
        return {}


def _login_page(message: str, status: int = 200) -> Response:
    page = (_LOOK / "login.html").read_text(encoding="utf-8")
    said = f'<p class="login-error" role="alert">{html.escape(message)}</p>' if message else ""
    return HTMLResponse(page.replace("<!-- message -->", said), status)


def _error(status: int, message: str, **more: bool) -> JSONResponse:
    return JSONResponse({"error": message, **more}, status)
