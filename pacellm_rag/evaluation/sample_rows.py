"""The samples of a run as rows of an HTML table, every arm's answer beside the others.

Chooses which are listed where there are too many, and cuts what is too long; both are said where
it happens. Knows outcomes; nothing of intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pacellm_rag.evaluation.html_text import html_text
from pacellm_rag.evaluation.report_tables import as_words
from pacellm_rag.evaluation.types import Outcome

__all__ = ["MOST_CHARACTERS", "MOST_SAMPLES", "AnsweredSample", "answered", "listed", "sample_row"]

MOST_SAMPLES = 1000
"""Samples that a page lists; more make it slow to open."""

MOST_CHARACTERS = 2000
"""Of an answer, a question or a fact; the rest is in `samples.jsonl`."""

_QUESTION = ("question",)
_WANTED = ("wanted", "accepted", "answers")


@dataclass(frozen=True)
class AnsweredSample:
    """One sample with what every arm made of it.

    Attributes:
        outcomes: one for each arm, in their order; None where it has not answered.
        metric: the suite's.
    """

    outcomes: tuple[Outcome | None, ...]
    metric: str

    @property
    def any(self) -> Outcome:
        """The outcome of the first arm that answered."""
        return next(outcome for outcome in self.outcomes if outcome is not None)

    def changes(self) -> tuple[str, ...]:
        """For each arm but the first: "better", "worse", "reworded", "same", or "" untold."""
        first = self.outcomes[0]
        return tuple(self._change(first, outcome) for outcome in self.outcomes[1:])

    @property
    def cut(self) -> bool:
        """Whether an arm's prompt lost something."""
        return any(outcome is not None and outcome.tokens_left_out for outcome in self.outcomes)

    def _change(self, first: Outcome | None, second: Outcome | None) -> str:
        if first is None or second is None:
            return ""
        before, after = first.scores.get(self.metric), second.scores.get(self.metric)
        if before is None or after is None:
            return ""
        if before != after:
            return "better" if after > before else "worse"
        return "same" if first.text == second.text else "reworded"


def answered(
    arms: Sequence[str], outcomes: Sequence[tuple[str, Outcome]], metric: str
) -> list[AnsweredSample]:
    """Puts the outcomes of every sample together, in the order in which samples first come."""
    by_sample: dict[str, dict[str, Outcome]] = {}
    for arm, outcome in outcomes:
        by_sample.setdefault(outcome.sample, {})[arm] = outcome
    rows = (tuple(found.get(arm) for arm in arms) for found in by_sample.values())
    return [AnsweredSample(row, metric) for row in rows if any(row)]


