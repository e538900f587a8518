from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.models.text_stream import StopStrings, TextStream
from pacellm_rag.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def cut(text: str, stop: list[str]) -> str:
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(ends)[1]] if ends else text


def split(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


texts = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(text=texts, stop=stops, places=st.lists(st.integers(0, 40), max_size=8))
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stop: list[str], places: list[int]
) -> None:
    finder = StopStrings(stop)
    shown = "".join(finder.feed(piece) for piece in split(text, places))
    assert shown + finder.flush() == cut(text, stop)
    assert (finder.found is not None) == any(s in text for s in stop)


@given(text=texts, stop=stops)
def test_nothing_is_shown_that_could_begin_a_stop_string(text: str, stop: list[str]) -> None:
    finder = StopStrings(stop)
    shown = ""
    for character in text:
        shown += finder.feed(character)
        assert cut(text, stop).startswith(shown)


@given(text=st.text(max_size=60))
def test_pieces_join_to_the_text_and_are_never_broken_characters(text: str) -> None:
    stream = TextStream(decode)
    pieces = [stream.feed(token) for token in encode(text)]
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or (
        "\N{REPLACEMENT CHARACTER}" in text
    )
    assert "".join(pieces) + stream.flush() == text
    assert stream.text == text


@given(text=st.text(max_size=40))
def test_each_token_knows_where_in_the_text_it_ends(text: str) -> None:
    stream = TextStream(decode)
    ids = encode(text)
    for token in ids:
        stream.feed(token)
    assert len(stream.ends) == len(ids)
    assert list(stream.ends) == sorted(stream.ends)
    if ids:
        assert stream.ends[-1] == len(text)


@pytest.mark.parametrize("text", ["naïve – ok", "日本語", "🙂🙂", "e\u0301"])
def test_characters_of_several_tokens_come_whole(text: str) -> None:
    stream = TextStream(decode)
    pieces = [piece for token in encode(text) if (piece := stream.feed(token))]
    assert "".join(pieces) == text


def test_bytes_that_never_become_a_character_do_not_hold_the_answer_back() -> None:
    stream = TextStream(decode)
    broken = encode("é")[0]
    shown = "".join(stream.feed(broken) for _ in range(20))
    assert shown
    assert stream.flush() != "" or shown.count("\N{REPLACEMENT CHARACTER}") == 20


def test_a_stop_string_across_tokens_is_not_leaked() -> None:
    stream = TextStream(decode, ["\nUser:"])
    shown = "".join(stream.feed(token) for token in encode("Yes.\nUser: next"))
    assert shown == "Yes."
    assert stream.stopped
    assert stream.flush() == ""


def test_text_held_back_for_a_stop_string_that_does_not_come_is_given_out_at_the_end() -> None:
    stream = TextStream(decode, ["END"])
    shown = "".join(stream.feed(token) for token in encode("the E"))
    assert shown == "the "
    assert stream.flush() == "E"
