from __future__ import annotations

import json
from typing import Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.records import RunRecord, UnitRecord
from pacellm_rag.evaluation.summarising import summarise
from pacellm_rag.evaluation.summary import Score
from pacellm_rag.evaluation.types import Outcome

ARMS = [
    {"name": "plain", "pace": None, "placebo": False, "reading": "whole"},
    {"name": "pace", "pace": {"window": 32}, "placebo": False, "reading": "whole"},
    {"name": "placebo", "pace": None, "placebo": True, "reading": "whole"},
]


def outcome(
    sample: str, f1: float | None, *, task: str = "qa", text: str = "", cut: int = 0, **facts: Any
) -> Outcome:
    scores = {} if f1 is None else {"f1": f1}
    return Outcome(sample, task, text or sample, scores, 100, cut, 20, 5, 1.0, facts)


def unit(arm: str, group: str, *outcomes: Outcome, **more: Any) -> UnitRecord:
    values = {"seconds": 2.0, "tokens": 85, "tokens_per_second": 42.5, "peak_bytes": 1000,
              "added_bytes": 10, "logits": f"{arm}-{group}"}  # fmt: skip
    return UnitRecord(arm, group, outcomes=outcomes, **(values | more))


def record(*units: UnitRecord, groups: tuple[str, ...] = ("a", "b"), arms: Any = ARMS) -> RunRecord:
    identity = {"suite": "small", "metric": "f1", "settings": {"n": 2}, "arms": arms,
                "model": "tiny", "seed": 0}  # fmt: skip
    return RunRecord(identity, groups, {"commit": "c"}, units)


def both(plain: list[float], pace: list[float], **more: Any) -> RunRecord:
    """A group for each pair of scores."""
    units = []
    for index, scores in enumerate(zip(plain, pace, strict=True)):
        for arm, score in zip(("plain", "pace"), scores, strict=True):
            units.append(unit(arm, f"g{index}", outcome(f"s{index}", score), **more))
    return record(*units, groups=tuple(f"g{i}" for i in range(len(plain))), arms=ARMS[:2])


def test_differences_are_paired_by_sample_and_counted() -> None:
    summary = summarise(both([0.0, 0.5, 1.0, 0.25], [0.5, 0.5, 0.5, 1.0]))
    plain, pace = (arm.score("f1") for arm in summary.arms)
    assert plain is not None
    assert pace is not None
    assert plain.value.mean == pytest.approx(0.4375)
    assert (plain.difference, plain.wins, plain.losses, plain.ties) == (None, 0, 0, 0)
    assert pace.difference is not None
    assert pace.difference.mean == pytest.approx(0.1875)
    assert pace.difference.low is not None
    assert pace.difference.high is not None
    assert pace.difference.low < 0.1875 < pace.difference.high
    assert (pace.wins, pace.losses, pace.ties) == (2, 1, 1)
    assert (pace.samples, pace.groups, pace.task) == (4, 4, None)
    assert summary.complete
    assert summary.baseline.effect == "baseline"
    assert summary.arms[1].effect == "same texts", "the texts are the samples' ids"


def test_tasks_count_the_same_and_have_rows_of_their_own() -> None:
    units = []
    for arm, gain in (("plain", 0.0), ("pace", 0.5)):
        for index in range(4):
            one = outcome(f"q{index}", gain, task="qa")
            units.append(unit(arm, f"a{index}", one))
        for index in range(2):
            one = outcome(f"s{index}", 0.25, task="summary")
            units.append(unit(arm, f"b{index}", one))
    groups = tuple([f"a{i}" for i in range(4)] + [f"b{i}" for i in range(2)])
    summary = summarise(record(*units, groups=groups, arms=ARMS[:2]))
    assert summary.tasks == ("qa", "summary")
    pace = summary.arms[1]
    found = {score.task: (score.value.mean, score.samples, score.wins) for score in pace.scores}
    assert found == {None: (0.375, 6, 4), "qa": (0.5, 4, 4), "summary": (0.25, 2, 0)}
    changes = {s.task: s.difference.mean for s in pace.scores if s.difference is not None}
    assert changes == {None: 0.25, "qa": 0.5, "summary": 0.0}


