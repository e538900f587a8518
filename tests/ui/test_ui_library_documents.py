from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from library_cases import OWN_NAME, add, bytes_in, document_of, files_of, kept_files

from pacellm_rag.documents import Document, DocumentWarning, Page
from pacellm_rag.errors import ConfigurationError, PaceLLMError
from pacellm_rag_ui.library import (
    Library,
    LibraryError,
    LibraryLimitError,
    LibraryLimits,
    NotFoundError,
    StorageError,
    Usage,
)
from pacellm_rag_ui.parsed_pages import document_from_bytes, document_to_bytes
from pacellm_rag_ui.stored_text import kept_name, kept_title


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "data") as opened:
        yield opened


def test_a_document_comes_back_as_it_was_added(library: Library) -> None:
    data = b"%PDF-1.7 \0\xff content"
    document = document_of(data)
    stored = library.add_document("ada", "report.pdf", data, document, 120)

    assert library.documents("ada") == [stored]
    assert library.document("ada", stored.id) == stored
    assert library.file("ada", stored.id).read_bytes() == data
    assert library.pages("ada", stored.id) == replace(document, source="report.pdf")
    assert (stored.owner, stored.name, stored.title) == ("ada", "report.pdf", "Report")
    assert (stored.bytes, stored.pages, stored.tokens) == (len(data), 3, 120)
    assert (stored.position, stored.chosen, stored.page_range) == (0, True, None)
    assert stored.warnings == ("Page 2 has no text.",)
    assert stored.content_id == document.id
    assert stored.media_type == "application/pdf"


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with Library(tmp_path / "data") as before:
        first, second = add(before, "ada", b"one"), add(before, "ada", b"two")
        before.update_document("ada", first.id, chosen=False, page_range=(2, 3), position=1)
        listed, pages = before.documents("ada"), before.pages("ada", second.id)
    with Library(tmp_path / "data") as after:
        assert after.documents("ada") == listed
        assert [each.id for each in listed] == [second.id, first.id]
        assert after.pages("ada", second.id) == pages
        assert after.file("ada", second.id).read_bytes() == b"two"


def test_a_document_without_pages_text_or_tokens_is_kept(library: Library) -> None:
    empty = Document(id="sha256:0", title="", pages=(), source="")
    stored = library.add_document("ada", "nothing.txt", b"", empty, None)
    assert (stored.bytes, stored.pages, stored.tokens, stored.title) == (0, 0, None, "nothing.txt")
    assert library.pages("ada", stored.id) == replace(empty, source="nothing.txt")
    with pytest.raises(LibraryError, match="has pages 1 to 0"):
        library.update_document("ada", stored.id, page_range=(1, 1))


def test_the_same_content_twice_is_two_documents_with_ids_that_say_nothing(
    library: Library,
) -> None:
    first, second = add(library, "ada"), add(library, "ada")
    assert first.id != second.id
    assert first.content_id == second.content_id
    assert OWN_NAME.fullmatch(first.id)


NAMES = {
    "../../etc/passwd": "passwd",
    "/etc/passwd": "passwd",
    "C:\\Users\\ada\\report.pdf": "report.pdf",
    "..": "document",
    ".": "document",
    "": "document",
    "   ": "document",
    "folder/": "document",
    "\0": "\ufffd",
    "a\0b.pdf": "a\ufffdb.pdf",
    "a\r\nX-Header: 1.pdf": "a\ufffd\ufffdX-Header: 1.pdf",
    "a\u2028b\u2029.pdf": "a\ufffdb\ufffd.pdf",
    "\ud800.pdf": "\ufffd.pdf",
    "gpj.\u202efdp.exe": "gpj.\u202efdp.exe",
    "<img src=x>.pdf": "<img src=x>.pdf",
    "x" * 300: "x" * 214 + "…" + "x" * 40,
    "数" * 296 + ".pdf": "数" * 214 + "…" + "数" * 36 + ".pdf",
    "'; DROP TABLE documents; --": "'; DROP TABLE documents; --",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n[:24]))
