"""ROUGE-Lsum equals the package `rouge_score`."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pacellm_rag.evaluation.rouge_lsum import rouge_lsum

_PARTS = ["the", "cat", "sat", "Mat", "on", "\n", "\n\n", ".", "é", "I'm", "x1", "dog"]

# RougeScorer(["rougeLsum"]).score(reference, candidate)["rougeLsum"].fmeasure, rouge_score 0.1.2
_OF_THE_PACKAGE = (
    0.5365853658536585, 0.0625, 0.12903225806451613, 0.3125, 0.2941176470588235, 0.1935483870967742,
    0.29629629629629634, 0.08333333333333333, 0.0, 0.4516129032258065, 0.4864864864864865,
    0.2222222222222222, 0.32258064516129037, 0.4, 0.4666666666666666, 0, 0.35714285714285715,
    0.41509433962264153, 0.06060606060606061, 0, 0.6206896551724139, 0.4444444444444445,
    0.611111111111111, 0,
)  # fmt: skip


def random_pairs(count: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(7)
    for _ in range(count):
        candidate, reference = (
            " ".join(rng.choice(_PARTS) for _ in range(rng.randrange(40))) for _ in "ab"
        )
        yield candidate, reference


def test_random_texts_score_as_the_package_has_it() -> None:
    scores = [rouge_lsum(candidate, [reference]) for candidate, reference in random_pairs(24)]
    assert scores == pytest.approx(list(_OF_THE_PACKAGE), abs=1e-12)


@pytest.mark.parametrize(
    ("candidate", "reference", "score"),
    [
        ("", "a cat", 0.0),
        ("a cat", "", 0.0),
        ("", "", 0.0),
        ("\n\n", "a", 0.0),
        ("...", "...", 0.0),  # no words
        ("The CAT sat.", "the cat, sat", 1.0),  # neither case nor punctuation
        ("don't", "don t", 1.0),
        ("cats", "cat", 0.0),  # no stemming
        ("Größe", "gr e", 2 * (2 / 2) * (2 / 2) / 2),  # letters beyond a-z part words
        ("你好", "你好", 0.0),
        ("a b c d", "d c b a", 0.25),
        ("a b\nc d", "c d\na b", 1.0),  # sentences in any order
        ("a b c d", "c d\na b", 1.0),  # each sentence of the reference is looked for anew
        ("a a", "a\na\na", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),  # no word twice
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * 0.4 * 0.8 / 1.2),  # Lin's example
    ],
)
def test_hand_worked_cases(candidate: str, reference: str, score: float) -> None:
    assert rouge_lsum(candidate, [reference]) == pytest.approx(score, abs=1e-12)


def test_of_equally_long_subsequences_the_package_takes_the_same_one() -> None:
    # "b a" has either word in common with "a b"; the one that is taken is "a", so that the second
    # line adds to it only where it has "b"
    assert rouge_lsum("b a\na c", ["a b"]) == pytest.approx(1 / 3, abs=1e-12)
    assert rouge_lsum("b a\nb c", ["a b"]) == pytest.approx(2 / 3, abs=1e-12)


def test_the_best_reference_counts() -> None:
    assert rouge_lsum("a b", ["c", "a b", "a"]) == 1.0
    assert rouge_lsum("a b", []) == 0.0
