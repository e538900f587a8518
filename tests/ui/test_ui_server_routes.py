"""The server's own addresses, behind the gate, without Gradio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from library_cases import start_python
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from ui_page_files import pdf

from pacellm_rag import load_document
from pacellm_rag_ui.auth import Accounts, account_line
from pacellm_rag_ui.gate import Gate
from pacellm_rag_ui.identity import Identities
from pacellm_rag_ui.incoming import Incoming, TooLargeError
from pacellm_rag_ui.library import Library
from pacellm_rag_ui.pages import PageImages
from pacellm_rag_ui.routes import RouteParts, build_router

KEY = bytes(range(32))
QUOTE = "The contract ends in 2030."


def uploads(folder: Path) -> list[Path]:
    """The files that lie in the folders of processes."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


class Site:
    """A server without its page, and what lies behind it."""

    def __init__(self, folder: Path, images: PageImages, accounts: Accounts | None = None) -> None:
        self.library = Library(folder / "library")
        self.incoming = Incoming(folder / "incoming", max_bytes=1000, max_waiting=3)
        self.identities = Identities(KEY)
        self.accounts = accounts
        parts = RouteParts(
            self.library, images, self.incoming, self.identities, accounts, lambda: False
        )
        gate = {"identities": self.identities, "guests": accounts is None}
        self.app = FastAPI(openapi_url=None, middleware=[Middleware(Gate, **gate)])
        self.app.include_router(build_router(parts))

    def browser(self, owner: str = "") -> TestClient:
        made = TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)
        if owner:
            made.cookies.set(self.identities.cookie, self.identities.seal(owner))
        return made

    def add(self, owner: str, path: Path, name: str = "") -> str:
        document = load_document(path)
        return self.library.add_document(owner, name or path.name, path, document, 7).id


@pytest.fixture(scope="module")
def images() -> Iterator[PageImages]:
    made = PageImages()
    yield made
    made.close()


@pytest.fixture
def site(tmp_path: Path, images: PageImages) -> Iterator[Site]:
    made = Site(tmp_path, images)
    yield made
    made.library.close()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf(["One apple a day.", f"Page two.\n{QUOTE}"]))
    return path


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(f"Notes.\n<script>alert(1)</script>\n{QUOTE}")
    return path


def test_health_needs_no_cookie_and_makes_none(site: Site) -> None:
    reply = site.browser().get("/healthz")
    assert reply.json()["status"] == "ok"
    assert reply.json()["model_loaded"] is False
    assert "set-cookie" not in reply.headers


def test_a_page_is_an_image_with_the_quote_marked(site: Site, report: Path) -> None:
    one = site.add("guest:a", report)
    browser = site.browser("guest:a")
    reply = browser.get(f"/page/{one}/2.webp", params={"quote": QUOTE, "width": 400})
    assert reply.headers["content-type"] == "image/webp"
    assert reply.content.startswith(b"RIFF")
    assert (reply.headers["x-marked"], reply.headers["x-pages"]) == ("1", "2")
    plain = browser.get(f"/page/{one}/2.webp", params={"width": 400})
    assert plain.headers["x-marked"] == "0"
    assert plain.content != reply.content


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/page/{id}/0.webp", 404),
        ("/page/{id}/3.webp", 404),
        ("/page/{id}/99999999999999999999.webp", 404),
        ("/page/{id}/x.webp", 422),
        ("/page/{id}/1.webp?width=9", 422),
        ("/page/{id}/1.webp?quote=" + "x" * 4001, 422),
        ("/page/{id}/3.html", 404),
        ("/page/../../etc/passwd/1.webp", 404),
    ],
)
def test_pages_that_there_are_not_are_said_not_to_be(
    site: Site, report: Path, path: str, status: int
) -> None:
    one = site.add("guest:a", report)
    assert site.browser("guest:a").get(path.format(id=one)).status_code == status