def test_a_hostile_name_is_no_path_and_comes_back_in_one_line(
    tmp_path: Path, library: Library, name: str
) -> None:
    stored = add(library, "ada", name=name, title=name)
    assert stored.name == NAMES[name]
    assert "\n" not in stored.title
    assert 1 <= len(stored.title) <= 300
    assert library.pages("ada", stored.id).source == stored.name
    assert kept_files(tmp_path / "data") == files_of(stored)
    assert {p.name for p in tmp_path.iterdir()} == {"data"}
    library.remove_document("ada", stored.id)
    assert kept_files(tmp_path / "data") == set()


@settings(deadline=None)
@given(st.text(max_size=400) | st.text(alphabet="\ud800\u202e/\\\0\n. a", max_size=400))
def test_any_name_becomes_one_that_can_be_kept(name: str) -> None:
    kept = kept_name(name)
    assert 1 <= len(kept) <= 255
    assert not set(kept) & set("/\\\0\n\r\u2028\u2029")
    assert kept_name(kept) == kept
    kept.encode()
    kept_title(name).encode()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9999), st.text(), st.text()), max_size=4),
    st.lists(st.tuples(st.text(), st.lists(st.integers(1, 9), max_size=3)), max_size=3),
)
def test_parsed_pages_survive_being_bytes(
    pages: list[tuple[int, str, str]], warnings: list[tuple[str, list[int]]]
) -> None:
    document = Document(
        id="sha256:1",
        title="T\ud800",
        pages=tuple(Page(*page) for page in pages),
        source="x",
        media_type="text/plain",
        warnings=tuple(DocumentWarning("garbled_text", m, tuple(n)) for m, n in warnings),
    )
    assert document_from_bytes(document_to_bytes(document), "x") == document


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"format": 2}', b"\xff", b'"a'])
def test_bytes_that_are_no_parsed_pages_are_told_from_them(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        document_from_bytes(data, "x")


def test_order_is_kept_without_gaps(library: Library) -> None:
    a, b, c, d = (add(library, "ada", title=letter).id for letter in "abcd")

    def order() -> list[str]:
        documents = library.documents("ada")
        assert [each.position for each in documents] == list(range(len(documents)))
        return [each.id for each in documents]

    library.update_document("ada", d, position=1)
    assert order() == [a, d, b, c]
    library.update_document("ada", a, position=99)
    assert order() == [d, b, c, a]
    library.update_document("ada", a, position=-5)
    assert order() == [a, d, b, c]
    assert [each.id for each in library.reorder("ada", [c, b, c])] == [c, b, a, d]
    library.remove_document("ada", b)
    assert order() == [c, a, d]
    e = add(library, "ada").id
    assert order() == [c, a, d, e]
    assert library.reorder("ada", []) == library.documents("ada")


def test_only_what_is_given_changes(library: Library) -> None:
    stored = add(library, "ada")
    changed = library.update_document("ada", stored.id, page_range=(1, 2))
    assert changed == replace(stored, page_range=(1, 2))
    changed = library.update_document("ada", stored.id, chosen=False)
    assert changed == replace(stored, page_range=(1, 2), chosen=False)
    changed = library.update_document("ada", stored.id, page_range=None, tokens=7)
    assert changed == replace(stored, chosen=False, tokens=7)
    assert library.update_document("ada", stored.id) == changed


@pytest.mark.parametrize("pages", [(0, 1), (2, 1), (1, 4), (4, 4), (-1, 2), (1, 10**30)])
def test_pages_that_there_are_not_are_refused_and_nothing_changes(
    library: Library, pages: tuple[int, int]
) -> None:
    stored = add(library, "ada")
    with pytest.raises(LibraryError, match="Report has pages 1 to 3"):
        library.update_document("ada", stored.id, chosen=False, page_range=pages)
    assert library.document("ada", stored.id) == stored


Call = Callable[[Library, str, str], object]
DOCUMENT_CALLS: dict[str, Call] = {
    "document": lambda library, owner, id: library.document(owner, id),
    "pages": lambda library, owner, id: library.pages(owner, id),
    "file": lambda library, owner, id: library.file(owner, id),
    "update": lambda library, owner, id: library.update_document(owner, id, chosen=False),
    "reorder": lambda library, owner, id: library.reorder(owner, [id]),
    "remove": lambda library, owner, id: library.remove_document(owner, id),
    "begin": lambda library, owner, id: library.create_conversation(owner, document_ids=[id]),
}


@pytest.mark.parametrize("call", DOCUMENT_CALLS)
def test_anothers_document_is_as_unknown_as_one_that_never_was(
    tmp_path: Path, library: Library, call: str
) -> None:
    mine = add(library, "ada")
    messages = set()
    add(library, "eve")
    for owner in ("eve", "ada ", "ADA", "", "a\ud800"):
        if call == "begin" and owner in ("", "a\ud800"):
            continue  # these can be no owners at all
        for wrong in (mine.id, "x" * 22, "", "../" + mine.id, "\ud800", "'"):
            with pytest.raises(NotFoundError) as error:
                DOCUMENT_CALLS[call](library, owner, wrong)
            messages.add(str(error.value))
    for value in (None, 7, ["x"], b"x", {"id": mine.id}):
        with pytest.raises(NotFoundError):
            DOCUMENT_CALLS[call](library, "ada", value)  # type: ignore[arg-type]
    assert len(messages) == 1
    assert library.documents("ada") == [mine]
    assert library.conversations("eve") == []
    assert files_of(mine) < kept_files(tmp_path / "data")


def test_owners_see_their_own_documents_only(library: Library) -> None:
    hers, his = add(library, "user:ada"), add(library, "guest:bob")
    assert library.documents("user:ada") == [hers]
    assert library.documents("guest:bob") == [his]
    assert library.documents("nobody") == []
    assert library.file("user:ada", hers.id).parent != library.file("guest:bob", his.id).parent


@pytest.mark.parametrize("owner", ["", "x" * 301, "a\0b", "a\nb", "\ud800"])
def test_an_owner_that_can_be_none_keeps_nothing(
    tmp_path: Path, library: Library, owner: str
) -> None:
    with pytest.raises(LibraryError, match=r"owner|characters"):
        add(library, owner)
    with pytest.raises(LibraryError):
        library.create_conversation(owner)
    assert library.documents(owner) == []
    assert kept_files(tmp_path / "data") == set()


def test_a_file_at_the_limit_is_kept_and_one_byte_more_is_not(tmp_path: Path) -> None:
    with Library(tmp_path / "data", limits=LibraryLimits(file_bytes=10)) as library:
        kept = add(library, "ada", b"x" * 10)
        with pytest.raises(LibraryLimitError, match=r"11 bytes; the limit of this server is 10 "):
            add(library, "ada", b"x" * 11)
        large = tmp_path / "large.pdf"
        large.write_bytes(b"x" * 11)
        with pytest.raises(LibraryLimitError):
            library.add_document("ada", "large.pdf", large, document_of(b""), None)
        assert large.exists()
        assert kept_files(tmp_path / "data") == files_of(kept)


def test_one_document_too_many_is_refused_with_the_number(tmp_path: Path) -> None:
    with Library(tmp_path / "data", limits=LibraryLimits(files=2)) as library:
        kept = [add(library, "ada"), add(library, "ada")]
        with pytest.raises(LibraryLimitError, match=r"You keep 2 documents.*is 2\. Remove one"):
            add(library, "ada")
        add(library, "bob")
        library.remove_document("ada", kept[0].id)
        add(library, "ada")


def test_text_counts_towards_what_an_owner_may_keep(tmp_path: Path) -> None:
    with Library(tmp_path / "data", limits=LibraryLimits(owner_bytes=20_000)) as library:
        stored = add(library, "ada", b"x" * 1_000)
        used = library.usage("ada")
        assert used == Usage(1, 1_000 + len(document_to_bytes(document_of(b"x" * 1_000))))
        with pytest.raises(LibraryLimitError, match=r"the limit of this server is 20,000 bytes"):
            add(library, "ada", b"y", pages=1_000)  # a small file with much text
        assert library.documents("ada") == [stored]
        assert library.usage("ada") == used
        assert kept_files(tmp_path / "data") == files_of(stored)
    assert len(list((tmp_path / "data" / "arrivals").iterdir())) == 0


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9"])
def test_a_limit_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"files is .*; it must be a whole number"):
        LibraryLimits(files=value)  # type: ignore[arg-type]


