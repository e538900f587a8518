"""A run's report for people: `summary.md`, `report.html` and heat maps, in the run's folder.

Equal runs give equal files: nothing in them is of the moment in which they are written. Knows
summaries and outcomes; no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pacellm_rag.evaluation.heat_drawing import Picture, draw_heat_map
from pacellm_rag.evaluation.heat_map import HeatMap, difference_map, score_map
from pacellm_rag.evaluation.html_report import html_report
from pacellm_rag.evaluation.report_tables import Table, fact_sheet, tables
from pacellm_rag.evaluation.summary import Summary
from pacellm_rag.evaluation.types import Outcome
from pacellm_rag.evaluation.verdicts import caveats, verdicts
from pacellm_rag.files import write_atomically

__all__ = ["markdown_report", "write_report"]

_REACHES = (0.1, 0.25, 0.5)
# What Markdown would take for markup; "_" within a word is none.
_SPECIAL = re.compile(r"[\\`*\[\]<|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")


def write_report(
    summary: Summary, outcomes: Sequence[tuple[str, Outcome]], folder: Path
) -> list[Path]:
    """Writes the report of a run.

    Args:
        summary: of the run.
        outcomes: every one, with the name of its arm.
        folder: where the run's other files are.

    Returns:
        The files: `summary.md`, `report.html`, and where outcomes tell their length and depth a
        heat map of each arm and of each one's difference to the baseline.
    """
    pictures = _pictures(summary, outcomes)
    files = {
        "summary.md": markdown_report(summary, pictures),
        "report.html": html_report(summary, outcomes, pictures),
        **{picture.file: picture.svg for picture in pictures},
    }
    for name, text in files.items():
        # Half a surrogate pair, as a model's bytes may hold, can not be written as it is.
        write_atomically(folder / name, text.encode("utf-8", "replace"))
    return [folder / name for name in files]


def markdown_report(summary: Summary, pictures: Sequence[Picture]) -> str:
    """The report as Markdown.

    Args:
        summary: of the run.
        pictures: that lie beside it.
    """
    parts = [f"# {_plain(summary.suite)}: {_plain(summary.model)}", "## Verdict"]
    said = [
        f"* **{_plain(v.arm)}: {_plain(v.headline)}.** {_plain(v.text)}" for v in verdicts(summary)
    ]
    parts.append("\n".join(said) or f"{_plain(summary.baseline.name)} is the only arm.")
    notes = caveats(summary)
    if notes:
        parts += ["Before you believe it:", "\n".join(f"* {_plain(note)}" for note in notes)]
    scores, *others = tables(summary)
    parts += _table(scores)
    if pictures:
        parts.append("## By length and depth")
        parts += [f"![{_plain(picture.title)}]({picture.file})" for picture in pictures]
    for table in (*others, *fact_sheet(summary)):
        parts += _table(table)
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    lines = [
        _row(table.head),
        _row_of(["---" if i < table.words else "---:" for i in range(len(table.head))]),
    ]
    lines += [_row(row) for row in table.rows]
    note = [_plain(table.note)] if table.note else []
    return [f"## {_plain(table.title)}", *note, "\n".join(lines)]


def _row(cells: Sequence[str]) -> str:
    return _row_of([_plain(cell) for cell in cells])


def _row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _heat_maps(summary: Summary, outcomes: Sequence[tuple[str, Outcome]]) -> list[HeatMap]:
    """One of each arm's scores, then one of each difference, these on one scale."""
    by_arm: dict[str, list[Outcome]] = {arm.name: [] for arm in summary.arms}
    for name, outcome in outcomes:
        if name in by_arm:
            by_arm[name].append(outcome)
    baseline, metric = summary.baseline.name, summary.metric
    scores = [score_map(name, found, metric) for name, found in by_arm.items()]
    differences = [
        chart
        for name, found in by_arm.items()
        if name != baseline
        and (chart := difference_map(name, found, baseline, by_arm[baseline], metric))
    ]
    largest = max((chart.largest for chart in differences), default=0.0)
    reach = next((reach for reach in _REACHES if largest <= reach), 1.0)
    return [
        *(chart for chart in scores if chart),
        *(replace(chart, reach=reach) for chart in differences),
    ]


def _pictures(summary: Summary, outcomes: Sequence[tuple[str, Outcome]]) -> tuple[Picture, ...]:
    """The heat maps, drawn, with names that fit files and ids; arms' names may hold anything."""
    pictures: dict[str, Picture] = {}
    for chart in _heat_maps(summary, outcomes):
        words = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")
        name = f"heat-map-{words or len(pictures)}"
        while name in pictures:
            name += "-2"
        pictures[name] = Picture(
            chart.title, f"{name}.svg", draw_heat_map(chart, name=name), chart.signed
        )
    return tuple(pictures.values())
