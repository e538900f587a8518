"""Scores equal the official ones: a table computed with LongBench's functions on their packages.

`longbench_golden.json` was made with rouge 1.0.1 and fuzzywuzzy 0.18.0 without python-Levenshtein,
as LongBench's requirements install them; answers and references are our own.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.evaluation.longbench_prompts import TASKS
from pacellm_rag.evaluation.longbench_scores import METRICS, score_answer
from pacellm_rag.evaluation.rouge import rouge_l

GOLDEN: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("longbench_golden.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['task']}-{case['answer']:.20}")
def test_equals_the_official_score(case: dict[str, Any]) -> None:
    score = score_answer(case["task"], case["answer"], case["accepted"], case["classes"])
    assert score == pytest.approx(case["score"], abs=1e-12)


def test_the_table_has_every_metric_and_scores_between_the_ends() -> None:
    for metric in set(METRICS.values()):
        scores = {case["score"] for case in GOLDEN if METRICS[case["task"]] == metric}
        assert len(scores) > 3, metric


def test_every_task_has_a_metric() -> None:
    assert set(METRICS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_best_accepted_answer_counts_and_none_is_zero(task: str) -> None:
    answer = "river of gold"
    right = score_answer(task, answer, ["nothing", answer], [answer])
    assert right == pytest.approx(1.0, abs=1e-8)
    assert right == score_answer(task, answer, [answer, "nothing"], [answer])
    assert score_answer(task, answer, [], [answer]) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_only_few_shot_answers_are_cut_at_their_first_line(task: str) -> None:
    one = score_answer(task, "\n\nwrong\nright", ["right"], ["right"])
    if task in ("trec", "triviaqa", "samsum", "lcc", "repobench-p"):
        wrong_line = score_answer(task, "wrong", ["right"], ["right"])
        assert one == wrong_line
    else:
        assert one > 0.5


def test_a_sentence_of_a_thousand_words_is_scored() -> None:
    words = " ".join(f"w{i}" for i in range(900))
    assert rouge_l(words, words) == pytest.approx(1.0, abs=1e-8)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "A", ".", " ", "\n", "d.", "3.5"]), max_size=9)


@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_rouge_equals_a_plain_recursive_one(answer: str, reference: str) -> None:
    assert rouge_l(answer, reference) == _recursive_rouge_l(answer, reference)


def _recursive_rouge_l(answer: str, reference: str) -> float:
    """By the definition, with the choice among several subsequences that the package makes."""

    def sentences(text: str) -> list[tuple[str, ...]]:
        pieces = [piece for piece in text.split(".") if piece]
        return [tuple(" ".join(piece.split()).split(" ")) for piece in pieces]

    @cache
    def common(one: tuple[str, ...], two: tuple[str, ...]) -> tuple[str, ...]:
        if not one or not two:
            return ()
        if one[-1] == two[-1]:
            return (*common(one[:-1], two[:-1]), one[-1])
        shorter, other = common(one[:-1], two), common(one, two[:-1])
        return shorter if len(shorter) > len(other) else other

    said, wanted = sentences(answer), sentences(reference)
    if not said or not wanted:
        return 0.0
    shared = {word for w in wanted for s in said for word in common(w, s)}
    precision = len(shared) / len({word for s in said for word in s})
    recall = len(shared) / len({word for w in wanted for word in w})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))