def test_a_text_has_its_words_as_a_page_and_nothing_in_it_is_alive(site: Site, notes: Path) -> None:
    one = site.add("guest:a", notes)
    browser = site.browser("guest:a")
    assert browser.get(f"/page/{one}/1.webp").status_code == 415
    text = browser.get(f"/page/{one}/1.html", params={"quote": QUOTE}).text
    assert "<mark" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_document_is_described(site: Site, report: Path) -> None:
    one = site.add("guest:a", report, "re\u202eport.pdf")
    said = site.browser("guest:a").get(f"/document/{one}").json()
    assert said == {
        "name": "re[U+202E]port.pdf",
        "pages": 2,
        "labels": ["1", "2"],
        "images": True,
    }


@pytest.mark.parametrize(
    "path", ["/document/{id}", "/page/{id}/1.webp", "/page/{id}/1.html", "/original/{id}"]
)
def test_anothers_document_is_as_unknown_as_one_that_never_was(
    site: Site, report: Path, path: str
) -> None:
    one = site.add("guest:a", report)
    stranger = site.browser("guest:b")
    theirs, nobodys = stranger.get(path.format(id=one)), stranger.get(path.format(id="never"))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace(one, "") == nobodys.text.replace("never", "")
    assert site.browser("guest:a").get(path.format(id=one)).status_code in (200, 415)