def test_removing_a_document_leaves_nothing_of_it_on_the_disk(
    tmp_path: Path, library: Library
) -> None:
    stays = add(library, "ada", b"this stays here")
    goes = add(library, "ada", b"SECRET-FILE", name="SECRET-NAME.pdf", title="SECRET-TITLE")
    library.create_conversation("ada", document_ids=[stays.id, goes.id])
    assert b"SECRET-FILE" in bytes_in(tmp_path)
    library.remove_document("ada", goes.id)

    assert b"SECRET" not in bytes_in(tmp_path)
    assert goes.id.encode() not in bytes_in(tmp_path)
    assert b"this stays here" in bytes_in(tmp_path)
    assert library.usage("ada").files == 1
    assert library.conversations("ada")[0].document_ids == (stays.id,)
    with pytest.raises(NotFoundError):
        library.file("ada", goes.id)
    with pytest.raises(NotFoundError):
        library.remove_document("ada", goes.id)


def test_removing_an_owner_leaves_nothing_and_others_untouched(
    tmp_path: Path, library: Library
) -> None:
    add(library, "user:eve", b"SECRET-FILE", title="SECRET-TITLE")
    chat = library.create_conversation("user:eve", title="SECRET-CHAT")
    library.add_turn("user:eve", chat.id, "user", "SECRET-QUESTION")
    other = add(library, "user:ada")
    library.delete_owner("user:eve")

    content = bytes_in(tmp_path)
    assert b"SECRET" not in content
    assert b"user:eve" not in content
    assert library.documents("user:eve") == []
    assert library.conversations("user:eve") == []
    assert library.documents("user:ada") == [other]
    assert len(list((tmp_path / "data" / "owners").iterdir())) == 1
    library.delete_owner("user:eve")
    library.delete_owner("nobody \ud800")
    assert add(library, "user:eve").position == 0


