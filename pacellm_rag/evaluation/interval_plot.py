"""Differences with their intervals on one scale, as HTML that fits any width.

Knows intervals and names; nothing of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pacellm_rag.evaluation.html_text import html_text
from pacellm_rag.evaluation.summary import Interval
from pacellm_rag.evaluation.verdicts import points, span

__all__ = ["PlottedDifference", "plot_differences"]

_REACHES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class PlottedDifference:
    """A row of the plot.

    Attributes:
        name: what differs.
        difference: by how much.
        placebo: whether it is the noise.
    """

    name: str
    difference: Interval
    placebo: bool = False


def plot_differences(rows: Sequence[PlottedDifference], *, noise: Interval | None = None) -> str:
    """The plot; "" without rows.

    Args:
        rows: from top to bottom.
        noise: the placebo's interval, to lie behind all rows as a band.
    """
    if not rows:
        return ""
    reach = _reach([row.difference for row in rows])
    band = _bar("band", noise, reach) if noise is not None else ""
    parts = ['<div class="plot">']
    for row in rows:
        kind = " placebo" if row.placebo else " beyond" if row.difference.beyond_chance else ""
        parts.append(
            f'<div class="line{kind}"><span class="who">{html_text(row.name)}</span>'
            f'<span class="track" aria-hidden="true">{band}<i class="zero"></i>'
            f"{_bar('whisker', row.difference, reach)}"
            f'<i class="dot" style="left:{_place(row.difference.mean, reach)}"></i></span>'
            f'<span class="value">{points(row.difference.mean)}'
            f" <small>({span(row.difference)})</small></span></div>"
        )
    end = f"{reach * 100:g}"
    parts.append(
        '<div class="line scale" aria-hidden="true"><span class="who"></span><span class="track">'
        f"<small>\u2212{end}</small><small>0</small><small>+{end}</small></span>"
        '<span class="value"></span></div></div>'
    )
    return "\n".join(parts)


def _reach(differences: Sequence[Interval]) -> float:
    """The end of the scale: a round number that all intervals keep within."""
    ends = [v for d in differences for v in (d.mean, d.low, d.high) if v is not None]
    widest = max(map(abs, ends))
    return next((reach for reach in _REACHES if widest <= reach), 1.0)


def _place(value: float, reach: float) -> str:
    return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.2f}%"


def _bar(name: str, interval: Interval, reach: float) -> str:
    if interval.low is None or interval.high is None:
        return ""
    low, high = (max(-1.0, min(1.0, end / reach)) for end in (interval.low, interval.high))
    return (
        f'<i class="{name}" style="left:{50 + 50 * low:.2f}%;width:{50 * (high - low):.2f}%"></i>'
    )
