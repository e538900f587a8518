from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pacellm_rag.context.matching import find_quote, reduce_text


@given(
    text=st.text(alphabet="aB1é\ufb01ß日-. \n", min_size=1, max_size=80),
    start=st.integers(0, 79),
    size=st.integers(1, 40),
)
def test_every_part_of_a_text_is_found_in_it(text: str, start: int, size: int) -> None:
    quote = text[start % len(text) :][:size]
    assume(reduce_text(quote)[0])
    found = find_quote(quote, text)
    assert found is not None
    assert reduce_text(quote)[0] in reduce_text(text[found[0] : found[1]])[0]


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("the final figure", "The \ufb01nal\n  figure"),
        ("cooperation ends", "co-\noperation ends"),
        ("“Net” profit: 12.5", 'net profit ("12.5")'),
        ("CAFÉ", "cafe\u0301 au lait"),
    ],
)
def test_line_breaks_hyphens_ligatures_and_signs_do_not_matter(quote: str, text: str) -> None:
    assert find_quote(quote, text) is not None


@pytest.mark.parametrize("quote", ["", "...", "not there", "\x00"])
def test_what_does_not_stand_there_is_not_found(quote: str) -> None:
    assert find_quote(quote, "Some text, of no great length.") is None


def test_the_place_is_that_of_the_quote() -> None:
    text = "Before. The rate is 4.5 %. After."
    found = find_quote("the rate is 4.5", text)
    assert found is not None
    assert text[slice(*found)] == "The rate is 4.5"