def test_a_single_task_has_no_row_beside_that_of_all() -> None:
    summary = summarise(both([0.0, 1.0], [0.0, 1.0]))
    assert [score.task for score in summary.baseline.scores] == [None]


def test_metrics_that_only_some_samples_have_are_averaged_over_these() -> None:
    units = [
        unit("plain", "a", outcome("1", 1.0), outcome("2", None)),
        unit("plain", "b", outcome("3", 0.0), Outcome("4", "qa", "", {"em": 1.0}, 9, 0, 0, 1, 0.1)),
    ]
    summary = summarise(record(*units, arms=ARMS[:1]))
    assert [(s.metric, s.samples, s.value.mean) for s in summary.baseline.scores] == [
        ("f1", 2, 0.5),
        ("em", 1, 1.0),
    ]
    assert summary.baseline.samples == 4
    assert summary.baseline.score("rouge") is None


def test_facts_break_the_metric_down_in_the_order_of_their_values() -> None:
    units = []
    for arm, gain in (("plain", 0.0), ("pace", 0.25)):
        for index, length in enumerate((1024, 256, 1024)):
            facts = {"length": length, "kind": "long" if length > 500 else "short", "gold": ["x"],
                     "position": index % 2 == 0, "depth": None}  # fmt: skip
            units.append(unit(arm, f"g{index}", outcome(f"s{index}", 0.5 + gain, **facts)))
    groups = ("g0", "g1", "g2")
    summary = summarise(record(*units, groups=groups, arms=ARMS[:2]))
    rows = [(b.fact, b.value, b.score.samples, b.score.wins) for b in summary.arms[1].breakdowns]
    assert rows == [
        ("length", 256, 1, 1),
        ("length", 1024, 2, 2),
        ("kind", "long", 2, 2),
        ("kind", "short", 1, 1),
    ], "lists, truth values and nothing make no table"


def test_a_fact_that_is_another_for_every_sample_makes_no_table() -> None:
    def found(number: int) -> int:
        outcomes = [outcome(f"s{i}", 0.5, length=i) for i in range(number)]
        summary = summarise(record(unit("plain", "a", *outcomes), groups=("a",), arms=ARMS[:1]))
        return len(summary.baseline.breakdowns)

    assert found(50) == 50
    assert found(51) == 0


def test_costs_are_medians_and_peaks_and_ratios_are_paired_by_group() -> None:
    units = [
        unit("plain", "a", outcome("1", 0.0), tokens_per_second=100.0, peak_bytes=5),
        unit("plain", "b", outcome("2", 0.0), tokens_per_second=10.0, peak_bytes=9),
        unit("pace", "a", outcome("1", 0.0), tokens_per_second=50.0, added_bytes=3),
        unit("pace", "b", outcome("2", 0.0), tokens_per_second=9.0, added_bytes=7),
        unit("pace", "c", outcome("3", 0.0), tokens_per_second=9.0, added_bytes=7),
    ]
    summary = summarise(record(*units, groups=("a", "b", "c"), arms=ARMS[:2]))
    plain, pace = (arm.cost for arm in summary.arms)
    assert (plain.tokens_per_second, plain.peak_bytes, plain.speed_ratio) == (55.0, 9, None)
    assert pace.tokens_per_second == 9.0
    assert pace.speed_ratio == pytest.approx(0.7)
    assert (pace.seconds, pace.added_bytes) == (6.0, 7)
    assert not summary.complete
    score = summary.arms[1].score("f1")
    assert score is not None
    assert (score.samples, score.ties) == (3, 2)


