"""The tables of a report, as words and numbers that any page can set.

Knows summaries; how tables are written is the business of `report` and `html_report`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pacellm_rag.evaluation.summary import ArmSummary, Breakdown, Score, Summary
from pacellm_rag.evaluation.types import LOWER_IS_BETTER
from pacellm_rag.evaluation.verdicts import (
    points,
    score_points,
    share_of,
    span,
    tasks_beyond_chance,
)

__all__ = ["Table", "as_words", "fact_sheet", "tables"]

_NONE = "\u2013"


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers.

    Attributes:
        title: its heading.
        note: what to know for reading it; "" for nothing.
        head: names of the columns.
        rows: cells, as many in each as `head` has.
        words: columns from the left that hold words; the others hold numbers.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def tables(summary: Summary) -> list[Table]:
    """All tables of a run, the most important first; what it has no figures for is left out."""
    made = [_scores(summary), _by_task(summary), *_breakdowns(summary), _other_metrics(summary)]
    made += [_costs(summary), _banks(summary), _arms(summary)]
    return [table for table in made if table.rows]


def fact_sheet(summary: Summary) -> list[Table]:
    """What the run's results depend on, and where it ran."""
    told = ("settings", "arms")  # with the suite's settings, and in the table of arms
    rest = {name: value for name, value in summary.identity.items() if name not in told}
    parts = [
        ("The suite's settings", summary.settings),
        ("What else the results depend on", rest),
        ("Where and how it ran", summary.notes),
    ]
    return [
        Table(title, "", ("setting", "value"), tuple((k, _setting(k, v)) for k, v in flat), words=2)
        for title, mapping in parts
        if (flat := list(_flattened(mapping)))
    ]


