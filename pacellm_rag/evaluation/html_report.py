"""A run as one HTML file that opens offline and asks nobody for anything.

Styles, script and pictures are inside; a content security policy forbids the rest. What models and
data files say is text in it, never markup. Knows summaries and outcomes; no model.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import resources

from pacellm_rag.evaluation.heat_drawing import Picture
from pacellm_rag.evaluation.html_text import html_text
from pacellm_rag.evaluation.interval_plot import PlottedDifference, plot_differences
from pacellm_rag.evaluation.report_tables import Table, fact_sheet, tables
from pacellm_rag.evaluation.sample_rows import AnsweredSample, answered, listed, sample_row
from pacellm_rag.evaluation.summary import Interval, Summary
from pacellm_rag.evaluation.types import Outcome
from pacellm_rag.evaluation.verdicts import caveats, verdicts

__all__ = ["html_report"]

_MOST_ROWS = 21  # of a table that is not folded up


def html_report(
    summary: Summary, outcomes: Sequence[tuple[str, Outcome]], pictures: Sequence[Picture]
) -> str:
    """The page.

    Args:
        summary: of the run.
        outcomes: every one, with the name of its arm.
        pictures: to show; the SVG of each has an id of its own.
    """
    samples = answered([arm.name for arm in summary.arms], outcomes, summary.metric)
    title = f"{summary.suite}: {summary.model}"
    scores, *others = tables(summary)
    sections = [
        ("verdict", "Verdict", _verdict(summary)),
        ("scores", "Scores", _differences(summary) + _table(scores)),
        ("maps", "By length and depth", _pictures(pictures)),
        (
            "figures",
            "More figures",
            "".join(f"<h3>{html_text(t.title)}</h3>{_table(t)}" for t in others),
        ),
        ("samples", "Samples", _samples(summary, samples)),
        ("settings", "Settings", _settings(summary)),
    ]
    held = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in held)
    body = "\n".join(
        f'<section id="{name}"><h2>{heading}</h2>\n{content}</section>'
        for name, heading, content in held
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html_text(title)}</title>
<style>{_look("report.css")}</style>
</head>
<body>
<header>
<h1>{html_text(summary.suite)} <span>{html_text(summary.model)}</span></h1>
<p>{_sizes(summary, samples)}</p>
<nav aria-label="Parts of this page">{links}</nav>
</header>
<main>
{body}
</main>
<footer>Made by pacellm-rag from summary.json and samples.jsonl beside this file.</footer>
<script>{_look("report.js")}</script>
</body>
</html>
"""


@cache
def _look(name: str) -> str:
    """A file of the page's look."""
    return (resources.files(__package__) / "look" / name).read_text(encoding="utf-8")


def _policy() -> str:
    """What the page may do: its own styles, its own script, and nothing else."""
    digest = hashlib.sha256(_look("report.js").encode()).digest()
    script = base64.b64encode(digest).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _sizes(summary: Summary, samples: Sequence[AnsweredSample]) -> str:
    arms = ", ".join(html_text(arm.name) for arm in summary.arms)
    tasks = len(summary.tasks)
    of_tasks = f" from {tasks:,} tasks" if tasks > 1 else ""
    return f"{len(samples):,} samples{of_tasks}, each answered by {arms}. All scores are times 100."


def _verdict(summary: Summary) -> str:
    cards = "".join(
        f'<article class="card {verdict.finding.replace(" ", "-")}">'
        f"<h3>{html_text(verdict.arm)}</h3><p class=headline>{html_text(verdict.headline)}</p>"
        f"<p>{html_text(verdict.text)}</p></article>"
        for verdict in verdicts(summary)
    )
    warned = "".join(f"<li>{html_text(note)}</li>" for note in caveats(summary))
    notes = f'<aside class="caveats"><h3>Before you believe it</h3><ul>{warned}</ul></aside>'
    none = (
        f"<p>{html_text(summary.baseline.name)} is the only arm; there is nothing to compare.</p>"
    )
    return f"{f'<div class=cards>{cards}</div>' if cards else none}{notes if warned else ''}"


