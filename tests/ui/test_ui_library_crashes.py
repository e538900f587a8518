"""What becomes of the library when a process is killed, the disk is full, or a file is damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from library_cases import add, document_of, end_of, files_of, kept_files, start_python

from pacellm_rag.documents import DocumentWarning
from pacellm_rag_ui import disk, document_files, document_shelf, schema
from pacellm_rag_ui.library import Library, LibraryError, StorageError

needs_posix = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL and resource limits")


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "data") as opened:
        yield opened


DIES = """
import os, signal, sys
from pathlib import Path
from pacellm_rag.documents import Document, Page
from pacellm_rag_ui import arrivals, database, disk, document_files, document_shelf
from pacellm_rag_ui.library import Library

folder, where, upload = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
library = Library(folder)
taken = library.take_in(upload)

def die(*arguments, **names):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(function):
    def both(*arguments, **names):
        function(*arguments, **names)
        die()
    return both

if where == "taken":
    die()
elif where == "writing":
    disk.os.fsync = die
elif where == "placing":
    document_files.os.replace = die
elif where == "half placed":
    document_files.os.replace = die_after(os.replace)
elif where == "placed":
    document_shelf.insert_document = die
elif where == "inserted":
    document_shelf.insert_document = die_after(document_shelf.insert_document)
document = Document(id="sha256:2", title="New", pages=(Page(1, "1", "text"),))
stored = library.add_document("ada", "new.pdf", taken, document, None)
print(stored.id, flush=True)
die()
"""


@needs_posix
@pytest.mark.parametrize(
    "where", ["taken", "writing", "placing", "half placed", "placed", "inserted", "committed"]
)
def test_a_process_killed_while_it_adds_a_document_leaves_all_of_it_or_nothing(
    tmp_path: Path, where: str
) -> None:
    folder, upload = tmp_path / "data", tmp_path / "upload.pdf"
    with Library(folder) as library:
        before = add(library, "ada")
    upload.write_bytes(b"%PDF new")
    code, output, errors = end_of(start_python(DIES, folder, where, upload))
    assert code == -9, errors

    with Library(folder) as library:
        documents = library.documents("ada")
        if where == "committed":
            assert [each.id for each in documents] == [before.id, output.strip()]
            assert library.file("ada", output.strip()).read_bytes() == b"%PDF new"
            assert library.pages("ada", output.strip()).title == "New"
        else:
            assert documents == [before]
        assert kept_files(folder) == files_of(*documents)
        assert add(library, "ada").position == len(documents)


ADDS = """
import sys
from pathlib import Path
from pacellm_rag.documents import Document, Page
from pacellm_rag_ui.library import Library

library = Library(Path(sys.argv[1]))
number = 0
while True:
    data = f"file {number}".encode() * 1000
    document = Document(id="sha256:1", title=f"{number}", pages=(Page(1, "1", f"{number}"),))
    stored = library.add_document("ada", f"{number}.txt", data, document, None)
    print(stored.id, number, flush=True)
    number += 1
