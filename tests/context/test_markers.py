from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacellm_rag.context.citations import CitationResolver, Evidence
from pacellm_rag.context.markers import MarkerFilter
from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents import text_document

PARTS = [
    "[D1 p2]",
    "[D12 p34]",
    "([D1 p1])",
    "[D1, p. 2]",
    "[D1 p2, D3 p4]",
    "[D1 p2;",
    "[D1",
    " p",
    "[",
    "(",
    ")",
    " ",
    "\n",
    "\t",
    ".",
    ",",
    "a",
    "D1",
]
RESOLVER = CitationResolver(pack_context([text_document("Some text.")]))


def filtered(pieces: list[str]) -> str:
    words = MarkerFilter()
    return "".join([words.feed(piece) for piece in pieces] + [words.flush()])


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.data())
def test_pieces_add_up_to_the_answer_without_markers_however_it_is_cut(
    text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = RESOLVER.resolve("?", text, Evidence(), cite=False).text
    assert filtered(pieces) == expected


def test_words_are_shown_as_soon_as_they_can_not_be_a_marker() -> None:
    words = MarkerFilter()
    assert words.feed("In March") == "In March"
    assert words.feed(" [D1") == ""
    assert words.feed(" p2]") == ""
    assert words.feed(". And") == ". And"
    assert words.feed(" [DX") == " [DX"


@pytest.mark.parametrize("text", ["[D1 p", "a [", "a (", ""])
def test_a_marker_that_never_ends_is_shown_as_it_is(text: str) -> None:
    assert filtered(list(text)) == text
