"""Runs that never happened, with figures to report; made the way real ones are summed up."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pacellm_rag.evaluation.records import RunRecord, UnitRecord
from pacellm_rag.evaluation.summarising import summarise
from pacellm_rag.evaluation.summary import Summary
from pacellm_rag.evaluation.types import Outcome

PLAIN: dict[str, Any] = {"name": "plain", "pace": None, "placebo": False, "reading": "whole"}
PACE = {**PLAIN, "name": "pace", "pace": {"layers": [13, 27], "blend": 0.2}}
PLACEBO = {**PLAIN, "name": "placebo", "placebo": True}

Answers = Mapping[str, Sequence[Outcome]]


def outcome(
    sample: str,
    text: str = "word",
    score: float = 1.0,
    *,
    task: str = "single",
    left_out: int = 0,
    more: Mapping[str, float] | None = None,
    **facts: Any,
) -> Outcome:
    scores = {"recall": score, **(more or {})}
    return Outcome(sample, task, text, scores, 4000, left_out, 0, 5, 1.25, facts)


def run_of(
    answers: Answers,
    *,
    arms: Sequence[Mapping[str, Any]] = (PLAIN, PACE, PLACEBO),
    group_of: Callable[[str], str] = str,
    logits: Mapping[str, str] | None = None,
    groups_missing: int = 0,
    model: str = "tiny-model",
    notes: Mapping[str, Any] | None = None,
) -> tuple[Summary, list[tuple[str, Outcome]]]:
    """Summary and outcomes of a run.

    Args:
        answers: outcomes by arm.
        arms: as a run's identity has them, the baseline first.
        group_of: the group of a sample.
        logits: hash of what an arm computed; by default another for each arm.
        groups_missing: groups that were planned and that nobody answered.
        model: its name.
        notes: of the run.
    """
    identity = {
        "suite": "niah",
        "metric": "recall",
        "settings": {"lengths": [1024, 2048], "haystack": "builtin"},
        "arms": [dict(arm) for arm in arms],
        "model": model,
        "weights": "3b1f",
        "seed": 0,
    }
    units = []
    for arm in arms:
        name = arm["name"]
        in_groups: dict[str, list[Outcome]] = {}
        for each in answers[name]:
            in_groups.setdefault(group_of(each.sample), []).append(each)
        banks = {"high": 0.25, "middle": 0.5, "untouched": 0.25, "slots_filled": 90, "slots": 100}
        units += [
            UnitRecord(
                arm=name,
                group=group,
                seconds=2.0 * len(found),
                tokens=4005 * len(found),
                tokens_per_second=2000.0 if arm["pace"] is None else 1900.0,
                peak_bytes=3 * 1024**3,
                added_bytes=200 * 1024**2,
                banks={"13": banks, "27": {**banks, "high": 0.0004}} if arm["pace"] else {},
                logits=(logits or {}).get(name, name),
                outcomes=tuple(found),
            )
            for group, found in in_groups.items()
        ]
    groups = tuple(dict.fromkeys(unit.group for unit in units))
    planned = groups + tuple(f"missing-{i}" for i in range(groups_missing))
    record = RunRecord(identity, planned, notes or {}, tuple(units))
    return summarise(record), record.outcomes()


def needles(
    harm: float = 0.0, *, noise: float = 0.01, lengths: int = 8, seed: int = 0
) -> dict[str, list[Outcome]]:
    """Answers of plain, pace and placebo to needles at lengths and depths.

    Args:
        harm: share of the needles that pace loses; gains, where below 0.
        noise: share on which rounding turns the score.
        lengths: how many.
        seed: of the draws.
    """
    draw = random.Random(seed)
    answers: dict[str, list[Outcome]] = {"plain": [], "pace": [], "placebo": []}
    for length in range(1024, 1024 * (lengths + 1), 1024):
        for depth in range(0, 101, 10):
            for number in range(2):
                name = f"{length}-{depth}-{number}"
                right = draw.random() < 1.1 - length / 12000
                turned = {"plain": right, "pace": right, "placebo": right}
                if draw.random() < abs(harm):
                    turned["pace"] = harm < 0
                if draw.random() < noise:
                    turned["placebo"] = not right
                for arm, found in turned.items():
                    answers[arm].append(
                        outcome(
                            name,
                            "The pass phrase is amber kettle 4417." if found else "I do not know.",
                            float(found),
                            length=length,
                            depth=depth,
                            question="What is the pass phrase of the harbour office?",
                            wanted=["amber kettle 4417"],
                        )
                    )
    return answers