def test_banks_and_truncation_are_averaged() -> None:
    stats = {"slots_filled": 4, "slots": 8, "tokens": 9, "high": 0.5, "middle": 0.25,
             "untouched": 0.25, "written": 0.1, "merged": 0.2}  # fmt: skip
    other = stats | {"slots_filled": 8, "high": 0.0, "untouched": 0.75}
    units = [
        unit("plain", "a", outcome("1", 0.0, cut=300), outcome("2", 0.0)),
        unit("plain", "b", outcome("3", 0.0, cut=100), outcome("4", 0.0), outcome("5", 0.0)),
        unit("pace", "a", outcome("1", 0.0), banks={"10": stats, "2": stats}),
        unit("pace", "b", outcome("3", 0.0), banks={"10": other, "2": stats}),
    ]
    summary = summarise(record(*units, arms=ARMS[:2]))
    plain, pace = summary.arms
    assert (plain.truncated, plain.tokens_left_out) == (0.4, 200.0)
    assert (pace.truncated, pace.tokens_left_out) == (0.0, 0.0)
    assert (plain.prompt_tokens, plain.completion_tokens) == (100.0, 5.0)
    assert plain.banks == ()
    assert [bank.layer for bank in pace.banks] == [2, 10]
    last = pace.banks[1]
    assert (last.high, last.middle, last.untouched) == (0.25, 0.25, 0.5)
    assert (last.slots_filled, last.slots, last.sequences) == (6.0, 8, 2)


def effects(*others: dict[str, Any], arms: Any = ARMS) -> list[str]:
    """Of two units of `pace` and `placebo` that differ from the baseline's only as is said."""
    first = arms[0]["name"]
    units = [unit(first, g, outcome(f"s{g}", 0.0, text="x"), logits=f"same-{g}") for g in "ab"]
    for group, more in zip("ab", others, strict=True):
        values = {"logits": f"same-{group}"} | {k: v for k, v in more.items() if k != "text"}
        for arm in arms[1:]:
            one = outcome(f"s{group}", 0.0, text=more.get("text", "x"))
            banks = {"acted": None} if arm["pace"] is None else {}
            units.append(unit(arm["name"], group, one, **(values | banks)))
    summary = summarise(record(*units, arms=arms))
    assert list(summary.without_effect) == [a.name for a in summary.arms if a.no_effect]
    assert "placebo" not in summary.without_effect
    return [arm.effect for arm in summary.arms[1:]]


def test_an_arm_without_effect_is_the_same_in_every_unit_to_the_bit() -> None:
    assert effects({}, {}) == ["none", "none"]
    assert effects({}, {"logits": "other"}) == ["same texts"] * 2
    assert effects({}, {"text": "y", "logits": "other"}) == ["changed"] * 2
    assert effects({}, {"text": "y"}) == ["changed"] * 2
    assert effects({"logits": None}, {"logits": None}) == ["same texts"] * 2


def test_banks_that_never_acted_had_no_effect_whatever_the_rounding_of_other_passes() -> None:
    idle = {"logits": "other", "acted": False}
    assert effects(idle, idle) == ["none", "same texts"]
    assert effects(idle, idle | {"acted": True}) == ["same texts"] * 2
    assert effects(idle, idle | {"text": "y"}) == ["changed"] * 2, "rounding can change a text"
    half = ARMS[1] | {"reading": "half"}
    assert effects(idle, idle, arms=[ARMS[0], half]) == ["same texts"]
    wide = ARMS[1] | {"name": "wide"}
    assert effects(idle, idle, arms=[ARMS[1], wide, ARMS[0]]) == ["same texts"] * 2


def test_logits_that_nobody_could_see_prove_nothing() -> None:
    units = [unit(arm, "a", outcome("1", 0.0), logits=None) for arm in ("plain", "pace")]
    summary = summarise(record(*units, groups=("a",), arms=ARMS[:2]))
    assert summary.arms[1].effect == "same texts"
    assert summary.without_effect == ()


def test_a_part_of_a_run_has_a_summary_and_nothing_has_none() -> None:
    summary = summarise(record(unit("plain", "a", outcome("1", 0.5))))
    assert [arm.name for arm in summary.arms] == ["plain"]
    assert not summary.complete
    assert summary.groups_planned == 2
    with pytest.raises(ConfigurationError, match="no group"):
        summarise(record())


def test_a_summary_is_json() -> None:
    summary = summarise(both([0.0, 1.0], [0.5, 1.0], banks={}))
    values = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert values["arms"][1]["scores"][0]["wins"] == 1
    assert values["notes"] == {"commit": "c"}
    assert (values["suite"], values["metric"], values["settings"]) == ("small", "f1", {"n": 2})
    scores = [Score(**score) for score in values["arms"][0]["scores"]]
    assert scores[0].metric == "f1"
