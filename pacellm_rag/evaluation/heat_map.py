"""Mean scores by length and depth, of an arm and of its difference to the baseline.

Knows outcomes; how the means are drawn is in `heat_drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pacellm_rag.evaluation.types import Outcome

__all__ = ["Cell", "HeatMap", "difference_map", "place_of", "score_map"]

_MOST_COLUMNS = 16
_MOST_ROWS = 21
_BINS = 10


@dataclass(frozen=True)
class Cell:
    """The mean over samples at one place.

    Attributes:
        value: mean score, or mean difference of scores; 1 is everything.
        samples: how many it is the mean of.
    """

    value: float
    samples: int


@dataclass(frozen=True)
class HeatMap:
    """Means by length and depth.

    Attributes:
        title: what is shown, in a few words.
        measure: what the numbers are.
        note: the whole in a sentence, for those who hear the picture.
        columns: labels of the lengths, short to long.
        rows: labels of the depths, from the beginning of the text to its end.
        cells: by (row, column); places without samples are left out.
        signed: whether the values are differences, and not scores, 0 to 1.
        reach: the difference that has the strongest colour.
    """

    title: str
    measure: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[int, int], Cell]
    signed: bool = False
    reach: float = 1.0

    @property
    def largest(self) -> float:
        """The largest value of a cell, its sign put aside."""
        return max((abs(cell.value) for cell in self.cells.values()), default=0.0)


def place_of(outcome: Outcome) -> tuple[float, float] | None:
    """Where a sample stands: its facts "length" and "depth"; None where it lacks one."""
    found = [outcome.facts.get(name) for name in ("length", "depth")]
    numbers = [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return None
    return numbers[0], numbers[1]


def score_map(arm: str, outcomes: Sequence[Outcome], metric: str) -> HeatMap | None:
    """An arm's mean score at every length and depth; None where nothing has both."""
    placed = [
        (place, outcome.scores[metric])
        for outcome in outcomes
        if metric in outcome.scores and (place := place_of(outcome)) is not None
    ]
    note = f"Mean {metric} of {arm}, times 100, for each length of the text and depth in it."
    return _mapped(arm, f"mean {metric}", note, placed, signed=False)


def difference_map(
    arm: str,
    outcomes: Sequence[Outcome],
    baseline: str,
    of_baseline: Sequence[Outcome],
    metric: str,
) -> HeatMap | None:
    """An arm's mean difference to the baseline over the samples that both have; None without."""
    before = {o.sample: o.scores[metric] for o in of_baseline if metric in o.scores}
    placed = [
        (place, outcome.scores[metric] - before[outcome.sample])
        for outcome in outcomes
        if metric in outcome.scores
        and outcome.sample in before
        and (place := place_of(outcome)) is not None
    ]
    note = (
        f"Mean difference in {metric}, times 100, of {arm} to {baseline} on the same samples; "
        f"above 0 {arm} is better."
    )
    return _mapped(
        f"{arm} minus {baseline}", f"difference in mean {metric}", note, placed, signed=True
    )


def _mapped(
    title: str,
    measure: str,
    note: str,
    placed: Sequence[tuple[tuple[float, float], float]],
    *,
    signed: bool,
) -> HeatMap | None:
    if not placed:
        return None
    columns, column_of = _scale([length for (length, _), _ in placed], _MOST_COLUMNS, "")
    rows, row_of = _scale([depth for (_, depth), _ in placed], _MOST_ROWS, "%")
    gathered: dict[tuple[int, int], list[float]] = {}
    for (length, depth), value in placed:
        gathered.setdefault((row_of(depth), column_of(length)), []).append(value)
    cells = {
        place: Cell(math.fsum(values) / len(values), len(values))
        for place, values in gathered.items()
    }
    return HeatMap(title, measure, note, columns, rows, cells, signed)


def _scale(
    values: Iterable[float], most: int, unit: str
) -> tuple[tuple[str, ...], Callable[[float], int]]:
    """Labels for values, and which label is a value's: one each, or ranges where they are many."""
    known = sorted(set(values))
    if len(known) <= most:
        places = {value: i for i, value in enumerate(known)}
        return tuple(f"{_plain(value)}{unit}" for value in known), places.__getitem__
    first, step = known[0], (known[-1] - known[0]) / _BINS
    digits = 0 if step >= 1 else 1
    ends = [_plain(round(first + i * step, digits)) for i in range(_BINS + 1)]
    labels = tuple(f"{low}-{high}{unit}" for low, high in pairwise(ends))
    return labels, lambda value: min(_BINS - 1, int((value - first) / step))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
