"""The summary of a run as lines for a terminal. What they mean is said in the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pacellm_rag.evaluation.summary import ArmSummary, Interval, Score, Summary

__all__ = ["summary_lines"]

_HEAD = ("arm", "samples", "score", "95 % interval", "against it", "95 % interval", "better",
         "worse", "same", "tokens/s", "memory", "cut")  # fmt: skip


def summary_lines(summary: Summary) -> Iterator[str]:
    """The table of the arms, the tasks' scores where there are several, and what to say of them."""
    yield f"{summary.suite}: {summary.metric}, against {summary.baseline.name}"
    yield ""
    yield from _aligned([_HEAD, *(_arm_cells(arm, summary.metric) for arm in summary.arms)])
    if len(summary.tasks) > 1:
        yield ""
        yield from _aligned(list(_task_rows(summary)))
        yield ""
        yield "The score of all tasks together is the mean of the tasks' scores."
    remarks = list(_remarks(summary))
    if remarks:
        yield ""
        yield from remarks


def _arm_cells(arm: ArmSummary, metric: str) -> tuple[str, ...]:
    found = arm.score(metric)
    if found is None:
        scores: tuple[str, ...] = ("-",) * 7
    else:
        scores = (f"{found.value.mean:.4f}", _ends(found.value, ".4f"), *_against(found))
    return (
        arm.name,
        f"{arm.samples:,}",
        *scores,
        f"{arm.cost.tokens_per_second:,.0f}",
        f"{arm.cost.peak_bytes / 2**30:.2f} GiB",
        f"{arm.truncated:.0%}",
    )


def _against(score: Score) -> tuple[str, ...]:
    if score.difference is None:
        return ("-",) * 5
    counts = (score.wins, score.losses, score.ties)
    change = score.difference
    return (f"{change.mean:+.4f}", _ends(change, "+.4f"), *(f"{count:,}" for count in counts))


def _ends(interval: Interval, form: str) -> str:
    if interval.low is None or interval.high is None:
        return "unknown"
    return f"{interval.low:{form}} {interval.high:{form}}"


def _task_rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    yield ("task", *(arm.name for arm in summary.arms))
    for task in summary.tasks:
        found = [arm.score(summary.metric, task) for arm in summary.arms]
        yield (task, *("-" if each is None else f"{each.value.mean:.4f}" for each in found))


def _remarks(summary: Summary) -> Iterator[str]:
    if not summary.complete:
        planned = summary.groups_planned
        done = ", ".join(f"{arm.name} {arm.groups:,}" for arm in summary.arms)
        yield f"Not complete. Of {planned:,} groups are done: {done}."
    for arm in summary.arms[1:]:
        if arm.no_effect:
            yield (
                f"{arm.name} had no effect: it changed no bit of what {summary.baseline.name} "
                "computes."
            )
        elif arm.effect in ("none", "same texts"):
            yield f"{arm.name} gave the same texts as {summary.baseline.name}."


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
