from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.needles import KINDS, NeedleMaker, Needles, keyword_recall


def made(kind: str, count: int, seed: str = "s", taken: tuple[str, ...] = ()) -> list[Needles]:
    maker = NeedleMaker(kind, taken)
    return [maker.make(random.Random(f"{seed}/{i}")) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_draws_share_a_name_a_word_or_a_number(kind: str) -> None:
    invented = [
        {w for s in needles.sentences for w in re.findall(r"\w+", s)} for needles in made(kind, 300)
    ]
    common = set.intersection(*invented)  # the words of the sentence itself
    assert all(not (one & two) - common for one, two in pairwise(invented))
    keywords = [keyword for needles in made(kind, 300) for keyword in needles.keywords]
    assert len({keyword.casefold() for keyword in keywords}) == len(keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_and_the_keywords_stand_in_the_wanted_sentences(
    kind: str,
) -> None:
    assert made(kind, 3) == made(kind, 3)
    assert made(kind, 3) != made(kind, 3, "t")
    for needles in made(kind, 3):
        hidden = " ".join(needles.sentences[index] for index in needles.wanted)
        assert keyword_recall(hidden, needles.keywords) == 1
        assert keyword_recall(needles.question, needles.keywords) == 0


def test_the_kinds_are_one_fact_four_places_and_four_values() -> None:
    (single,), (multikey,), (multivalue,) = (made(kind, 1) for kind in KINDS)
    assert (len(single.sentences), single.wanted, len(single.keywords)) == (1, (0,), 3)
    assert (len(multikey.sentences), multikey.wanted, len(multikey.keywords)) == (4, (0,), 3)
    places = [re.findall(r"seal of (\w+)", sentence)[0] for sentence in multikey.sentences]
    assert len(set(places)) == 4
    assert places[0] in multikey.question
    others = " ".join(multikey.sentences[1:])
    assert keyword_recall(others, multikey.keywords) == 0
    assert (len(multivalue.sentences), multivalue.wanted) == (4, (0, 1, 2, 3))
    assert len(multivalue.keywords) == 4


def test_words_of_the_text_are_not_used() -> None:
    ((first,), (second,)) = (made("single", 1), made("single", 1, taken=("Zz",)))
    assert first == second
    (other,) = made("single", 1, taken=(first.keywords[0].upper(), first.keywords[2]))
    assert first.keywords[0] not in other.keywords
    assert first.keywords[2] not in other.keywords


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="multivalue"):
        NeedleMaker("double")


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The word brok, the name Vael and the number 123456.", 1),
        ("BROK, vael; 123,456!", 1),
        ("brok vael 123 456", 1),
        ("brok\u00a0and 123\u202f456", 2 / 3),
        ("brokk, Vaels and 1234567", 0),
        ("xbrok 0123456 Vael_", 0),
        ("123,4567", 0),
        ("", 0),
        ("Vael's", 1 / 3),
    ],
)
def test_recall_is_the_share_of_whole_keywords(answer: str, share: float) -> None:
    assert keyword_recall(answer, ("brok", "Vael", "123456")) == pytest.approx(share)


def test_numbers_in_a_row_stay_apart_and_signs_are_no_patterns() -> None:
    assert keyword_recall("123456,234567, 345678", ("123456", "234567", "345678")) == 1
    assert keyword_recall("ab", ("a.",)) == 0
    assert keyword_recall("It is a.", ("a.",)) == 1
    assert keyword_recall("Straße", ("STRASSE",)) == 1
    assert keyword_recall("anything", ()) == 0
