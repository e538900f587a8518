"""From the records of a run to its summary.

Differences are paired by sample; intervals draw groups. Knows the records and the statistics; the
suite's name, metric and settings it takes from the run's identity.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.records import RunRecord, UnitRecord
from pacellm_rag.evaluation.statistics import intervals_of
from pacellm_rag.evaluation.summary import (
    ArmSummary,
    BankSummary,
    Breakdown,
    Cost,
    Effect,
    Interval,
    Score,
    Summary,
)
from pacellm_rag.evaluation.types import LOWER_IS_BETTER, Outcome

__all__ = ["BROKEN_DOWN_BY", "summarise"]

BROKEN_DOWN_BY = ("length", "depth", "position", "kind")
"""The facts that every summary breaks its metric down by, where outcomes have them."""

_MOST_VALUES = 50  # of a fact: more than that are measured rather than set, and make no table


@dataclass(frozen=True)
class _Answered:
    """An outcome and the group that it is of."""

    group: str
    outcome: Outcome


def summarise(run: RunRecord) -> Summary:
    """What a run found so far.

    Raises:
        ConfigurationError: nothing is answered yet.
    """
    arms: list[dict[str, Any]] = run.identity["arms"]
    units = {arm["name"]: tuple(run.of(arm["name"])) for arm in arms}
    begun = [arm for arm in arms if units[arm["name"]]]
    if not begun:
        raise ConfigurationError("The run has answered no group yet; there is nothing to sum up.")
    tasks: dict[str, None] = {}
    for each in begun:
        tasks |= {a.outcome.task: None for a in _answered(units[each["name"]])}
    first = arms[0]
    baseline = units[first["name"]]
    summaries = tuple(
        _arm_summary(arm, units[arm["name"]], None if arm is first else baseline, run.identity)
        for arm in begun
    )
    return Summary(
        suite=run.identity["suite"],
        metric=run.identity["metric"],
        settings=run.identity["settings"],
        arms=summaries,
        groups_planned=len(run.groups),
        complete=all(len(done) == len(run.groups) for done in units.values()),
        tasks=tuple(tasks),
        model=run.identity["model"],
        identity=run.identity,
        notes=run.notes,
    )


def _answered(units: Iterable[UnitRecord]) -> list[_Answered]:
    return [_Answered(unit.group, outcome) for unit in units for outcome in unit.outcomes]


def _arm_summary(
    arm: Mapping[str, Any],
    units: Sequence[UnitRecord],
    baseline: Sequence[UnitRecord] | None,
    identity: Mapping[str, Any],
) -> ArmSummary:
    answered = _answered(units)
    other = None if baseline is None else _answered(baseline)
    outcomes = [each.outcome for each in answered]
    cut = [o.tokens_left_out for o in outcomes if o.tokens_left_out > 0]
    seed, first = int(identity["seed"]), identity["arms"][0]
    plain = first["pace"] is None and not first["placebo"]
    effect: Effect = "baseline"
    if baseline is not None:
        same_text = arm["reading"] == first["reading"]
        effect = _effect(units, baseline, idle_is_same=plain and same_text)
    return ArmSummary(
        name=arm["name"],
        pace=arm["pace"],
        placebo=arm["placebo"],
        reading=arm["reading"],
        samples=len(outcomes),
        groups=len(units),
        scores=_scores(answered, other, identity["metric"], seed),
        cost=_cost(units, baseline),
        banks=_banks(units),
        truncated=len(cut) / max(len(outcomes), 1),
        tokens_left_out=statistics.fmean(cut) if cut else 0.0,
        prompt_tokens=_mean(o.prompt_tokens for o in outcomes),
        completion_tokens=_mean(o.completion_tokens for o in outcomes),
        effect=effect,
        breakdowns=tuple(_breakdowns(answered, other, identity["metric"], seed)),
    )


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return statistics.fmean(known) if known else 0.0


def _scores(
    answered: Sequence[_Answered],
    baseline: Sequence[_Answered] | None,
    main: str,
    seed: int,
) -> tuple[Score, ...]:
    """The suite's metric first, each metric over all tasks and then by task."""
    others = {name: None for each in answered for name in each.outcome.scores if name != main}
    scores: list[Score] = []
    for metric in (main, *others):
        found = _score_by_task(answered, baseline, metric, seed)
        scores += found if len(found) > 2 else found[:1]
    return tuple(scores)


