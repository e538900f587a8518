"""The gate: who gets in, as whom, and what every reply carries."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from pacellm_rag_ui.gate import Gate, owner_of
from pacellm_rag_ui.identity import USER_SECONDS, Identities

KEY = bytes(range(32))
HTML = {"accept": "text/html,*/*"}


def says_owner(request: Request) -> Response:
    return PlainTextResponse(request.scope.get("pacellm_owner", "nobody"))


def asks_owner(request: Request) -> Response:
    return PlainTextResponse(owner_of(request))


def client(
    *, guests: bool = True, knows: Callable[[str], bool] = lambda owner: True, **more: Any
) -> TestClient:
    gate = {"identities": Identities(KEY), "guests": guests, "knows": knows, **more}
    app = Starlette(
        routes=[Route("/{path:path}", says_owner)], middleware=[Middleware(Gate, **gate)]
    )
    return TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)


def cookie(owner: str, key: bytes = KEY) -> dict[str, str]:
    made = Identities(key)
    return {"cookie": f"{Identities(KEY).cookie}={made.seal(owner)}"}


def test_a_guest_stays_the_same_from_the_first_request_on() -> None:
    browser = client()
    first = browser.get("/")
    assert first.text.startswith("guest:")
    assert browser.get("/page/x/1.webp").text == first.text


def test_two_guests_are_two_owners() -> None:
    assert client().get("/").text != client().get("/").text


def test_the_cookie_can_not_be_read_by_scripts_or_sent_by_other_sites() -> None:
    said = client().get("/").headers["set-cookie"]
    assert "HttpOnly" in said
    assert "SameSite=Strict" in said
    assert "Secure" not in said


def test_over_https_the_cookie_stays_on_https() -> None:
    browser = client()
    browser.base_url = "https://127.0.0.1"
    assert "; Secure" in browser.get("/").headers["set-cookie"]


@pytest.mark.parametrize("value", ["", "x", "a.b", "é", "." * 5000, "Z3Vlc3Q6eA.00"])
def test_what_is_not_signed_by_this_server_is_nobody(value: str) -> None:
    assert Identities(KEY).open(value) is None


def test_a_cookie_of_another_key_is_nobody() -> None:
    other = Identities(bytes(32)).seal("user:ann")
    assert Identities(KEY).open(other) is None
    assert client(guests=False).get("/", headers=cookie("user:ann", bytes(32))).status_code == 401


def test_a_changed_owner_is_nobody() -> None:
    content, _, mark = Identities(KEY).seal("user:ann").partition(".")
    text = base64.urlsafe_b64decode(content + "==").replace(b"ann", b"bob")
    forged = base64.urlsafe_b64encode(text).decode().rstrip("=")
    assert Identities(KEY).open(f"{forged}.{mark}") is None


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Identities(KEY)
    value = made.seal("user:ann")
    assert made.open(value) == "user:ann"
    import time

    later = time.time() + USER_SECONDS + 1
    monkeypatch.setattr("pacellm_rag_ui.identity.time.time", lambda: later)
    assert made.open(value) is None


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Identities(bytes(31))


def test_servers_of_two_keys_do_not_take_each_others_cookie() -> None:
    assert Identities(KEY).cookie != Identities(bytes(32)).cookie


def test_strangers_are_sent_to_the_log_in_page_where_guests_are_not_wanted() -> None:
    browser = client(guests=False)
    page = browser.get("/", headers=HTML)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert browser.get("/config").status_code == 401
    assert browser.post("/gradio_api/queue/join", headers=HTML).status_code == 401
    assert "set-cookie" not in page.headers


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/gradio_api/runs", "/gradio_api/mcp/schema", "/document/x", "/files"]
)
def test_nothing_but_health_log_in_and_looks_is_open_to_strangers(path: str) -> None:
    assert client(guests=False).get(path).status_code == 401


def test_a_guests_cookie_opens_nothing_where_people_log_in() -> None:
    assert client(guests=False).get("/", headers=cookie("guest:x")).status_code == 401


def test_a_users_cookie_is_no_guests() -> None:
    assert client().get("/", headers=cookie("user:ann")).text.startswith("guest:")


def test_who_lost_their_account_is_out() -> None:
    browser = client(guests=False, knows=lambda owner: owner == "user:ann")
    assert browser.get("/", headers=cookie("user:ann")).text == "user:ann"
    assert browser.get("/", headers=cookie("user:bob")).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/mcp/sse",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/stream/x",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
    ],
)
def test_what_gradio_serves_and_this_page_does_not_use_is_closed(path: str) -> None:
    assert client().get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/config", "/document/x", "/gradio_api/upload", "/theme.css"]
)
def test_what_the_page_uses_is_not_closed(path: str) -> None:
    assert client().get(path).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""]
)
def test_other_names_for_this_machine_are_refused(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "[::1]:7860"])
def test_its_own_names_are_taken(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


def test_names_can_be_added_and_all_be_taken() -> None:
    assert client(hosts={"docs.lan"}).get("/", headers={"host": "docs.lan"}).status_code == 200
    assert client(hosts=None).get("/", headers={"host": "any.lan"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/login"])
def test_every_reply_carries_the_headers(path: str) -> None:
    headers = client().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "object-src 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_without_the_gate_nobody_is_anybody() -> None:
    app = Starlette(routes=[Route("/", asks_owner)])
    with pytest.raises(LookupError, match="gate"):
        TestClient(app).get("/")


def test_websockets_are_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("Nothing should be read.")

    gate = Gate(PlainTextResponse("x"), identities=Identities(KEY), guests=True)
    asyncio.run(gate({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_fault_behind_the_gate_is_told_with_the_headers_and_without_a_word_of_it() -> None:
    def fails(request: Request) -> Response:
        raise KeyError("secret")

    gate = {"identities": Identities(KEY), "guests": True}
    app = Starlette(routes=[Route("/", fails)], middleware=[Middleware(Gate, **gate)])
    browser = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    reply = browser.get("/")
    assert reply.status_code == 500
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in reply.text
    assert "log" in reply.json()["error"]
    with pytest.raises(KeyError):  # so that it is logged
        TestClient(app, base_url="http://127.0.0.1").get("/")


async def test_a_fault_in_the_middle_of_a_reply_does_not_begin_another() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request"}

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise OSError("gone")

    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")], "method": "GET"}
    with pytest.raises(OSError, match="gone"):
        await Gate(breaks, identities=Identities(KEY), guests=True)(scope, receive, send)
    assert sent == ["http.response.start"]