"""


@needs_posix
def test_whatever_was_confirmed_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    confirmed: dict[str, int] = {}
    luck = random.Random(20)
    for _ in range(3):
        process = start_python(ADDS, tmp_path)
        assert process.stdout is not None
        for _ in range(luck.randint(2, 8)):
            stored, number = process.stdout.readline().split()
            confirmed[stored] = int(number)
        process.kill()
        rest = process.stdout.read()  # not communicate: it loses what was read ahead
        process.communicate()
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                stored, number = line.split()
                confirmed[stored] = int(number)
    with Library(tmp_path) as library:
        documents = library.documents("ada")
        assert confirmed.keys() <= {each.id for each in documents}
        assert len(documents) <= len(confirmed) + 3  # the last may be kept and unconfirmed
        assert [each.position for each in documents] == list(range(len(documents)))
        for each in documents:
            wanted = f"file {each.title}".encode() * 1000
            assert library.file("ada", each.id).read_bytes() == wanted
            assert library.pages("ada", each.id).pages[0].text == each.title
        assert kept_files(tmp_path) == files_of(*documents)


def test_files_that_nobody_owns_go_at_the_start_and_foreign_ones_stay(tmp_path: Path) -> None:
    with Library(tmp_path) as library:
        stored = add(library, "ada")
        home = library.file("ada", stored.id).parent
        orphan, foreign = home / disk.new_id(), home / "notes.txt"
        orphan.write_bytes(b"x")
        foreign.write_bytes(b"mine")
        empty, strange = home.parent / disk.new_id(), home.parent / "holiday pictures"
        empty.mkdir()
        (empty / f"{disk.new_id()}.json").write_bytes(b"x")
        strange.mkdir()
        (strange / disk.new_id()).write_bytes(b"mine")
    with Library(tmp_path) as library:
        assert library.file("ada", stored.id).is_file()
        assert library.pages("ada", stored.id).title == "Report"
    assert not orphan.exists()
    assert not empty.exists()
    assert foreign.exists()
    assert len(list(strange.iterdir())) == 1


def test_files_that_could_not_be_removed_are_said_and_go_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Library(tmp_path) as library:
        stored = add(library, "ada")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            with pytest.raises(StorageError, match=r"Permission denied.*when the server starts"):
                library.remove_document("ada", stored.id)
        assert library.documents("ada") == []
        assert kept_files(tmp_path) == files_of(stored)
    with Library(tmp_path):
        assert kept_files(tmp_path) == set()


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64_000_015))
    assert library.documents("ada") == []
    with pytest.raises(StorageError, match=r"The disk .* is full: 0\.0 MB do not fit"):
        add(library, "ada", b"x" * 16)
    assert kept_files(tmp_path / "data") == set()
    monkeypatch.undo()
    assert add(library, "ada", b"x" * 16).position == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["disk.fsync", "files.replace"])
def test_a_disk_that_gets_full_leaves_nothing_behind(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    before = add(library, "ada")
    calls = []

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise OSError(code, os.strerror(code))

    module, name = (disk, "fsync") if call == "disk.fsync" else (document_files, "replace")
    with monkeypatch.context() as patch:
        patch.setattr(module.os, name, fail)
        with pytest.raises(StorageError, match="disk of the data folder is full"):
            add(library, "ada", b"new")
    assert calls
    assert library.documents("ada") == [before]
    assert kept_files(tmp_path / "data") == files_of(before)


FILLS = """
import resource, sys
from pathlib import Path
from pacellm_rag.documents import Document, Page
from pacellm_rag_ui.library import Library, StorageError

folder = Path(sys.argv[1])
document = Document(id="sha256:1", title="T", pages=(Page(1, "1", "text"),))
with Library(folder) as library:
    first = library.add_document("ada", "small", b"small", document, None)
    chat = library.create_conversation("ada")
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    source = folder.parent / "large"
    for data in (b"x" * 400_000, source):
        try:
            library.add_document("ada", "large", data, document, None)
        except StorageError as error:
            print(error)
    assert library.documents("ada") == [first]
    library.add_turn("ada", chat.id, "user", "still works")