def _score_by_task(
    answered: Sequence[_Answered],
    baseline: Sequence[_Answered] | None,
    metric: str,
    seed: int,
) -> list[Score]:
    """A metric's scores: over all tasks, and then of each; empty where no outcome has it."""
    own = [each for each in answered if metric in each.outcome.scores]
    if not own:
        return []
    theirs = {
        each.outcome.sample: each.outcome.scores[metric]
        for each in baseline or ()
        if metric in each.outcome.scores
    }
    values = _table((each, each.outcome.scores[metric]) for each in own)
    means = intervals_of(values, seed=seed)
    paired = [
        (each, each.outcome.scores[metric] - theirs[each.outcome.sample])
        for each in own
        if each.outcome.sample in theirs
    ]
    changes = intervals_of(_table(paired), seed=seed) if paired else None
    better = -1 if metric in LOWER_IS_BETTER else 1

    def score(task: str | None, value: Interval, change: Interval | None) -> Score:
        here = [each for each in own if task in (None, each.outcome.task)]
        gains = [gain for each, gain in paired if task in (None, each.outcome.task)]
        return Score(
            metric=metric,
            task=task,
            samples=len(here),
            groups=len({each.group for each in here}),
            value=value,
            difference=change,
            wins=sum(gain * better > 0 for gain in gains),
            losses=sum(gain * better < 0 for gain in gains),
            ties=sum(gain == 0 for gain in gains),
        )

    scores = [score(None, means.overall, None if changes is None else changes.overall)]
    for task, value in means.tasks.items():
        scores.append(score(task, value, None if changes is None else changes.tasks.get(task)))
    return scores


def _table(
    values: Iterable[tuple[_Answered, float]],
) -> dict[str, dict[str, list[float]]]:
    """Values by task and group."""
    table: dict[str, dict[str, list[float]]] = {}
    for each, value in values:
        table.setdefault(each.outcome.task, {}).setdefault(each.group, []).append(value)
    return table


def _breakdowns(
    answered: Sequence[_Answered],
    baseline: Sequence[_Answered] | None,
    metric: str,
    seed: int,
) -> Iterable[Breakdown]:
    for fact in BROKEN_DOWN_BY:
        parts: dict[float | str, list[_Answered]] = {}
        for each in answered:
            value = each.outcome.facts.get(fact)
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                parts.setdefault(value, []).append(each)
        if len(parts) > _MOST_VALUES:
            continue
        for value in sorted(parts, key=lambda v: (isinstance(v, str), v)):
            found = _score_by_task(parts[value], baseline, metric, seed)
            if found:
                yield Breakdown(fact, value, found[0])


def _cost(units: Sequence[UnitRecord], baseline: Sequence[UnitRecord] | None) -> Cost:
    speeds = [unit.tokens_per_second for unit in units]
    base = {unit.group: unit.tokens_per_second for unit in baseline or ()}
    ratios = [
        unit.tokens_per_second / base[unit.group] for unit in units if base.get(unit.group, 0) > 0
    ]
    return Cost(
        seconds=sum(unit.seconds for unit in units),
        tokens_per_second=statistics.median(speeds),
        speed_ratio=statistics.median(ratios) if ratios else None,
        peak_bytes=max(unit.peak_bytes for unit in units),
        added_bytes=max(unit.added_bytes for unit in units),
        seconds_first=_median_seconds(units, lambda position: position == 0),
        seconds_later=_median_seconds(units, lambda position: position > 0),
    )


def _median_seconds(units: Sequence[UnitRecord], wanted: Callable[[int], bool]) -> float | None:
    """The median time of the samples whose position among those about a text is wanted."""
    seconds = [
        outcome.seconds
        for unit in units
        for outcome in unit.outcomes
        if isinstance(position := outcome.facts.get("position"), int) and wanted(position)
    ]
    return statistics.median(seconds) if seconds else None


def _banks(units: Sequence[UnitRecord]) -> tuple[BankSummary, ...]:
    layers = sorted({layer for unit in units for layer in unit.banks}, key=int)
    found = []
    for layer in layers:
        stats = [unit.banks[layer] for unit in units if layer in unit.banks]

        def mean(name: str, stats: Sequence[Mapping[str, float]] = stats) -> float:
            return statistics.fmean(each[name] for each in stats)

        found.append(
            BankSummary(
                layer=int(layer),
                sequences=len(stats),
                high=mean("high"),
                middle=mean("middle"),
                untouched=mean("untouched"),
                slots_filled=mean("slots_filled"),
                slots=int(stats[0]["slots"]),
            )
        )
    return tuple(found)


def _effect(
    units: Sequence[UnitRecord], baseline: Sequence[UnitRecord], *, idle_is_same: bool
) -> Effect:
    """What the units changed of the baseline's, over the groups that both have.

    Args:
        units: of the arm.
        baseline: of the baseline.
        idle_is_same: whether the arm is the baseline and banks, so that banks that never act are
            the proof. Their logits are not: they are those of other forward passes.
    """
    base = {unit.group: unit for unit in baseline}
    pairs = [(unit, base[unit.group]) for unit in units if unit.group in base]
    if not pairs or any(_texts(one) != _texts(two) for one, two in pairs):
        return "changed"
    idle = idle_is_same and all(unit.acted is False for unit, _ in pairs)
    equal = all(one.logits is not None and one.logits == two.logits for one, two in pairs)
    return "none" if idle or equal else "same texts"


def _texts(unit: UnitRecord) -> dict[str, str]:
    return {outcome.sample: outcome.text for outcome in unit.outcomes}