def test_a_removed_owner_may_begin_again(library: Library) -> None:
    add(library, "ada")
    library.delete_owner("ada")
    assert library.documents("ada") == []
    stored = add(library, "ada")
    assert library.file("ada", stored.id).read_bytes() == b"%PDF-1.7 content"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_server_may_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Library(tmp_path / "data") as library:
            stored = add(library, "ada")
            upload = tmp_path / "upload.pdf"
            upload.write_bytes(b"x")
            taken = library.take_in(upload)
            assert stat.S_IMODE(taken.stat().st_mode) == 0o600
            for path in (tmp_path / "data").rglob("*"):
                if path.suffix == ".lock":
                    continue
                wanted = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.stat().st_mode) == wanted, path
            assert library.file("ada", stored.id).is_file()
            assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_file_that_is_lost_is_said_and_the_document_can_be_removed(
    tmp_path: Path, library: Library, harm: str
) -> None:
    stored = add(library, "ada")
    original = library.file("ada", stored.id)
    pages = original.with_name(f"{stored.id}.json")
    if harm == "missing":
        original.unlink()
        pages.unlink()
        with pytest.raises(StorageError, match="missing on the server"):
            library.file("ada", stored.id)
    else:
        pages.write_bytes(b'{"format": 1, "pages"')
    with pytest.raises(StorageError, match="Remove the document and add it again"):
        library.pages("ada", stored.id)
    library.remove_document("ada", stored.id)
    assert kept_files(tmp_path / "data") == set()


def test_a_closed_library_says_so(tmp_path: Path) -> None:
    library = Library(tmp_path / "data")
    library.close()
    library.close()
    with pytest.raises(StorageError, match="closed; open it again"):
        library.documents("ada")
    with pytest.raises(PaceLLMError):
        add(library, "ada")