"""


@needs_posix
def test_a_write_that_the_system_refuses_is_said_as_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 400_000)
    code, output, errors = end_of(start_python(FILLS, tmp_path / "data"))
    assert (code, errors) == (0, "")
    assert [line.split(":")[0] for line in output.splitlines()] == [
        "The disk of the data folder is full"
    ] * 2
    with Library(tmp_path / "data") as library:
        (stored,) = library.documents("ada")
        assert kept_files(tmp_path / "data") == files_of(stored)


def test_a_database_that_is_full_keeps_what_it_had_and_says_so(
    tmp_path: Path, library: Library
) -> None:
    stored = add(library, "ada")
    chat = library.create_conversation("ada")
    first = library.add_turn("ada", chat.id, "user", "first")
    with library._database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageError, match=r"disk of the data folder is full.*Remove documents"):
        library.add_turn("ada", chat.id, "user", "x" * 100_000)
    long = replace(document_of(b"x"), warnings=(DocumentWarning("repaired", "x" * 100_000),))
    with pytest.raises(StorageError, match="full"):
        library.add_document("ada", "x", b"x", long, None)
    assert library.conversation("ada", chat.id)[1] == [first]
    assert library.documents("ada") == [stored]
    assert kept_files(tmp_path / "data") == files_of(stored)
    library.delete_conversation("ada", chat.id)
    assert add(library, "ada").position == 1


def test_an_error_in_the_middle_leaves_neither_files_nor_row(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(document_shelf, "insert_document", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            add(library, "ada")
    assert library.documents("ada") == []
    assert kept_files(tmp_path / "data") == set()
    assert add(library, "ada").position == 0


@pytest.mark.parametrize("content", [b"not a database " * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_damaged_database_is_named_and_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"library\.sqlite3 (is damaged|.*can not be used)"):
        Library(tmp_path)
    assert path.read_bytes() == content


def test_documents_without_their_database_are_not_swept_away(tmp_path: Path) -> None:
    with Library(tmp_path) as library:
        stored = add(library, "ada")
    for path in tmp_path.glob("library.sqlite3*"):
        path.rename(tmp_path.parent / f"{tmp_path.name}-{path.name}")
    with pytest.raises(StorageError, match="Put a copy of it back"):
        Library(tmp_path)
    assert kept_files(tmp_path) == files_of(stored)
    copy = tmp_path.parent / f"{tmp_path.name}-library.sqlite3"
    copy.rename(tmp_path / "library.sqlite3")
    with Library(tmp_path) as library:
        assert library.documents("ada") == [stored]


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_folder_that_can_be_none_is_said(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(StorageError, match="data folder of the server can not be used"):
        Library(file if place == "file" else file / "data")


def test_a_library_of_an_older_version_is_brought_up_with_all_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Library(tmp_path) as library:
        stored, chat = add(library, "ada"), library.create_conversation("ada")
        turn = library.add_turn("ada", chat.id, "user", "kept")
    newer = (
        ("ALTER TABLE turns ADD COLUMN model TEXT NOT NULL DEFAULT 'unknown'",),
        ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('made')"),
    )
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *newer))
    for _ in range(2):  # the second finds nothing to do
        with Library(tmp_path) as library:
            assert library.documents("ada") == [stored]
            assert library.conversation("ada", chat.id)[1][0] == turn
    with sqlite3.connect(tmp_path / "library.sqlite3") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
        assert connection.execute("SELECT model FROM turns").fetchall() == [("unknown",)]
        assert connection.execute("SELECT text FROM notes").fetchall() == [("made",)]
    connection.close()


def test_a_step_that_fails_leaves_the_older_version_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Library(tmp_path) as library:
        stored = add(library, "ada")
    wrong = (("CREATE TABLE notes (text TEXT)",), ("DROP TABLE turns", "NO SUCH STATEMENT"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *wrong))
        with pytest.raises(StorageError, match="syntax error"):
            Library(tmp_path)
    with Library(tmp_path) as library:
        assert library.documents("ada") == [stored]
        chat = library.create_conversation("ada")
        library.add_turn("ada", chat.id, "user", "still works")
        with library._database.reading() as connection:
            names = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert "notes" not in names


def test_a_library_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with Library(tmp_path) as library:
        stored = add(library, "ada")
    known = len(schema.MIGRATIONS)
    connection = sqlite3.connect(tmp_path / "library.sqlite3")
    connection.execute(f"PRAGMA user_version = {known + 1}")
    connection.close()
    with pytest.raises(LibraryError, match=rf"format {known + 1}; .* up to {known}\. Update"):
        Library(tmp_path)
    assert kept_files(tmp_path) == files_of(stored)


def test_the_released_first_step_has_not_changed() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in schema.MIGRATIONS[0]:
        connection.execute(statement)
    tables = {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith("sqlite_")
    }
    connection.close()
    assert tables == {
        "secrets": ["name", "value"],
        "owners": ["owner", "folder", "created"],
        "documents": [
            "id", "owner", "name", "title", "media_type", "bytes", "kept_bytes", "pages", "tokens",
            "warnings", "added", "position", "chosen", "first_page", "last_page", "content_id",
        ],
        "conversations": ["id", "owner", "title", "created", "updated"],
        "conversation_documents": ["conversation", "document", "place"],
        "turns": ["number", "id", "conversation", "role", "text", "citations", "details", "time"],
    }  # fmt: skip


def test_the_tests_of_kills_run_this_python() -> None:
    code, output, _ = end_of(start_python("import sys; print(sys.version)"))
    assert (code, output.strip()) == (0, sys.version)
