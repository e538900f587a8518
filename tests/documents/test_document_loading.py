"""Loading: which kind of file it is, what is refused and how, several files at once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pdf_factory import pages_pdf

from pacellm_rag.documents import (
    Document,
    DocumentLimits,
    load_document,
    load_document_bytes,
    load_documents,
)
from pacellm_rag.errors import ConfigurationError, DocumentError, DocumentLimitError

PDF = pages_pdf(["Hello page"])


def archive(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for member in members:
            zipped.writestr(member, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name", "media_type"),
    [
        (PDF, "wrong suffix.txt", "application/pdf"),
        (b"junk before\n" + PDF, "a.pdf", "application/pdf"),
        (b"A file starts with %PDF-1.7, says the standard.", "a.md", "text/markdown"),
        (b"plain", "no suffix", "text/plain"),
        (b"<!DOCTYPE html><p>x", "page", "text/html"),
        (b"<?xml version='1.0'?><!-- c --><html><p>x", "page.txt", "text/html"),
        (b"In <body> we trust", "a.txt", "text/plain"),
        (b"<p>fragment", "a.htm", "text/html"),
    ],
)
def test_the_content_tells_the_kind_and_the_suffix_helps(
    data: bytes, name: str, media_type: str
) -> None:
    assert load_document_bytes(data, name).media_type == media_type


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "OCR"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "docx"),
        (b"{\\rtf1 hello}", "docx"),
        (b"MZ\x90\x00\x03\x00", "unknown kind"),
        (archive("xl/workbook.xml"), "Excel"),
        (archive("anything"), "unpack"),
        (archive("word/document.xml")[:40], "damaged"),
    ],
)
def test_what_can_not_be_read_is_refused_with_the_next_step(data: bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=says) as caught:
        load_document_bytes(data, "thing.pdf")
    assert caught.value.path == "thing.pdf"
    assert "thing.pdf" in str(caught.value)


def test_an_unsupported_file_learns_what_is_supported() -> None:
    with pytest.raises(DocumentError, match=r"PDF, Word \(\.docx\), HTML, Markdown and plain"):
        load_document_bytes(b"\x00\x01\x02", "a.bin")


def test_missing_files_folders_pipes_and_addresses_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no file"):
        load_document(tmp_path / "missing.pdf")
    with pytest.raises(DocumentError, match="folder"):
        load_document(tmp_path)
    with pytest.raises(DocumentError, match="download"):
        load_document("https://example.org/a.pdf")
    with pytest.raises(DocumentError, match="can not be opened"):
        load_document("nul\0name")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DocumentError, match="pipe"):
        load_document(pipe)


def test_an_unreadable_file_is_said_to_lack_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DocumentError, match="chmod"):
        load_document(path)


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pdf"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(DocumentLimitError, match=r"1,000\.0 MB; the limit is 200\.0 MB"):
        load_document(path)
    with pytest.raises(DocumentLimitError, match="file_bytes"):
        load_document_bytes(b"12345", "a.txt", limits=DocumentLimits(file_bytes=4))


@pytest.mark.parametrize("name", ["two\nlines.pdf", "\x1b[31mred.pdf", "-rf.pdf", "a;b$(c).pdf"])
def test_hostile_names_are_only_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PDF)
    document = load_document(path)
    assert document.pages[0].text == "Hello page"
    assert document.source == str(path)
    assert not set(document.title) & set("\n\x1b")
    path.write_bytes(b"%PDF-1.7 rubbish")
    with pytest.raises(DocumentError) as caught:
        load_document(path)
    assert not set(str(caught.value)) & set("\n\x1b")
    assert caught.value.path == str(path)


def test_a_name_that_is_not_unicode_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(path)).write_text("x")
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    document = load_document(os.fsdecode(path))
    document.title.encode()


def test_the_same_content_is_read_once_and_said(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "copy of a.txt")]
    for path, text in zip(paths, ["first", "second", "first"], strict=True):
        path.write_text(text)
    first, second = load_documents(paths)
    assert (first.title, second.title) == ("a", "b")
    assert [w.kind for w in first.warnings] == ["duplicate"]
    assert "copy of a.txt" in first.warnings[0].message
    assert second.warnings == ()


def test_equal_titles_of_different_files_are_made_distinct(tmp_path: Path) -> None:
    paths = []
    for folder, name in [("x", "a.txt"), ("y", "a.txt"), ("z", "a.md"), ("z", "other.txt")]:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{folder} {name}")
        paths.append(path)
    titles = [document.title for document in load_documents(paths)]
    assert titles == ["a (a.txt)", "a (a.txt) (2)", "a (a.md)", "other"]


def test_a_file_that_can_not_be_read_is_reported_and_left_out(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("good")
    missing = tmp_path / "missing.txt"
    errors: list[DocumentError] = []
    documents = load_documents([missing, good], on_error=errors.append)
    assert [document.title for document in documents] == ["good"]
    assert [error.path for error in errors] == [str(missing)]
    with pytest.raises(DocumentError):
        load_documents([missing, good])


def test_a_document_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    there = load_document(tmp_path / "a.pdf")
    here = load_document_bytes(bytearray(PDF), "a.pdf")
    assert isinstance(there, Document)
    assert there.id == here.id
    assert there.id.startswith("sha256:")
    assert len(there.id) == 71
    assert there.pages == here.pages


def test_progress_ends_with_all_pages_and_its_exception_stops_the_reading() -> None:
    data = pages_pdf([f"page {n}" for n in range(5)])
    calls: list[tuple[int, int]] = []
    load_document_bytes(data, "a.pdf", progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 5)
    assert calls[-1] == (5, 5)
    assert calls == sorted(calls)

    class StopReadingError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopReadingError

    with pytest.raises(StopReadingError):
        load_document_bytes(data, "a.pdf", progress=stop)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pages": 0},
        {"memory_bytes": 1024},
        {"wall_seconds": 0},
        {"wall_seconds": float("nan")},
        {"characters": 1.5},
        {"cpu_seconds": True},
    ],
)
def test_limits_under_which_nothing_can_be_read_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        DocumentLimits(**wrong)  # type: ignore[arg-type]


def test_importing_documents_imports_no_parser() -> None:
    script = (
        "import sys, pacellm_rag.documents\n"
        "print(sorted({'torch', 'transformers', 'pypdf', 'pypdfium2', 'docx', 'bs4', 'numpy'}"
        " & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "[]"
