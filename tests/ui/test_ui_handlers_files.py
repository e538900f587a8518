from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from page_doubles import PATIENCE, InThread, Site, last, pages_text, put, until

from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ModelError
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui import uploads
from pacellm_rag_ui.library import LibraryLimits
from pacellm_rag_ui.page_settings import PageSettings


def _arrivals(folder: Path) -> list[Path]:
    """Uploads that lie in the library's private folder still."""
    found = (folder / "library" / "arrivals").rglob("*")
    return [path for path in found if path.is_file() and path.suffix != ".lock"]


def test_every_file_ends_as_ready_or_refused_in_its_own_words(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page, folder = site.page(), tmp_path / "uploads"
        files = [
            put(folder, "a.txt", pages_text("One.", "Two.")),
            put(folder, "empty.txt", b""),
            put(folder, "fake.pdf", b"\x00\x01\x02\x03" * 100),
            put(folder, "b.md", b"# Title\n\nWords."),
        ]
        reports = list(site.handlers.add_files(page, files))
        final = {report.name: report for report in reports if report.state != "parsing"}
        assert [(n, r.state) for n, r in final.items()] == [
            ("a.txt", "ready"),
            ("empty.txt", "refused"),
            ("fake.pdf", "refused"),
            ("b.md", "ready"),
        ]
        assert "empty" in final["empty.txt"].message
        assert final["a.txt"].message.startswith("2 pages, ")
        assert final["a.txt"].document == site.handlers.documents(page)[0]
        assert [d.name for d in site.handlers.documents(page)] == ["a.txt", "b.md"]
        assert all(d.chosen and d.tokens for d in site.handlers.documents(page))


def test_uploads_are_gone_from_their_place_before_the_first_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[list[str]] = []

    def load(*args: Any, **more: Any) -> Any:
        left.append(os.listdir(tmp_path / "uploads"))
        return real(*args, **more)

    real = uploads.load_document_bytes
    monkeypatch.setattr(uploads, "load_document_bytes", load)
    with Site(tmp_path, ScriptedModel()) as site:
        files = [put(tmp_path / "uploads", f"{n}.txt", b"Text %d." % n) for n in range(3)]
        last(site.handlers.add_files(site.page(), files))
        assert left == [[], [], []]
        assert _arrivals(tmp_path) == []


def test_a_file_that_has_gone_is_refused(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        files = [("x.txt", tmp_path / "nowhere"), ("folder", tmp_path)]
        reports = list(site.handlers.add_files(site.page(), files))
        assert [report.state for report in reports] == ["refused", "refused"]
        assert tmp_path.is_dir()


def test_limits_are_told_in_numbers(tmp_path: Path) -> None:
    settings = PageSettings(files_at_once=3, document_limits=DocumentLimits(file_bytes=2000))
    limits = LibraryLimits(file_bytes=4000, files=2)
    with Site(tmp_path, ScriptedModel(), settings, limits) as site:
        page, folder = site.page(), tmp_path / "uploads"
        sizes = [("a.txt", 5000), ("b.txt", 3000), ("c.txt", 1000), ("d.txt", 10)]
        files = [put(folder, name, (name[0] + " ").encode() * (size // 2)) for name, size in sizes]
        final = {r.name: r for r in site.handlers.add_files(page, files)}
        assert [r.state for r in final.values()].count("ready") == 1
        assert "0.0" in final["a.txt"].message or "4" in final["a.txt"].message
        assert "MB" in final["b.txt"].message
        assert final["c.txt"].state == "ready"
        assert "4 files came at once; 3 may" in final["d.txt"].message
        more = [put(folder, f"{n}.txt", f"Text {n}.".encode()) for n in range(2)]
        states = {r.name: r for r in site.handlers.add_files(page, more)}
        assert states["0.txt"].state == "ready"
        assert states["1.txt"].state == "refused"
        assert "2" in states["1.txt"].message
        assert os.listdir(folder) == []


def test_the_same_file_is_kept_once(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        first = site.add(page, "a.txt", "The same.")
        report = last(site.handlers.add_files(page, [put(tmp_path / "up", "b.txt", b"The same.")]))
        assert (report.state, report.document) == ("ready", first)
        assert "already" in report.message
        other = site.add(site.page("bob", "bob"), "a.txt", "The same.")
        assert other.id != first.id


def test_names_are_shown_without_what_deceives(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        name = "../../etc/\u202egpj.exe\x07" + "x" * 300 + ".txt"
        upload = (name, put(tmp_path / "up", "token", b"Some text.")[1])
        for report in site.handlers.add_files(site.page(), [upload]):
            assert "\u202e" not in report.name
            assert "\x07" not in report.name
            assert len(report.name) < 100
        assert report.state == "ready"


def test_what_is_missing_in_a_document_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        report = last(
            site.handlers.add_files(
                site.page(), [put(tmp_path / "up", "a.txt", "Gr\xfc\xdfe.".encode("latin-1"))]
            )
        )
        assert report.document is not None
        assert report.document.warnings
        assert report.document.warnings[0] in report.message


def test_without_a_model_documents_are_kept_uncounted(tmp_path: Path) -> None:
    def load() -> Any:
        raise ModelError("No model.")

    with Site(tmp_path, ScriptedModel()) as site:
        site.load = load
        document = site.add(site.page(), "a.txt", "Text.")
        assert document.tokens is None


class _Parsing:
    """`load_document_bytes` that tells its pages and waits for a release after the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        self.calls = 0
        self._real = uploads.load_document_bytes
        monkeypatch.setattr(uploads, "load_document_bytes", self)

    def __call__(self, data: bytes, name: str, *, progress: Any, **more: Any) -> Any:
        self.calls += 1
        progress(1, 3)
        assert self.release.wait(PATIENCE)
        progress(2, 3)
        return self._real(data, name, **more)


def test_pages_are_told_while_a_file_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = _Parsing(monkeypatch)
    with Site(tmp_path, ScriptedModel()) as site:
        run = InThread(
            site.handlers.add_files(site.page(), [put(tmp_path / "up", "a.txt", b"Text.")])
        )
        view = run.wait(lambda v: "Page" in v.message, "a page is told")
        assert (view.state, view.message) == ("parsing", "Page 1 of 3")
        parsing.release.set()
        assert run.end().state == "ready"


def test_stop_ends_parsing_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = _Parsing(monkeypatch)
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        files = [put(tmp_path / "up", f"{n}.txt", b"Text %d." % n) for n in range(2)]
        run = InThread(site.handlers.add_files(page, files))
        run.wait(lambda v: "Page" in v.message, "a page is told")
        assert site.handlers.stop(page)
        run.end()
        final = {v.name: v for v in run.views}
        assert {v.state for v in final.values()} == {"refused"}
        parsing.release.set()
        until(lambda: not _working(), "the thread ends")
        assert parsing.calls == 1
        assert site.handlers.documents(page) == []
        assert _arrivals(tmp_path) == []


def _working() -> bool:
    return any(thread.name == "pacellm-page" for thread in threading.enumerate())


def test_files_are_read_while_an_answer_is_written(tmp_path: Path) -> None:
    from page_doubles import GatedModel

    model = GatedModel(["Yes."])
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        run = InThread(site.handlers.ask(page, "What?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        assert site.add(page, "b.txt", "Other text.").position == 1
        model.reads.let()
        model.words.let()
        assert run.end().state == "done"


def test_a_page_that_was_left_takes_no_files(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        site.handlers.leave("ann", "page")
        upload = put(tmp_path / "up", "a.txt", b"Text.")
        report = last(site.handlers.add_files(page, [upload]))
        assert report.state == "refused"
        assert not upload[1].exists()


def test_documents_are_moved_ticked_and_removed(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        a, b, c = (site.add(page, f"{name}.txt", f"Text {name}.") for name in "abc")
        names = lambda: [d.title for d in site.handlers.documents(page)]  # noqa: E731
        site.handlers.move(page, c.id, -1)
        assert names() == ["a", "c", "b"]
        site.handlers.move(page, a.id, -1)
        site.handlers.move(page, b.id, 1)
        assert names() == ["a", "c", "b"]
        site.handlers.choose(page, a.id, False)
        site.handlers.remove(page, c.id)
        assert [(d.title, d.chosen) for d in site.handlers.documents(page)] == [
            ("a", False),
            ("b", True),
        ]
