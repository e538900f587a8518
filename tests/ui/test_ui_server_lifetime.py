"""The server around its page, in this process: what it lets go of, and when.

The page itself is left out: what Gradio leaves open would be taken for ours. With it, the same is
claimed of a server in a process of its own (`test_ui_server_programs`).
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient
from ui_page_files import pdf

from pacellm_rag import GenerationOptions, load_document
from pacellm_rag_ui import server, serving
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.library import Library
from pacellm_rag_ui.pages import PageImages
from pacellm_rag_ui.serving import Serving


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    app: Any = ModuleType("pacellm_rag_ui.app")
    app.PageParts = lambda *_, **__: None
    app.mount_page = lambda server, parts: server
    monkeypatch.setitem(sys.modules, "pacellm_rag_ui.app", app)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf(["One apple a day.", "Page two."]))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PageImages]]:
    """The page images that servers make."""
    found: list[PageImages] = []

    def make() -> PageImages:
        found.append(PageImages())
        return found[-1]

    monkeypatch.setattr(server, "PageImages", make)
    yield found
    for each in found:
        each.close()


def _model() -> Any:
    from pacellm_rag.testing import ScriptedModel

    return ScriptedModel()


def _server(library: Library, folder: Path) -> tuple[Any, Handlers]:
    handlers = Handlers(library, _model)
    return server.build_server(library, handlers, folder, max_file_bytes=10**6), handlers


def test_images_of_a_removed_document_go_and_all_at_the_end(
    tmp_path: Path, report: Path, made: list[PageImages]
) -> None:
    with Library(tmp_path / "data") as library:
        app, handlers = _server(library, tmp_path / "data")
        with TestClient(app, base_url="http://127.0.0.1") as browser:
            owner = _owner_of(browser, library)
            stored = [
                library.add_document(owner, "report.pdf", report, load_document(report), None)
                for _ in range(2)
            ]
            for each in stored:
                assert browser.get(f"/page/{each.id}/1.webp").status_code == 200
            [images] = made
            assert len({key.path for key in images._kept}) == 2
            handlers.remove(handlers.session(owner, "page"), stored[0].id)
            assert {key.path for key in images._kept} == {
                str(library.file(owner, stored[1].id)),
            }
            assert browser.get(f"/page/{stored[0].id}/1.webp").status_code == 404
            assert images._spare is not None
            spare = images._spare
        assert images._closed
        assert not images._kept
        assert not spare.alive
        assert handlers.open_pages == 0
        assert [p for p in (tmp_path / "data" / "incoming").rglob("*") if p.is_file()] == []


def _owner_of(browser: TestClient, library: Library) -> str:
    from pacellm_rag_ui.identity import Identities

    identities = Identities(library.signing_key())
    browser.cookies.set(identities.cookie, identities.seal("guest:ann"))
    return "guest:ann"


def test_all_is_let_go_at_the_end_also_where_a_part_of_it_fails(
    tmp_path: Path, made: list[PageImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Handlers) -> None:
        raise OSError("cannot end")

    with Library(tmp_path / "data") as library:
        app, _ = _server(library, tmp_path / "data")
        with monkeypatch.context() as patch:
            patch.setattr(Handlers, "close", fails)
            with pytest.raises(OSError, match="cannot end"), TestClient(app):
                pass
        assert made[0]._closed
        assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_a_fault_of_a_route_is_told_with_the_headers(
    tmp_path: Path, made: list[PageImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("secret")

    with Library(tmp_path / "data") as library:
        app, _ = _server(library, tmp_path / "data")
        monkeypatch.setattr(Library, "document", fails)
        browser = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        reply = browser.get("/document/x")
        assert reply.status_code == 500
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert "secret" not in reply.text


def test_the_data_folder_is_its_owners_alone_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "new" / "data"
    seen: list[int] = []

    def prepare(what: Serving, uploads: Path) -> None:
        seen.append(stat.S_IMODE(data.stat().st_mode))
        assert uploads.is_dir()
        assert data in uploads.parents
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "_prepare_environment", prepare)
    what = Serving(data, [], GenerationOptions(), 10**6, None, None)
    with pytest.raises(KeyboardInterrupt):
        serving.serve(what, "127.0.0.1", 0)
    assert seen == [0o700]
    assert list((data / "gradio").iterdir()) == [], "The uploads' folder was left behind."
