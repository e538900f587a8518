from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library_cases import add, bytes_in

from pacellm_rag_ui.library import (
    Library,
    LibraryError,
    LibraryLimitError,
    LibraryLimits,
    NotFoundError,
)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "data") as opened:
        yield opened


def test_a_conversation_comes_back_after_a_restart_as_it_was(tmp_path: Path) -> None:
    citation = {"document": 0, "page": 12, "quote": "größer als 数", "verified": True, "score": 0.5}
    details = {"usage": {"prompt_tokens": 9}, "finish_reason": "stop", "error": None}
    with Library(tmp_path / "data") as before:
        document = add(before, "ada")
        chat = before.create_conversation("ada", title="Report", document_ids=[document.id])
        asked = before.add_turn("ada", chat.id, "user", "How much?\nAnd when?")
        said = before.add_turn(
            "ada", chat.id, "assistant", "12 [D1 p12]", citations=[citation], details=details
        )
    with Library(tmp_path / "data") as after:
        found, turns = after.conversation("ada", chat.id)
        assert turns == [asked, said]
        assert (asked.role, asked.text, asked.citations) == ("user", "How much?\nAnd when?", ())
        assert (said.citations, said.details) == ((citation,), details)
        assert found == replace(chat, updated=said.time)
        assert found.document_ids == (document.id,)
        assert chat.created <= asked.time <= said.time
        assert after.conversations("ada") == [found]


def test_the_conversation_last_spoken_in_comes_first(library: Library) -> None:
    first, second = library.create_conversation("ada"), library.create_conversation("ada")
    assert [each.id for each in library.conversations("ada")] == [second.id, first.id]
    library.add_turn("ada", first.id, "user", "?")
    assert [each.id for each in library.conversations("ada")] == [first.id, second.id]
    library.rename("ada", second.id, "Named")
    assert [each.id for each in library.conversations("ada")] == [first.id, second.id]


def test_taking_a_turn_away_takes_all_after_it(library: Library) -> None:
    chat, other = library.create_conversation("ada"), library.create_conversation("ada")
    roles: list[str] = []
    for text in "abcd":
        library.add_turn("ada", chat.id, "user" if text in "ac" else "assistant", text)
        library.add_turn("ada", other.id, "user", text)
        roles.append(text)
    turns = library.conversation("ada", chat.id)[1]
    taken = library.truncate_conversation("ada", chat.id, turns[2].id)

    assert taken == turns[2:]
    assert library.conversation("ada", chat.id)[1] == turns[:2]
    assert len(library.conversation("ada", other.id)[1]) == 4
    again = library.add_turn("ada", chat.id, "user", "c, once more")
    assert library.conversation("ada", chat.id)[1] == [*turns[:2], again]
    assert library.truncate_conversation("ada", chat.id, turns[0].id)[-1] == again
    assert library.conversation("ada", chat.id)[1] == []


def test_a_turn_of_another_conversation_takes_nothing_away(library: Library) -> None:
    chat, other = library.create_conversation("ada"), library.create_conversation("ada")
    library.add_turn("ada", chat.id, "user", "a")
    turn = library.add_turn("ada", other.id, "user", "b")
    with pytest.raises(NotFoundError, match="no such turn"):
        library.truncate_conversation("ada", chat.id, turn.id)
    assert len(library.conversation("ada", chat.id)[1]) == 1
    assert len(library.conversation("ada", other.id)[1]) == 1


def test_its_documents_can_be_said_anew_and_removed_ones_are_left_out(library: Library) -> None:
    a, b, c = (add(library, "ada", title=letter).id for letter in "abc")
    chat = library.create_conversation("ada", document_ids=[c, a, c])
    assert chat.document_ids == (c, a)
    assert library.set_conversation_documents("ada", chat.id, [b, c]).document_ids == (b, c)
    library.remove_document("ada", b)
    assert library.conversation("ada", chat.id)[0].document_ids == (c,)
    foreign = add(library, "eve").id
    with pytest.raises(NotFoundError):
        library.set_conversation_documents("ada", chat.id, [a, foreign])
    assert library.conversation("ada", chat.id)[0].document_ids == (c,)


