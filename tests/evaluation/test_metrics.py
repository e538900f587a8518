from __future__ import annotations

import pytest

from pacellm_rag.evaluation.metrics import contains_answer, exact_match, token_f1


@pytest.mark.parametrize(
    ("answer", "accepted", "em", "f1", "contains"),
    [
        ("The Eiffel Tower", ["eiffel tower!"], 1, 1, 1),
        ("in Paris, France", ["Paris"], 0, 0.5, 1),
        ("Paris", ["Paris, France"], 0, 2 / 3, 0),
        ("Rome", ["Paris"], 0, 0, 0),
        ("", ["Paris"], 0, 0, 0),
        ("the", ["a"], 1, 1, 0),
        ("1,250", ["1250"], 1, 1, 1),
        ("12 pumps", ["2"], 0, 0, 0),
        ("b b", ["b"], 0, 2 / 3, 1),
        ("yes", [], 0, 0, 0),
        ("two", ["one", "two"], 1, 1, 1),
    ],
)
def test_scores_are_those_of_squad(
    answer: str, accepted: list[str], em: float, f1: float, contains: float
) -> None:
    assert exact_match(answer, accepted) == em
    assert token_f1(answer, accepted) == pytest.approx(f1)
    assert contains_answer(answer, accepted) == contains
