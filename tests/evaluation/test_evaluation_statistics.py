from __future__ import annotations

import random

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.statistics import intervals_of
from pacellm_rag.evaluation.summary import Interval
from pacellm_rag.pace.paired_interval import paired_interval

Tasks = dict[str, dict[str, list[float]]]


def drawn(rng: random.Random, tasks: int, groups: int, truth: float) -> Tasks:
    """Differences in groups that share a text, of tasks with different means around the truth."""
    found: Tasks = {}
    for task in range(tasks):
        middle = truth + (task - (tasks - 1) / 2) * 0.3
        found[f"t{task}"] = {}
        for group in range(groups):
            shared = rng.gauss(middle, 0.2)
            values = [shared + rng.gauss(0, 0.1) for _ in range(rng.randint(1, 5))]
            found[f"t{task}"][f"t{task}-{group}"] = values
    return found


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_interval_covers_the_truth_as_often_as_it_says(tasks: int) -> None:
    rng = random.Random(5)
    covered = 0
    for run in range(200):
        found = intervals_of(drawn(rng, tasks, 30, truth=0.1), seed=run).overall
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 200 <= 0.98


def test_tasks_on_the_same_texts_are_not_taken_for_independent() -> None:
    rng = random.Random(6)
    shared_covered = apart_covered = 0
    for run in range(200):
        # what a text does to one question it does to the others
        texts = {f"g{group}": rng.gauss(0, 1) for group in range(30)}
        same = {t: {g: [v + rng.gauss(0, 0.1)] for g, v in texts.items()} for t in "abcd"}
        apart = {t: {f"{t}{g}": v for g, v in groups.items()} for t, groups in same.items()}
        for tasks in (same, apart):
            found = intervals_of(tasks, seed=run).overall
            assert found.low is not None
            assert found.high is not None
            hit = found.low <= 0 <= found.high
            shared_covered += hit and tasks is same
            apart_covered += hit and tasks is apart
    assert 0.90 <= shared_covered / 200 <= 0.98
    assert apart_covered / 200 < 0.80


def test_one_task_has_the_interval_that_calibration_computes() -> None:
    rng = random.Random(7)
    groups = drawn(rng, 1, 12, 0.0)["t0"]
    values = [value for group in groups.values() for value in group]
    found = intervals_of({"t0": groups})
    mean, low, high = paired_interval(values, groups=[len(g) for g in groups.values()], seed=3)
    assert found.overall == found.tasks["t0"]
    assert found.overall.mean == pytest.approx(mean)
    assert found.overall.low == pytest.approx(low, abs=0.03)
    assert found.overall.high == pytest.approx(high, abs=0.03)


def test_every_task_counts_the_same() -> None:
    tasks = {"many": {str(i): [1.0] * 5 for i in range(50)}, "few": {"x": [0.0], "y": [0.0]}}
    assert intervals_of(tasks).overall == Interval(0.5, 0.5, 0.5)


def test_an_interval_needs_two_groups_of_every_task() -> None:
    found = intervals_of({"one": {"g": [0.0, 1.0]}, "two": {"g": [0.0], "h": [1.0]}})
    assert found.tasks["one"] == Interval(0.5, None, None)
    assert found.tasks["two"].low is not None
    assert found.overall == Interval(0.5, None, None)
    with pytest.raises(ConfigurationError):
        intervals_of({"none": {}})


def test_the_same_values_and_seed_give_the_same_interval() -> None:
    tasks = drawn(random.Random(1), 3, 9, 0.0)
    assert intervals_of(tasks, seed=2) == intervals_of(tasks, seed=2)
    assert intervals_of(tasks, seed=2) != intervals_of(tasks, seed=2**63)


def test_beyond_chance_is_an_interval_without_zero() -> None:
    assert Interval(0.2, 0.1, 0.3).beyond_chance
    assert Interval(-0.2, -0.3, -0.1).beyond_chance
    for low, high in ((-0.1, 0.3), (0.0, 0.3), (-0.3, 0.0), (None, None)):
        assert not Interval(0.1, low, high).beyond_chance
