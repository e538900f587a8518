"""Files on their way into the library: moved, copied, refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from library_cases import OWN_NAME, add, document_of, files_of, kept_files

from pacellm_rag_ui.library import Library, LibraryLimitError, LibraryLimits, StorageError


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "data") as opened:
        yield opened


def test_an_upload_is_moved_out_of_its_place_and_then_into_the_library(
    tmp_path: Path, library: Library
) -> None:
    upload = tmp_path / "upload.pdf"
    upload.write_bytes(b"%PDF upload")
    taken = library.take_in(upload)
    assert not upload.exists()
    assert taken.read_bytes() == b"%PDF upload"
    assert OWN_NAME.fullmatch(taken.name)

    stored = library.add_document("ada", "upload.pdf", taken, document_of(b""), None)
    assert not taken.exists()
    assert library.file("ada", stored.id).read_bytes() == b"%PDF upload"
    assert kept_files(tmp_path / "data") == files_of(stored)


def test_any_other_file_is_copied_and_stays_in_its_place(tmp_path: Path, library: Library) -> None:
    own = tmp_path / "own.pdf"
    own.write_bytes(b"z" * 3_000_000)
    stored = library.add_document("ada", "own.pdf", own, document_of(b""), None)
    own.write_bytes(b"changed")
    assert library.file("ada", stored.id).read_bytes() == b"z" * 3_000_000


def test_an_upload_with_a_second_name_can_not_be_changed_under_it(
    tmp_path: Path, library: Library
) -> None:
    upload, second = tmp_path / "upload.pdf", tmp_path / "second.pdf"
    upload.write_bytes(b"as sent")
    os.link(upload, second)
    taken = library.take_in(upload)
    second.write_bytes(b"changed")
    assert taken.read_bytes() == b"as sent"
    assert not upload.exists()


def test_an_upload_that_is_too_large_is_gone_at_once(tmp_path: Path) -> None:
    with Library(tmp_path / "data", limits=LibraryLimits(file_bytes=10)) as library:
        upload = tmp_path / "upload.pdf"
        upload.write_bytes(b"x" * 11)
        with pytest.raises(LibraryLimitError, match="11 bytes"):
            library.take_in(upload)
        assert not upload.exists()
        assert kept_files(tmp_path / "data") == set()


def test_an_upload_is_used_up_even_when_the_library_refuses_it(tmp_path: Path) -> None:
    with Library(tmp_path / "data", limits=LibraryLimits(files=1)) as library:
        stored = add(library, "ada")
        upload = tmp_path / "upload.pdf"
        upload.write_bytes(b"x")
        taken = library.take_in(upload)
        with pytest.raises(LibraryLimitError):
            library.add_document("ada", "upload.pdf", taken, document_of(b""), None)
        assert not taken.exists()
        assert kept_files(tmp_path / "data") == files_of(stored)


@pytest.mark.skipif(os.name == "nt", reason="needs links, folders and pipes")
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "nothing"])
def test_what_is_no_file_is_not_taken_in(tmp_path: Path, library: Library, kind: str) -> None:
    target = tmp_path / "private.txt"
    target.write_bytes(b"SECRET")
    upload = tmp_path / "upload"
    if kind == "link":
        upload.symlink_to(target)
    elif kind == "folder":
        upload.mkdir()
    elif kind == "pipe":
        os.mkfifo(upload)
    with pytest.raises(StorageError, match=r"not a file|No such file"):
        library.take_in(upload)
    assert target.read_bytes() == b"SECRET"
    assert kept_files(tmp_path / "data") == set()
    if kind in ("folder", "pipe"):
        if kind == "pipe":
            os.mkfifo(upload)
        with pytest.raises(StorageError, match="not a file"):
            library.add_document("ada", "x", upload, document_of(b""), None)