def test_the_original_comes_back_whole_and_a_pdf_is_shown(site: Site, report: Path) -> None:
    one = site.add("guest:a", report, 'a"; x=y\r\n.pdf')
    reply = site.browser("guest:a").get(f"/original/{one}")
    assert reply.content == report.read_bytes()
    assert reply.headers["content-type"] == "application/pdf"
    assert reply.headers["content-disposition"].startswith("inline; filename*=UTF-8''a%22%3B")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_an_original_that_could_act_is_only_saved(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<html><body><p>Hello there</p><script>alert(1)</script></body></html>")
    one = site.add("guest:a", path)
    reply = site.browser("guest:a").get(f"/original/{one}")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("name", ["nothing.js", "login.html", "..%2fserver.py", "%2e%2e/app.py"])
def test_only_the_looks_are_given_out(site: Site, name: str) -> None:
    assert site.browser().get(f"/look/{name}").status_code == 404
    assert "javascript" in site.browser().get("/look/page.js").headers["content-type"]


SENT = {"x-pacellm-upload": "1"}


def test_an_upload_is_taken_once_and_by_its_sender_only(site: Site) -> None:
    name = "<img src=x onerror=alert(1)>/../a.pdf"
    reply = site.browser("guest:a").post(
        "/files", params={"name": name}, headers=SENT, content=b"x"
    )
    token = reply.json()["token"]
    assert site.incoming.take("guest:b", token) is None
    taken = site.incoming.take("guest:a", token)
    assert taken is not None
    assert taken[0] == name
    assert taken[1].read_bytes() == b"x"
    assert taken[1].parent.parent.name == "incoming"
    assert taken[1].parent.stat().st_mode & 0o077 == 0
    assert site.incoming.take("guest:a", token) is None


def test_a_file_that_is_too_large_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    reply = site.browser("guest:a").post(
        "/files", params={"name": "a"}, headers=SENT, content=b"x" * 1001
    )
    assert reply.status_code == 413
    assert "--max-file-mb" in reply.json()["error"]
    assert uploads(tmp_path / "incoming") == []


def test_files_that_nobody_takes_are_limited_and_swept(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = site.browser("guest:a")
    for _ in range(3):
        assert browser.post("/files?name=a", headers=SENT, content=b"x").status_code == 200
    assert browser.post("/files?name=a", headers=SENT, content=b"x").status_code == 413
    assert site.browser("guest:b").post("/files?name=a", headers=SENT, content=b"x").is_success
    monkeypatch.setattr("pacellm_rag_ui.incoming._FORGOTTEN_SECONDS", -1.0)
    site.incoming.sweep()
    assert uploads(tmp_path / "incoming") == []
    assert browser.post("/files?name=a", headers=SENT, content=b"x").status_code == 200


def test_a_full_disk_is_said_to_be_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", fail)
    reply = site.browser("guest:a").post("/files?name=a", headers=SENT, content=b"x")
    assert reply.status_code == 507
    assert "disk" in reply.json()["error"]


def test_a_form_of_another_site_can_not_upload(site: Site) -> None:
    assert site.browser("guest:a").post("/files?name=a", content=b"x").status_code == 400


async def test_a_broken_upload_leaves_nothing(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "in", max_bytes=10)

    async def pieces() -> Any:
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await incoming.receive("a", "x", pieces())
    assert uploads(tmp_path / "in") == []
    with pytest.raises(TooLargeError):
        await incoming.receive("a", "x", _bytes(b"x" * 11))


async def _bytes(content: bytes) -> Any:
    yield content


async def test_two_servers_on_a_folder_leave_each_others_uploads_alone(tmp_path: Path) -> None:
    first = Incoming(tmp_path / "in", max_bytes=10)
    token = await first.receive("a", "x", _bytes(b"first"))
    second = Incoming(tmp_path / "in", max_bytes=10)
    assert second.take("a", token) is None, "It is not this server's."
    await second.receive("a", "x", _bytes(b"second"))
    second.close()
    second.close()
    [left] = uploads(tmp_path / "in")
    assert left.read_bytes() == b"first"
    taken = first.take("a", token)
    assert taken is not None
    assert taken[1].read_bytes() == b"first"
    first.close()
    assert uploads(tmp_path / "in") == []


_KILLED = """
import asyncio, pathlib, sys, time
from pacellm_rag_ui.incoming import Incoming
async def pieces():
    yield b"x"
incoming = Incoming(pathlib.Path(sys.argv[1]), max_bytes=10)
asyncio.run(incoming.receive("a", "x", pieces()))
print("sent", flush=True)
time.sleep(60)
"""


def test_what_a_killed_server_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    process = start_python(_KILLED, tmp_path / "in")
    assert process.stdout is not None
    assert process.stdout.readline() == "sent\n"
    living = Incoming(tmp_path / "in", max_bytes=10)
    assert len(uploads(tmp_path / "in")) == 1, "It lives, and may still be asked for it."
    process.kill()
    process.communicate(timeout=30)
    living.close()
    Incoming(tmp_path / "in", max_bytes=10).close()
    assert uploads(tmp_path / "in") == []
    assert list((tmp_path / "in").iterdir()) == []


@pytest.fixture
def locked(tmp_path: Path, images: PageImages) -> Iterator[Site]:
    path = tmp_path / "accounts.txt"
    path.write_text(f"{account_line('ann', 'correct horse')}\n")
    made = Site(tmp_path, images, Accounts.from_file(path))
    yield made
    made.library.close()


def test_logging_in_opens_the_page_and_logging_out_closes_it(locked: Site, report: Path) -> None:
    one = locked.add("user:ann", report)
    browser = locked.browser()
    assert browser.get(f"/document/{one}").status_code == 401
    form = {"username": "ann", "password": "correct horse"}
    reply = browser.post("/login", data=form, headers={"accept": "text/html"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert "HttpOnly" in reply.headers["set-cookie"]
    assert browser.get(f"/document/{one}").status_code == 200
    assert browser.post("/logout").headers["location"] == "/login"
    assert browser.get(f"/document/{one}").status_code == 401


def test_programs_are_told_in_json(locked: Site) -> None:
    browser = locked.browser()
    assert browser.post("/login", data={"username": "ann", "password": "no"}).status_code == 401
    reply = browser.post("/login", data={"username": "ann", "password": "correct horse"})
    assert reply.json() == {"success": True}


@pytest.mark.parametrize(
    "form", ["username=ann&password=", "", "%FF%FF=1", "username=" + "x" * 9000, "a&" * 100]
)
def test_a_wrong_log_in_says_the_same_whatever_is_wrong(locked: Site, form: str) -> None:
    reply = locked.browser().post("/login", content=form, headers={"accept": "text/html"})
    assert reply.status_code == 401
    assert "Name or password is wrong." in reply.text
    assert "set-cookie" not in reply.headers


def test_the_log_in_page_takes_everything_from_this_server(locked: Site) -> None:
    page = locked.browser().get("/login", headers={"accept": "text/html"}).text
    for address in re.findall(r'(?:src|href|action)="([^"]+)"', page):
        assert not re.match(r"[a-z]+:|//", address)


def test_without_accounts_there_is_no_log_in(site: Site) -> None:
    assert site.browser().get("/login").headers["location"] == "/"
    assert site.browser().post("/login", data={"username": "a"}).headers["location"] == "/"
