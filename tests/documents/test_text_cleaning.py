"""Clean text: what is kept, what is joined, what is removed."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacellm_rag.documents.cleaning import clean_line, clean_text

# Characters on which the rules act, so that hypothesis meets their combinations.
RAW_TEXT = st.text(
    st.one_of(
        st.sampled_from(
            "ab Éé\n\r\t\f\v-\u00ad\ufffe\u2010\u200b\u200c\u200d\ufb01\u0301\u0327\u0344\u202e"
            "\u0915\u094d\u0627\u0300\u00a0\u2028\u2029\x00\x1c\ud83d\ude00\ufeff\U000e0041\uf0b7"
        ),
        st.characters(),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(RAW_TEXT, st.booleans())
def test_cleaning_twice_equals_cleaning_once(raw: str, indented: bool) -> None:
    once = clean_text(raw, keep_indentation=indented)
    assert clean_text(once, keep_indentation=indented) == once


@settings(deadline=None)
@given(RAW_TEXT)
def test_clean_text_is_encodable_composed_and_free_of_what_can_not_be_seen(raw: str) -> None:
    clean = clean_text(raw)
    clean.encode("utf-8")
    assert unicodedata.is_normalized("NFC", clean)
    assert not set(clean) & set("\x00\x1b\r\f\u200b\u202e\u2066\ufeff\ufffe\U000e0041\u00ad")
    assert "\n\n\n" not in clean
    assert clean == clean.strip(" \n")


@settings(deadline=None)
@given(st.text(st.sampled_from("abcdefgh ABC.,;\n")))
def test_cleaning_loses_no_visible_character(raw: str) -> None:
    assert clean_text(raw).split() == raw.split()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("com-\npile", "compile"),
        ("com- \n pile", "compile"),
        ("über-\nörtlich", "überörtlich"),
        ("com\ufffepile", "compile"),
        ("com\u00adpile com\u00ad\npile", "compile compile"),
        ("pre-War-\nTime", "pre-War-\nTime"),
        ("1990-\n1995", "1990-\n1995"),
        ("- one\n- two", "- one\n- two"),
    ],
)
def test_only_words_broken_at_line_ends_are_joined(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﬁne aﬄict", "fine afflict"),
        ("x² + H₂O ½ ™", "x² + H₂O ½ ™"),
        ("e\u0301", "é"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("one\n \n\n\n two", "one\n\ntwo"),
        ("a\u00a0\u2003 \tb", "a b"),
        ("a\x00b\x07c\u202ed\u200be", "abcde"),
        ("ignore\U000e0069\U000e0067 this", "ignore this"),
        ("\uf0b7 point", "• point"),
        ("\ud83d\ude00 \ud800", "😀 \ufffd"),
    ],
)
def test_characters_are_normalised_one_by_one(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_joiners_stay_between_letters_that_need_them_and_go_elsewhere() -> None:
    persian, devanagari = "می\u200cخواهم", "क्\u200dष"
    assert clean_text(persian) == persian
    assert clean_text(devanagari) == devanagari
    assert clean_text("pass\u200cword\u200d \u200c\u200d") == "password"


def test_indentation_is_kept_on_request_only() -> None:
    code = "def f():\n    return 1"
    assert clean_text(code, keep_indentation=True) == code
    assert clean_text(code) == "def f():\nreturn 1"


@pytest.mark.parametrize(
    "hostile",
    [
        "e" + "\u0301\u0327" * 200_000,
        "- \n" * 200_000 + " " * 200_000 + "x",
        "\u00ad \n" * 200_000 + "x",
        "a" + "-     " * 50_000 + "x",
        "\u200c\u200d" * 200_000,
    ],
    ids=["marks", "blanks", "soft hyphens", "hyphens", "joiners"],
)
def test_cleaning_takes_time_in_proportion_to_length(hostile: str) -> None:
    start = time.process_time()
    clean_text(hostile)
    assert time.process_time() - start < 3


def test_a_line_is_one_line_and_not_too_long() -> None:
    assert clean_line("a\nb\x1b[31m\tc") == "a b[31m c"
    assert clean_line("word " * 100, 20) == "word word word word…"
