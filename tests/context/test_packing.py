from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.context.markers import markers_in, page_marker
from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError


def document(title: str, *texts: str) -> Document:
    pages = tuple(Page(i + 1, str(i + 1), text) for i, text in enumerate(texts))
    return Document(f"sha256:{title}", title, pages)


page_texts = st.lists(st.text(max_size=60), min_size=1, max_size=4)
documents = st.lists(
    st.builds(lambda t, p: document(t, *p), st.text(max_size=12), page_texts),
    min_size=1,
    max_size=3,
)


@given(documents)
def test_every_page_stands_in_the_text_where_its_segment_says(given_: list[Document]) -> None:
    packed = pack_context(given_)
    pages = [(d, p) for d, doc in enumerate(given_) for p in range(len(doc.pages))]
    assert [(s.document, s.page) for s in packed.segments] == pages
    for segment in packed.segments:
        page = packed.page(segment)
        text = packed.text[segment.start : segment.end]
        if page.text.strip():
            assert len(text) == len(page.text)
            assert not markers_in(text)
            marker = page_marker(segment.document, page.number)
            assert packed.text[: segment.start].endswith(f"{marker}\n")
        else:
            assert text == ""


@given(documents)
def test_characters_lead_back_to_their_page_and_only_to_it(given_: list[Document]) -> None:
    packed = pack_context(given_)
    inside = {c: s for s in packed.segments for c in range(s.start, s.end)}
    for character in range(len(packed.text)):
        assert packed.segment_at(character) == inside.get(character)


@given(documents)
def test_document_spans_cover_the_whole_text_in_order(given_: list[Document]) -> None:
    packed = pack_context(given_)
    borders = [border for span in packed.document_spans for border in span]
    assert borders[0] == 0
    assert borders[-1] == len(packed.text)
    assert borders[1:-1:2] == borders[2::2]


def test_text_that_looks_like_a_marker_can_not_pose_as_a_page() -> None:
    packed = pack_context([document("[D1 p1] me", "See [D1 p9] and [D2, p. 3].", "b")])
    assert markers_in(packed.text) == [(1, 1), (1, 2)]
    assert "See (D1 p9) and (D2, p. 3)." in packed.text


def test_pages_without_text_are_named_in_the_text() -> None:
    packed = pack_context([document("Scan", "", "words")])
    assert "[D1 p1]\n(This page has no text.)\n\n[D1 p2]\nwords" in packed.text


def test_unknown_markers_lead_nowhere() -> None:
    packed = pack_context([document("A", "x"), document("B", "y", "z")])
    assert packed.find_marker(1, 2) is None
    assert packed.find_marker(3, 1) is None
    assert packed.find_marker(0, 1) is None
    found = packed.find_marker(2, 2)
    assert found is not None
    assert packed.page(found).text == "z"


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("Yes [D1 p2].", [(1, 2)]),
        ("Yes [D1, p. 2] and [D12 p305]", [(1, 2), (12, 305)]),
        ("Yes [D1 p2, D3 p4; D5 p6]", [(1, 2), (3, 4), (5, 6)]),
        ("No (D1 p2), [1], [D1], [p2], [D1 p]", []),
    ],
)
def test_markers_are_read_in_the_ways_models_write_them(
    text: str, pages: list[tuple[int, int]]
) -> None:
    assert markers_in(text) == pages


def test_no_document_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        pack_context([])
