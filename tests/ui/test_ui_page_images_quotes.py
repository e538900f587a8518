"""Where a quotation stands, in images and in text pages."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacellm_rag.context.matching import reduce_text
from pacellm_rag.documents import Document, Page
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.page_text import page_text_html
from pacellm_rag_ui.quote_places import find_places

LONG = (
    "The board approved the merger on 12 March after a review of eleven weeks. "
    "No director voted against it, and the shares were exchanged in June."
)


def found(quote: str, text: str) -> list[str]:
    return [text[start:end] for start, end in find_places(quote, text)]


@pytest.mark.parametrize(
    ("quote", "text", "shown"),
    [
        ("tide is high", "The tide is high.", "tide is high"),
        ("TIDE, is: high!", "The tide is\r\nhigh.", "tide is\r\nhigh"),
        ("we compiled it", "we com\ufffepiled it", "we com\ufffepiled it"),
        ("we compiled it", "we com-\npiled it", "we com-\npiled it"),
        ("the final office", "the ﬁnal oﬃce", "the ﬁnal oﬃce"),
        ("resume", "my résumé is", "résumé"),
        ("Ｆｕｌｌ width", "Full width", "Full width"),
        ("東京 タワー", "高い東京タワーへ", "東京タワー"),
    ],
)
def test_a_quotation_is_found_whatever_the_line_ends_and_letters(
    quote: str, text: str, shown: str
) -> None:
    assert found(quote, text) == [shown]


@pytest.mark.parametrize("quote", ["", " \n", "?!", "a moose", "x" * 10_000, "tide is low and far"])
def test_what_does_not_stand_there_is_not_found(quote: str) -> None:
    assert found(quote, "The tide is high.") == []


def test_nothing_is_found_in_nothing() -> None:
    assert found("tide", "") == []


def test_whole_words_are_preferred_to_parts_of_words() -> None:
    assert find_places("art", "The party has art.") == [(14, 17)]
    assert find_places("art", "The party starts.") == [(5, 8)]


def test_a_changed_word_leaves_the_rest_marked() -> None:
    quote = LONG.replace("eleven weeks", "twelve weeks")
    shown = found(quote, f"Before. {LONG} After.")
    assert "The board approved the merger on 12 March after a review of" in shown[0]
    assert shown[-1].endswith("the shares were exchanged in June")
    assert not any("Before" in piece or "After" in piece for piece in shown)


def test_columns_read_in_another_order_are_marked_in_both() -> None:
    first, second = LONG.split(". ")
    assert len(found(LONG, f"{second}\nA heading between\n{first}")) == 2


def test_a_few_common_words_are_no_quotation() -> None:
    text = "the board of the company and the report of the year and the board of directors"
    assert found("the board of the trustees and the letter of the bishop in spring", text) == []


def test_the_nearest_copy_is_marked_where_a_phrase_comes_often() -> None:
    phrase = "approved the merger on "
    text = phrase + "\n" * 5 + "filler words and more of them. " * 40 + LONG
    (first, *_) = find_places(LONG.replace("eleven", "seven"), text)
    assert first[0] >= text.index("The board")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.text(min_size=1, max_size=40), st.text(max_size=80))
def test_a_part_of_a_text_is_always_found_in_it(before: str, quote: str, after: str) -> None:
    places = find_places(quote, before + quote + after)
    if not reduce_text(quote)[0]:
        assert places == []
    else:
        ((start, end),) = places
        marked = reduce_text((before + quote + after)[start:end])[0]
        assert reduce_text(quote)[0] in marked


@settings(max_examples=150, deadline=None)
@given(
    st.text("abc ", min_size=20, max_size=200),
    st.text("abc ", max_size=300),
)
def test_places_are_in_order_apart_and_within_the_text(quote: str, text: str) -> None:
    last = -1
    for start, end in find_places(quote, text):
        assert last < start < end <= len(text)
        last = end


@pytest.mark.parametrize("text", ["a" * 200_000, "ab" * 100_000, "a b\n" * 50_000])
def test_a_monotonous_page_costs_little_time(text: str) -> None:
    start = time.monotonic()
    find_places("a" * 2_000 + "c" + "b" * 1_900, text)
    find_places("ab" * 2_000, text)
    assert time.monotonic() - start < 5


def document(*pages: str) -> Document:
    listed = tuple(Page(number, str(number), text) for number, text in enumerate(pages, 1))
    return Document(id="sha256:0", title="T", pages=listed)


def test_a_text_page_shows_its_lines_with_the_quotation_marked() -> None:
    shown = page_text_html(document("One", "The tide\nis high. Yes."), 2, "tide is high")
    assert shown == (
        '<div class="page-text" dir="auto">The <mark id="quote">tide\nis high</mark>. Yes.</div>'
    )
    assert "<mark" not in page_text_html(document("One"), 1, "two")
    assert page_text_html(document("One"), 1).count("One") == 1


def test_only_the_first_mark_has_the_id() -> None:
    first, second = LONG.split(". ")
    shown = page_text_html(document(f"{second}\nA heading between\n{first}"), 1, LONG)
    assert (shown.count("<mark"), shown.count('id="quote"')) == (2, 1)


def test_a_text_page_is_escaped_inside_and_outside_the_mark() -> None:
    attack = "<script>alert('1')</script> & \"more\" <img src=x onerror=alert(1)>"
    for quote in ("", attack, "script alert", "more"):
        shown = page_text_html(document(attack), 1, quote)
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&#x27;" in shown


def test_empty_and_missing_pages_say_so() -> None:
    assert "no text" in page_text_html(document(" \n"), 1, "x")
    for number in (0, 2, -1):
        with pytest.raises(PageImageError, match="the document has 1 pages") as caught:
            page_text_html(document("One"), number)
        assert caught.value.status == 404