Call = Callable[[Library, str, str, str], object]
CALLS: dict[str, Call] = {
    "read": lambda library, owner, id, turn: library.conversation(owner, id),
    "add": lambda library, owner, id, turn: library.add_turn(owner, id, "user", "x"),
    "cut": lambda library, owner, id, turn: library.truncate_conversation(owner, id, turn),
    "link": lambda library, owner, id, turn: library.set_conversation_documents(owner, id, []),
    "rename": lambda library, owner, id, turn: library.rename(owner, id, "x"),
    "delete": lambda library, owner, id, turn: library.delete_conversation(owner, id),
}


@pytest.mark.parametrize("call", CALLS)
def test_anothers_conversation_is_as_unknown_as_one_that_never_was(
    library: Library, call: str
) -> None:
    chat = library.create_conversation("ada", title="Mine")
    turn = library.add_turn("ada", chat.id, "user", "private")
    before = library.conversation("ada", chat.id)
    library.create_conversation("eve")
    messages = set()
    for owner, wrong in [("eve", chat.id), ("eve", "x" * 22), ("", chat.id), ("ada", "\ud800")]:
        with pytest.raises(NotFoundError) as error:
            CALLS[call](library, owner, wrong, turn.id)
        messages.add(str(error.value))
    assert len(messages) == 1
    assert library.conversation("ada", chat.id) == before
    assert len(library.conversations("eve")) == 1


def test_what_was_deleted_is_gone_from_the_disk(tmp_path: Path, library: Library) -> None:
    chat = library.create_conversation("ada", title="SECRET-TITLE")
    kept = library.create_conversation("ada", title="kept title")
    for text in ("SECRET-QUESTION", "SECRET-" + "long " * 20_000):
        library.add_turn("ada", chat.id, "user", text, citations=[{"quote": "SECRET-QUOTE"}])
    assert b"SECRET" in bytes_in(tmp_path)
    library.delete_conversation("ada", chat.id)
    assert b"SECRET" not in bytes_in(tmp_path)
    assert b"long long" not in bytes_in(tmp_path)

    library.add_turn("ada", kept.id, "user", "stays here")
    turn = library.add_turn("ada", kept.id, "user", "SECRET-EDITED")
    library.truncate_conversation("ada", kept.id, turn.id)
    assert b"SECRET" not in bytes_in(tmp_path)
    assert b"stays here" in bytes_in(tmp_path)


def test_limits_on_conversations_are_named(tmp_path: Path) -> None:
    limits = LibraryLimits(conversations=2, turns=3, turn_bytes=100)
    with Library(tmp_path / "data", limits=limits) as library:
        chat = library.create_conversation("ada")
        library.create_conversation("ada")
        with pytest.raises(LibraryLimitError, match=r"2 conversations.* is 2\. Delete one"):
            library.create_conversation("ada")
        library.create_conversation("bob")
        with pytest.raises(LibraryLimitError, match=r"104 bytes; .* is 100 "):
            library.add_turn("ada", chat.id, "user", "数" * 33 + "x")
        for text in ("x", "y", "z" * 96):
            library.add_turn("ada", chat.id, "user", text)
        with pytest.raises(LibraryLimitError, match=r"has 3 questions and answers.* is 3\."):
            library.add_turn("ada", chat.id, "user", "x")
        assert [turn.text[0] for turn in library.conversation("ada", chat.id)[1]] == list("xyz")


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object(), b"bytes"])
def test_what_is_no_json_is_refused(library: Library, value: object) -> None:
    chat = library.create_conversation("ada")
    with pytest.raises(LibraryError, match="details of a turn must be JSON"):
        library.add_turn("ada", chat.id, "assistant", "x", details={"value": value})
    with pytest.raises(LibraryError, match="citations of a turn must be JSON"):
        library.add_turn("ada", chat.id, "assistant", "x", citations=[{"value": value}])
    assert library.conversation("ada", chat.id)[1] == []


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(st.text() | st.text(alphabet="\ud800\udc00\0'\"\n\u202e", min_size=1))
def test_any_text_can_be_said(library: Library, text: str) -> None:
    chat = library.create_conversation("ada", title=text)
    said = library.add_turn("ada", chat.id, "user", text, citations=[{"quote": text}])
    library.delete_conversation("ada", chat.id)
    wanted = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert said.text == wanted
    assert said.citations == ({"quote": wanted},)
    assert "\n" not in chat.title
