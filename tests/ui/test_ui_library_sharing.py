"""Many threads and several processes at one data folder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from library_cases import add, document_of, end_of, files_of, kept_files, start_python

from pacellm_rag_ui import database
from pacellm_rag_ui.library import (
    Library,
    LibraryLimitError,
    LibraryLimits,
    NotFoundError,
    StorageError,
)


def test_threads_of_many_owners_never_mix(tmp_path: Path) -> None:
    with Library(tmp_path) as library, ThreadPoolExecutor(12) as threads:

        def live(number: int) -> None:
            owner = f"guest:{number}"
            chat = library.create_conversation(owner, title=owner)
            for step in range(4):
                data = f"{owner} {step}".encode()
                stored = add(library, owner, data, title=f"{owner} {step}")
                library.add_turn(owner, chat.id, "user", f"{owner} {step}")
                assert library.file(owner, stored.id).read_bytes() == data
                assert library.pages(owner, stored.id).title == f"{owner} {step}"
                library.reorder(owner, [stored.id])
            documents = library.documents(owner)
            assert [each.title for each in documents] == [f"{owner} {n}" for n in (3, 2, 1, 0)]
            turns = library.conversation(owner, chat.id)[1]
            assert [turn.text for turn in turns] == [f"{owner} {n}" for n in range(4)]
            library.remove_document(owner, documents[0].id)
            assert len(library.documents(owner)) == 3
            if number % 2:
                library.delete_owner(owner)

        list(threads.map(live, range(12)))
        kept = [each for n in range(12) for each in library.documents(f"guest:{n}")]
        assert len(kept) == 6 * 3
        assert kept_files(tmp_path) == files_of(*kept)


def test_threads_of_one_owner_never_go_over_a_limit(tmp_path: Path) -> None:
    with (
        Library(tmp_path, limits=LibraryLimits(files=5, turns=5)) as library,
        ThreadPoolExecutor(8) as threads,
    ):
        chat = library.create_conversation("ada")

        def try_both(number: int) -> int:
            refused = 0
            try:
                add(library, "ada", title=str(number))
            except LibraryLimitError:
                refused += 1
            try:
                library.add_turn("ada", chat.id, "user", str(number))
            except LibraryLimitError:
                refused += 1
            return refused

        assert sum(threads.map(try_both, range(12))) == 2 * 7
        documents = library.documents("ada")
        assert [each.position for each in documents] == [0, 1, 2, 3, 4]
        assert len(library.conversation("ada", chat.id)[1]) == 5
        assert kept_files(tmp_path) == files_of(*documents)


def test_a_document_removed_by_two_at_once_is_removed_once(tmp_path: Path) -> None:
    with Library(tmp_path) as library, ThreadPoolExecutor(4) as threads:
        stored = add(library, "ada")
        together = threading.Barrier(4)

        def remove(_: int) -> bool:
            together.wait(timeout=10)
            try:
                library.remove_document("ada", stored.id)
            except NotFoundError:
                return False
            return True

        assert sum(threads.map(remove, range(4))) == 1


def test_a_second_process_starting_leaves_the_arrivals_of_the_first(tmp_path: Path) -> None:
    upload = tmp_path / "upload.pdf"
    upload.write_bytes(b"on its way")
    with Library(tmp_path / "data") as first:
        taken = first.take_in(upload)
        with Library(tmp_path / "data") as second:
            assert taken.read_bytes() == b"on its way"
            stored = first.add_document("ada", "upload.pdf", taken, document_of(b""), None)
            assert second.documents("ada") == [stored]
            assert second.file("ada", stored.id).read_bytes() == b"on its way"
            second.remove_document("ada", stored.id)
        assert first.documents("ada") == []
        with pytest.raises(NotFoundError):
            first.pages("ada", stored.id)


def test_closing_removes_what_was_taken_in_and_not_added(tmp_path: Path) -> None:
    upload = tmp_path / "upload.pdf"
    upload.write_bytes(b"x")
    with Library(tmp_path / "data") as library:
        taken = library.take_in(upload)
        assert taken.exists()
    assert not taken.exists()
    assert list((tmp_path / "data" / "arrivals").iterdir()) == []


def test_all_processes_of_a_folder_have_one_key_also_after_a_restart(tmp_path: Path) -> None:
    with (
        Library(tmp_path / "a") as first,
        Library(tmp_path / "a") as second,
        ThreadPoolExecutor(4) as threads,
    ):
        keys = set(threads.map(lambda library: library.signing_key(), [first, second] * 4))
    with Library(tmp_path / "a") as again, Library(tmp_path / "b") as other:
        assert keys == {again.signing_key()}
        assert len(again.signing_key()) == 32
        assert other.signing_key() != again.signing_key()


SHARES = """
import sys
from pathlib import Path
from pacellm_rag.documents import Document, Page
from pacellm_rag_ui.library import Library, LibraryLimitError, LibraryLimits

name = sys.argv[2]
with Library(Path(sys.argv[1]), limits=LibraryLimits(files=10)) as library:
    chat = library.create_conversation(name)
    refused = 0
    for number in range(6):
        text = f"{name} {number}"
        document = Document(id="sha256:1", title=text, pages=(Page(1, "1", text),))
        try:
            stored = library.add_document("shared", text, text.encode(), document, None)
            assert library.pages("shared", stored.id).title == text
        except LibraryLimitError:
            refused += 1
        library.add_turn(name, chat.id, "user", text)
    print(refused)
"""


def test_processes_share_a_new_folder_without_losing_anything(tmp_path: Path) -> None:
    processes = [start_python(SHARES, tmp_path / "data", f"p{n}") for n in range(3)]
    refused = 0
    for process in processes:
        code, output, errors = end_of(process)
        assert (code, errors) == (0, "")
        refused += int(output)
    with Library(tmp_path / "data") as library:
        documents = library.documents("shared")
        assert (len(documents), refused) == (10, 8)
        assert [each.position for each in documents] == list(range(10))
        for each in documents:
            assert library.file("shared", each.id).read_bytes().decode() == each.title
        for n in range(3):
            (chat,) = library.conversations(f"p{n}")
            assert len(library.conversation(f"p{n}", chat.id)[1]) == 6
        assert kept_files(tmp_path / "data") == files_of(*documents)


def test_a_writer_waits_for_another_process_and_then_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    with Library(tmp_path) as first, Library(tmp_path) as second:
        chat = first.create_conversation("ada")
        with first._database.writing():
            assert second.conversations("ada") == [chat]  # reading goes on meanwhile
            with pytest.raises(StorageError, match=r"Another process .* Try again"):
                second.rename("ada", chat.id, "new")
        assert second.rename("ada", chat.id, "new").title == "new"