def listed(samples: Sequence[AnsweredSample]) -> tuple[list[AnsweredSample], str]:
    """The samples that a page lists, in their order, and what to say about the others.

    Those on which an arm scores otherwise than the baseline come before the rest; where they are
    too many themselves, every so many of them, so that no part of the run is missing.
    """
    if len(samples) <= MOST_SAMPLES:
        return list(samples), ""
    differing = [i for i, s in enumerate(samples) if {"better", "worse"} & set(s.changes())]
    told = set(differing)
    rest = [i for i in range(len(samples)) if i not in told]
    evenly = (differing[i * len(differing) // MOST_SAMPLES] for i in range(MOST_SAMPLES))
    kept = sorted(evenly if len(differing) > MOST_SAMPLES else [*differing, *rest][:MOST_SAMPLES])
    left_out = len(samples) - len(kept)
    lost = max(0, len(differing) - MOST_SAMPLES)
    note = (
        f"{len(kept):,} of {len(samples):,} samples are listed: those on which an arm scores "
        f"otherwise than the baseline, then others as far as there is room. {left_out:,} are left "
        f"out, {lost:,} of them with different scores; samples.jsonl has them all."
    )
    return [samples[i] for i in kept], note


def sample_row(sample: AnsweredSample, arms: Sequence[str]) -> str:
    """The `<tr>` of a sample."""
    changes = sample.changes()
    marks = [f"{change}-{i}" for i, change in enumerate(changes, 1) if change]
    if sample.cut:
        marks.append("cut")
    shared = _shared_facts(sample)
    cells = [
        _answer(arm, outcome, change, sample.metric, shared)
        for arm, outcome, change in zip(arms, sample.outcomes, ("", *changes), strict=True)
    ]
    return (
        f'<tr data-task="{html_text(sample.any.task)}" data-is="{" ".join(marks)}">'
        f"{_sample(sample.any, shared)}{''.join(cells)}</tr>"
    )


def _shared_facts(sample: AnsweredSample) -> Mapping[str, Any]:
    """Facts of the sample itself: those that are the same for every arm that answered."""
    first, *others = (o.facts for o in sample.outcomes if o is not None)
    return {
        name: value
        for name, value in first.items()
        if all(name in facts and facts[name] == value for facts in others)
    }


def _sample(outcome: Outcome, shared: Mapping[str, Any]) -> str:
    parts = [
        f'<p class="id"><span class="task">{html_text(outcome.task)}</span> '
        f"{html_text(outcome.sample)}</p>"
    ]
    question = next((shared[name] for name in _QUESTION if name in shared), None)
    if question is not None:
        parts.append(f'<p class="question" dir="auto">{_clipped(as_words(question))}</p>')
    wanted = next((name for name in _WANTED if name in shared), None)
    if wanted is not None:
        words = _wanted(shared[wanted])
        parts.append(f'<p class="wanted"><b>wanted</b> <bdi>{_clipped(words)}</bdi></p>')
    parts.append(_facts({k: v for k, v in shared.items() if k not in (*_QUESTION, wanted)}))
    return f'<th scope="row">{"".join(parts)}</th>'


def _wanted(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " | ".join(map(as_words, value)) or "(nothing)"
    return as_words(value) or "(nothing)"


def _answer(
    arm: str, outcome: Outcome | None, change: str, metric: str, shared: Mapping[str, Any]
) -> str:
    label = f'data-arm="{html_text(arm)}"'
    if outcome is None:
        return f'<td {label}><p class="none">not answered</p></td>'
    sign = {"better": " \u25b2", "worse": " \u25bc"}.get(change, "")
    told = f'<span class="unseen"> {change} than the baseline</span>' if sign else ""
    score = outcome.scores.get(metric)
    shown = "not scored" if score is None else f"{score * 100:.1f}{sign}"
    others = "".join(
        f" <small>{html_text(name)} {value * 100:.1f}</small>"
        for name, value in outcome.scores.items()
        if name != metric
    )
    text = _clipped(outcome.text) if outcome.text.strip() else '<em class="none">no words</em>'
    left_out = f", {outcome.tokens_left_out:,} left out" if outcome.tokens_left_out else ""
    own = {k: v for k, v in outcome.facts.items() if k not in shared}
    return (
        f'<td {label}><p class="score {change}">{shown}{told}{others}</p>'
        f'<p class="answer" dir="auto">{text}</p>'
        f'<p class="cost">{outcome.prompt_tokens:,} tokens{left_out}; '
        f"answer {outcome.completion_tokens:,}; {outcome.seconds:.1f} s</p>{_facts(own)}</td>"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    """Short facts in a line; long ones to be opened."""
    words = {name: as_words(value) for name, value in facts.items()}
    short = [
        f"<span>{html_text(name)} <b>{html_text(text)}</b></span>"
        for name, text in words.items()
        if len(text) <= 40
    ]
    long = [
        f"<dt>{html_text(name)}</dt><dd>{_clipped(text)}</dd>"
        for name, text in words.items()
        if len(text) > 40
    ]
    line = f'<p class="facts">{" ".join(short)}</p>' if short else ""
    more = f"<details><summary>more</summary><dl>{''.join(long)}</dl></details>" if long else ""
    return line + more


def _clipped(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return html_text(text)
    rest = len(text) - MOST_CHARACTERS
    return (
        f"{html_text(text[:MOST_CHARACTERS])}"
        f'<span class="clipped"> ({rest:,} characters more, in samples.jsonl)</span>'
    )