def as_words(value: Any) -> str:
    """A value out of JSON as people read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, Sequence) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(as_words, value)) or "none"
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _setting(name: str, value: Any) -> str:
    return _size(value) if name.endswith("bytes") and type(value) is int else as_words(value)


def _flattened(mapping: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in mapping.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{name}.")
        else:
            yield name, value


def _scores(summary: Summary) -> Table:
    several = len(summary.tasks) > 1
    note = f"{summary.metric} times 100; intervals are 95 %, bootstrapped over groups of samples."
    if several:
        note += " Every task counts the same, however many samples it has."
    rows = []
    for arm in summary.arms:
        score = arm.score(summary.metric)
        if score is None:
            rows.append((arm.name, "no samples", *[_NONE] * 5))
            continue
        rows.append(
            (
                arm.name,
                score_points(score.value.mean),
                span(score.value, signed=False),
                *_difference(score),
                _record(score),
                f"{score.samples:,} in {score.groups:,}",
            )
        )
    head = (
        "arm",
        "score",
        "95 % interval",
        f"difference to {summary.baseline.name}",
        "its 95 % interval",
        "better / worse / same",
        "samples in groups",
    )
    return Table("Scores", note, head, tuple(rows))


def _difference(score: Score) -> tuple[str, str]:
    if score.difference is None:
        return _NONE, _NONE
    return points(score.difference.mean), span(score.difference)


def _record(score: Score) -> str:
    if score.difference is None:
        return _NONE
    return f"{score.wins:,} / {score.losses:,} / {score.ties:,}"


def _compared(
    summary: Summary,
    title: str,
    note: str,
    first: str,
    rows: Iterable[tuple[str, Sequence[Score | None]]],
) -> Table:
    """One row for each name, and for each arm its score and its difference to the baseline."""
    head = [first, "samples", summary.baseline.name]
    for arm in summary.arms[1:]:
        head += [arm.name, f"{arm.name} \u2212 {summary.baseline.name}"]
    made = []
    for name, scores in rows:
        baseline, *others = scores
        most = max((s.samples for s in scores if s), default=0)
        cells = [name, f"{most:,}", score_points(baseline.value.mean) if baseline else _NONE]
        for score in others:
            cells.append(score_points(score.value.mean) if score else _NONE)
            if score is None or score.difference is None:
                cells.append(_NONE)
            else:
                cells.append(f"{points(score.difference.mean)} ({span(score.difference)})")
        made.append(tuple(cells))
    return Table(title, note, tuple(head), tuple(made))


def _by_task(summary: Summary) -> Table:
    rows = [
        (task, [arm.score(summary.metric, task) for arm in summary.arms]) for task in summary.tasks
    ]
    told = [tasks_beyond_chance(summary, arm) for arm in summary.arms[1:]]
    note = " ".join([f"{summary.metric} times 100.", *filter(None, told)])
    return _compared(summary, "By task", note, "task", rows if len(rows) > 1 else [])


def _other_metrics(summary: Summary) -> Table:
    names = dict.fromkeys(
        (s.metric, s.task) for arm in summary.arms for s in arm.scores if s.metric != summary.metric
    )
    rows = [
        (
            _named(metric) if task is None else f"{_named(metric)}, {task}",
            [a.score(metric, task) for a in summary.arms],
        )
        for metric, task in names
    ]
    note = "Times 100. The verdict is about the suite's metric; these are for looking closer."
    return _compared(summary, "Other metrics", note, "metric", rows)


def _named(metric: str) -> str:
    return f"{metric} (lower is better)" if metric in LOWER_IS_BETTER else metric


def _breakdowns(summary: Summary) -> list[Table]:
    by_place: dict[str, dict[float | str, dict[str, Breakdown]]] = {}
    for arm in summary.arms:
        for part in arm.breakdowns:
            by_place.setdefault(part.fact, {}).setdefault(part.value, {})[arm.name] = part
    note = (
        f"{summary.metric} times 100. Parts of a run are small; most differences here are chance."
    )
    return [
        _compared(
            summary,
            f"By {fact}",
            note,
            fact,
            [
                (
                    as_words(value),
                    [p.score if (p := parts.get(a.name)) else None for a in summary.arms],
                )
                for value, parts in values.items()
            ],
        )
        for fact, values in by_place.items()
    ]


def _costs(summary: Summary) -> Table:
    rows = tuple(
        (
            arm.name,
            f"{arm.cost.tokens_per_second:,.1f}",
            _NONE if arm.cost.speed_ratio is None else f"{arm.cost.speed_ratio:.3f}",
            _time(arm.cost.seconds),
            _size(arm.cost.peak_bytes),
            _size(arm.cost.added_bytes),
            _seconds(arm.cost.seconds_first),
            _seconds(arm.cost.seconds_later),
            f"{arm.prompt_tokens:,.0f}",
            f"{arm.completion_tokens:,.1f}",
            share_of(arm.truncated),
        )
        for arm in summary.arms
    )
    note = (
        f"Speed against {summary.baseline.name} is the median over groups of tokens per second of "
        "the arm over those of the baseline: below 1 is slower. The first question about a text "
        "reads it, later ones do not; medians. Tokens of prompts and answers are means."
    )
    head = (
        "arm",
        "tokens/s",
        f"speed against {summary.baseline.name}",
        "time",
        "peak memory",
        "added by a group",
        "first question",
        "later ones",
        "prompt tokens",
        "answer tokens",
        "prompts cut",
    )
    return Table("Cost", note, head, rows)


def _banks(summary: Summary) -> Table:
    rows = tuple(
        (
            arm.name,
            str(bank.layer),
            share_of(bank.high),
            share_of(bank.middle),
            share_of(bank.untouched),
            f"{bank.slots_filled:,.1f} of {bank.slots:,}",
            f"{bank.sequences:,}",
        )
        for arm in summary.arms
        for bank in arm.banks
    )
    head = ("arm", "layer", "replaced", "mixed", "left alone", "slots filled", "sequences")
    note = "Tokens by how alike they were to memory: replaced by it, mixed with it, or left alone."
    return Table("Memory banks", note, head, rows)


def _arms(summary: Summary) -> Table:
    rows = tuple((arm.name, arm.reading, _kind(arm)) for arm in summary.arms)
    return Table("Arms", "", ("arm", "reading", "what it is"), rows, words=3)


def _kind(arm: ArmSummary) -> str:
    what = "neurons permuted, which is mathematically nothing" if arm.placebo else ""
    if arm.pace is None:
        return what or "the model as it is"
    pairs = "; ".join(f"{name} {as_words(value)}" for name, value in arm.pace.items())
    return ". ".join(filter(None, [what, f"memory banks: {pairs}"]))


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _seconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{seconds:.2f} s"


def _size(count: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:,.2f} {unit}"
    return f"{count / 1024:,.0f} KiB"
