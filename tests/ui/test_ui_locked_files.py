"""PDF files behind a password: opened with it, kept as text, the password kept nowhere."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pypdf
import pytest
from fastapi import FastAPI
from page_doubles import Site, last, put
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from ui_page_files import pdf

from pacellm_rag.errors import DocumentError
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.gate import Gate
from pacellm_rag_ui.identity import Identities
from pacellm_rag_ui.incoming import Incoming
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.pages import PageImages
from pacellm_rag_ui.routes import RouteParts, build_router
from pacellm_rag_ui.shelf import Shelf

SECRET = "Sésame, öffne dich 100%!"
WORDS = "The vault opens at nine."


def locked(password: str = SECRET, algorithm: str = "AES-256", owner: str = "owner") -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf([WORDS, "A second page."])))
    writer.encrypt(password, owner, algorithm=algorithm)
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()


def lying_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_locked_file_asks_for_its_password_and_opens_with_it(
    tmp_path: Path, algorithm: str
) -> None:
    password = "plain ascii" if algorithm != "AES-256" else SECRET
    data = locked(password, algorithm)
    with Site(tmp_path, ScriptedModel(["At nine [D1 p1]."])) as site:
        page, folder = site.page(), tmp_path / "uploads"
        first = last(site.handlers.add_files(page, [put(folder, "plans.pdf", data)]))
        assert (first.state, first.message) == ("locked", "It is protected by a password.")
        assert site.handlers.documents(page) == []
        wrong = last(site.handlers.add_files(page, [put(folder, "plans.pdf", data)], "guess"))
        assert wrong.state == "locked"
        assert "does not open it" in wrong.message
        right = last(site.handlers.add_files(page, [put(folder, "plans.pdf", data)], password))
        assert (right.state, right.message.split(",")[0]) == ("ready", "2 pages")
        view = last(site.handlers.ask(page, "When does it open?"))
        assert (view.text, view.citations[0].quote) == ("At nine.", WORDS)


def test_one_that_only_forbids_changes_needs_no_password(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        upload = put(tmp_path / "uploads", "plans.pdf", locked(password=""))
        assert last(site.handlers.add_files(site.page(), [upload])).state == "ready"


def test_of_several_files_each_is_told_by_its_place(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        files = [
            put(tmp_path / "1", "same.pdf", locked()),
            put(tmp_path / "2", "same.pdf", pdf(["Open."])),
            put(tmp_path / "3", "same.pdf", b"\x00\x01 nothing"),
        ]
        ends = {r.index: r.state for r in site.handlers.add_files(page, files)}
        assert ends == {0: "locked", 1: "ready", 2: "refused"}


def test_the_password_is_neither_written_nor_logged_and_a_locked_file_is_not_left_lying(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    word = "xyzzy-plugh-7731"
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page, folder = site.page(), tmp_path / "uploads"
        last(site.handlers.add_files(page, [put(folder, "plans.pdf", locked(word))], "wrong one"))
        arrivals = tmp_path / "library" / "arrivals"
        assert [p for p in lying_in(arrivals) if p.suffix != ".lock"] == []
        assert lying_in(folder) == []
        last(site.handlers.add_files(page, [put(folder, "plans.pdf", locked(word))], word))
        last(site.handlers.ask(page, "When?"))
        found = [path for path in lying_in(tmp_path) if word.encode() in path.read_bytes()]
        assert found == []
        assert word not in caplog.text
        assert word not in repr([vars(page), site.handlers.history(page)])


# page images


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "plans.pdf"
    path.write_bytes(locked())
    return path


def test_a_page_is_drawn_with_the_password_only_each_time(image_file: Path) -> None:
    with PageImages() as images:
        with pytest.raises(PageImageError, match="needs a password"):
            images.render(image_file, 1)
        drawn = images.render(image_file, 1, quote=WORDS, password=SECRET)
        assert drawn.marked
        for password in ("", "guess"):
            with pytest.raises(PageImageError, match="needs a password"):
                images.render(image_file, 1, quote=WORDS, password=password)
        assert images.render(image_file, 1, quote=WORDS, password=SECRET).webp == drawn.webp
        assert SECRET not in repr(vars(images))


def test_the_server_draws_a_locked_page_for_who_sends_the_password(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site, PageImages() as images:
        page = site.page("guest:a")
        upload = put(tmp_path / "uploads", "plans.pdf", locked())
        stored = last(site.handlers.add_files(page, [upload], SECRET)).document
        assert stored is not None
        identities = Identities(bytes(range(32)))
        incoming = Incoming(tmp_path / "incoming", max_bytes=1000)
        parts = RouteParts(site.library, images, incoming, identities, None, lambda: True)
        gate = {"identities": identities, "guests": True}
        app = FastAPI(openapi_url=None, middleware=[Middleware(Gate, **gate)])
        app.include_router(build_router(parts))
        browser = TestClient(app, base_url="http://127.0.0.1")
        browser.cookies.set(identities.cookie, identities.seal("guest:a"))
        path = f"/page/{stored.id}/1.webp"
        refused = browser.get(path)
        assert refused.status_code == 422
        assert refused.json()["locked"] is True
        sent = {"x-pacellm-password": "S%C3%A9same%2C%20%C3%B6ffne%20dich%20100%25!"}
        assert browser.get(path, headers=sent).headers["content-type"] == "image/webp"
        wrong = browser.get(path, headers={"x-pacellm-password": "guess"})
        assert wrong.json()["locked"] is True
        assert "guess" not in json.dumps(wrong.json())
        assert WORDS in browser.get(f"/page/{stored.id}/1.html").text
        original = browser.get(f"/original/{stored.id}").content
        assert pypdf.PdfReader(io.BytesIO(original)).is_encrypted


def test_a_locked_file_on_the_command_line_leaves_the_others_theirs(tmp_path: Path) -> None:
    (tmp_path / "vault.pdf").write_bytes(locked())
    (tmp_path / "open.txt").write_text("Nothing is hidden here.", encoding="utf-8")
    with Site(tmp_path, ScriptedModel()) as site:
        shelf = Shelf(site.library, [tmp_path / "vault.pdf", tmp_path / "open.txt"])
        assert shelf.locked == ["vault.pdf"]
        shelf.offer("ann")
        assert [each.name for each in site.library.documents("ann")] == ["open.txt"]
        (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing else")
        with pytest.raises(DocumentError):
            Shelf(site.library, [tmp_path / "broken.pdf"])