def _differences(summary: Summary) -> str:
    """The plots of all tasks together, and of each task."""
    others = summary.arms[1:]

    def rows(task: str | None) -> list[PlottedDifference]:
        return [
            PlottedDifference(arm.name, score.difference, arm.placebo)
            for arm in others
            if (score := arm.score(summary.metric, task)) and score.difference is not None
        ]

    def noise(plotted: Sequence[PlottedDifference]) -> Interval | None:
        return next((row.difference for row in plotted if row.placebo), None)

    overall = rows(None)
    if not overall:
        return ""
    band = " The grey band is the placebo's interval, the noise." if noise(overall) else ""
    parts = [
        f'<p class="note">{html_text(summary.metric)} minus that of '
        f"{html_text(summary.baseline.name)} on the same samples, with 95 % intervals. An interval "
        f"that crosses the line in the middle is no difference beyond chance.{band}</p>",
        plot_differences(overall, noise=noise(overall)),
    ]
    if len(summary.tasks) > 1:
        by_task = "".join(
            f"<h4>{html_text(task)}</h4>{plot_differences(plotted, noise=noise(plotted))}"
            for task in summary.tasks
            if (plotted := rows(task))
        )
        parts.append(
            "<details><summary>Each task on its own scale</summary>"
            f'<div class="tasks">{by_task}</div></details>'
        )
    return "\n".join(parts)


def _pictures(pictures: Sequence[Picture]) -> str:
    """Scores, and in a row of their own the differences."""
    rows = ([p for p in pictures if not p.signed], [p for p in pictures if p.signed])
    return "".join(
        '<div class="maps">'
        + "".join(
            f'<figure tabindex="0" aria-label="{html_text(each.title)}">{each.svg}</figure>'
            for each in row
        )
        + "</div>"
        for row in rows
        if row
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_aligned(i, table.words)}>{html_text(name)}</th>'
        for i, name in enumerate(table.head)
    )
    rows = "".join(f"<tr>{_cells(row, table.words)}</tr>" for row in table.rows)
    note = f'<p class="note">{html_text(table.note)}</p>' if table.note else ""
    region = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html_text(table.title)}">'
        f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>\n"
    )
    if len(table.rows) > _MOST_ROWS:
        shown = f"{len(table.rows):,} rows"
        return f"{note}<details><summary>{shown}</summary>{region}</details>"
    return note + region


def _cells(row: Sequence[str], words: int) -> str:
    first, *others = row
    cells = "".join(f"<td{_aligned(i, words)}>{html_text(c)}</td>" for i, c in enumerate(others, 1))
    return f'<th scope="row">{html_text(first)}</th>{cells}'


def _aligned(column: int, words: int) -> str:
    return "" if column < words else ' class="number"'


def _samples(summary: Summary, samples: Sequence[AnsweredSample]) -> str:
    if not samples:
        return ""
    arms = [arm.name for arm in summary.arms]
    shown, note = listed(samples)
    head = "".join(f'<th scope="col">{html_text(arm)}</th>' for arm in arms)
    body = "\n".join(sample_row(sample, arms) for sample in shown)
    warned = f'<p class="note left-out">{html_text(note)}</p>' if note else ""
    return (
        f"{warned}{_filters(arms, shown)}"
        f'<table class="samples"><thead><tr><th scope="col">sample</th>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _filters(arms: Sequence[str], shown: Sequence[AnsweredSample]) -> str:
    """The form above the samples; the script shows it, as it does nothing without."""
    counts = Counter(
        f"{change}-{i}" for s in shown for i, change in enumerate(s.changes(), 1) if change
    )
    baseline, *others = arms
    phrases = {
        "better": "{arm} better than {baseline}",
        "worse": "{arm} worse than {baseline}",
        "reworded": "{arm}: other words, same score",
    }
    kinds = [
        (f"{change}-{i}", phrase.format(arm=arm, baseline=baseline), counts[f"{change}-{i}"])
        for i, arm in enumerate(others, 1)
        for change, phrase in phrases.items()
    ]
    kinds.append(("cut", "prompt did not fit", sum(sample.cut for sample in shown)))
    options = "".join(
        f'<option value="{value}">{html_text(words)} ({count:,})</option>'
        for value, words, count in kinds
        if count
    )
    tasks = Counter(sample.any.task for sample in shown)
    of_tasks = "".join(
        f'<option value="{html_text(task)}">{html_text(task)} ({count:,})</option>'
        for task, count in tasks.items()
    )
    task = (
        f'<label>Task <select name="task"><option value="">all</option>{of_tasks}</select></label>'
        if len(tasks) > 1
        else ""
    )
    return (
        '<form id="filters" autocomplete="off" hidden>'
        '<label class="search">Find <input type="search" name="words" '
        'placeholder="in questions and answers"></label>'
        f"{task}"
        f'<label>Show <select name="kind"><option value="">all samples</option>{options}</select>'
        f'</label><output name="shown" aria-live="polite">{len(shown):,} shown</output></form>'
    )


def _settings(summary: Summary) -> str:
    return "".join(
        f"<details><summary>{html_text(table.title)}</summary><dl class=settings>"
        + "".join(f"<dt>{html_text(k)}</dt><dd>{html_text(v)}</dd>" for k, v in table.rows)
        + "</dl></details>"
        for table in fact_sheet(summary)
    )
