from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.context.sentences import sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@given(st.text(alphabet="aB1 .\n!?;,é", max_size=900))
def test_every_character_that_is_not_blank_lies_in_exactly_one_sentence(text: str) -> None:
    covered = [i for start, end in sentence_spans(text) for i in range(start, end)]
    assert len(covered) == len(set(covered))
    assert covered == sorted(covered)
    assert {i for i, c in enumerate(text) if not c.isspace()} <= set(covered)


@given(st.text(alphabet="ab \n.", max_size=3000))
def test_no_sentence_is_longer_than_one_reads_as_a_quote(text: str) -> None:
    for sentence in sentences(text):
        assert len(sentence) <= 320 or not any(c in sentence for c in " \n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there.", ["One is here.", "Two is there."]),
        ("Dr. Lund paid approx. 3.5 million.", ["Dr. Lund paid approx. 3.5 million."]),
        ("Lines break\ninside. Next one", ["Lines break\ninside.", "Next one"]),
        ("Heading\n\nText follows.", ["Heading", "Text follows."]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("It costs e.g. four. really", ["It costs e.g. four. really"]),
        ("これは文です。次の文。", ["これは文です。", "次の文。"]),
        ("J. Smith signed.", ["J. Smith signed."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_end_where_people_end_them(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_every_row_of_a_table_is_a_sentence() -> None:
    text = "Figures in EUR million\nItem 2023 2024\nSales of water 12.3 14.5\nGrants 1.0 (2.0)\nAs"
    assert sentences(text) == text.split("\n")


def test_a_line_of_prose_with_figures_is_no_row() -> None:
    text = "In 2024 the plant made 12 million cubic metres of water, which was\nmore than before."
    assert sentences(text) == [text]


def test_long_text_without_stops_is_cut_at_its_lines() -> None:
    row = "A list entry without any stop"
    parts = sentences("\n".join([row] * 30))
    assert len(parts) > 1
    assert all(part.startswith("A list") and part.endswith("stop") for part in parts)
