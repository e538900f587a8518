"""What a run's figures say in plain words, and no more than they say.

A difference counts only where its 95 % interval leaves out 0 and it is larger than what the
placebo's interval reaches to, which is the noise: its model is mathematically the plain one.
Knows summaries only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pacellm_rag.evaluation.summary import ArmSummary, Interval, Score, Summary

__all__ = [
    "Finding",
    "Verdict",
    "caveats",
    "points",
    "score_points",
    "share_of",
    "span",
    "tasks_beyond_chance",
    "verdicts",
]

Finding = Literal["better", "worse", "chance", "no effect", "unknown", "noise"]
"""What can be said of an arm: "noise" is the placebo's; "unknown" where nothing can be said."""


@dataclass(frozen=True)
class Verdict:
    """What can be said of one arm.

    Attributes:
        arm: its name.
        finding: in a word.
        headline: in a few words.
        text: in whole sentences, with the interval.
    """

    arm: str
    finding: Finding
    headline: str
    text: str


def points(value: float) -> str:
    """A difference times 100, with its sign; a typographic minus, so that it is not a dash."""
    return f"{value * 100:+.2f}".replace("-", "\u2212") if value else "0.00"


def score_points(value: float) -> str:
    """A score times 100."""
    return f"{value * 100:.2f}"


def span(interval: Interval, *, signed: bool = True) -> str:
    """The ends of an interval times 100, or that there is none."""
    if interval.low is None or interval.high is None:
        return "no interval"
    write = points if signed else score_points
    return f"{write(interval.low)} to {write(interval.high)}"


def verdicts(summary: Summary) -> tuple[Verdict, ...]:
    """One verdict for each arm but the baseline, in their order."""
    noise = max(
        map(
            _reach, (d for arm in summary.arms if arm.placebo and (d := _difference(summary, arm)))
        ),
        default=0.0,
    )
    return tuple(
        _of_placebo(summary, arm) if arm.placebo else _of_arm(summary, arm, noise)
        for arm in summary.arms[1:]
    )


def caveats(summary: Summary) -> tuple[str, ...]:
    """What a reader has to know before believing the figures."""
    notes = []
    if not summary.complete:
        done = ", ".join(f"{arm.name} {arm.groups:,}" for arm in summary.arms)
        notes.append(
            f"The run is not complete: of {summary.groups_planned:,} groups, done are: {done}. "
            "Run the same command again to go on."
        )
    cut = [arm for arm in summary.arms if arm.truncated > 0]
    if cut:
        shares = ", ".join(
            f"{arm.name} {share_of(arm.truncated)} (on average {arm.tokens_left_out:,.0f} tokens)"
            for arm in cut
        )
        notes.append(f"Prompts that lost their middle, as they did not fit the window: {shares}.")
    if len({arm.samples for arm in summary.arms}) > 1:
        notes.append(
            "The arms have not answered the same number of samples; differences are over those "
            "that both arms answered."
        )
    groups = min((arm.groups for arm in summary.arms), default=0)
    if 1 < groups < 20:
        notes.append(
            f"There are {groups} groups only; intervals from so few are too narrow. "
            "Take 20 or more before building on them."
        )
    if len(summary.arms) > 1 and not any(arm.placebo for arm in summary.arms):
        notes.append("There is no placebo in this run, so its noise is not known.")
    if any(arm.placebo and _beyond(summary, arm) for arm in summary.arms[1:]):
        notes.append(
            "The placebo differs from the baseline beyond its interval, though it computes the "
            "same. That is chance (one run in twenty) or rounding; read the other differences as "
            "no finding unless they are much larger."
        )
    return tuple(notes)


def tasks_beyond_chance(summary: Summary, arm: ArmSummary) -> str:
    """How many tasks' intervals leave out 0, beside how many do so by chance; "" without tasks."""
    scores = [
        s for s in arm.scores if s.metric == summary.metric and s.task and s.difference is not None
    ]
    if len(scores) < 2:
        return ""
    beyond = [s for s in scores if s.difference and s.difference.beyond_chance]
    named = ", ".join(
        f"{s.task} {points(s.difference.mean)}" for s in beyond if s.difference is not None
    )
    return (
        f"{arm.name}: on {len(beyond)} of {len(scores)} tasks the interval leaves out 0"
        f"{f' ({named})' if named else ''}; by chance alone it does so on one in twenty."
    )


def share_of(value: float) -> str:
    """A share in percent; what is not exactly none or all never looks like it."""
    percent = value * 100
    if 0 < percent < 0.1:
        return "under 0.1 %"
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.1f} %" if percent != round(percent) else f"{percent:.0f} %"


def _score(summary: Summary, arm: ArmSummary) -> Score | None:
    return arm.score(summary.metric)


def _difference(summary: Summary, arm: ArmSummary) -> Interval | None:
    score = _score(summary, arm)
    return score.difference if score else None


def _beyond(summary: Summary, arm: ArmSummary) -> bool:
    difference = _difference(summary, arm)
    return difference is not None and difference.beyond_chance


def _reach(difference: Interval) -> float:
    """How far from 0 a difference may be, by its interval."""
    ends = (difference.mean, difference.low, difference.high)
    return max(abs(end) for end in ends if end is not None)


def _told(difference: Interval) -> str:
    if difference.low is None or difference.high is None:
        return f"{points(difference.mean)} points (one group gives no interval)"
    return f"{points(difference.mean)} points (95 % interval {span(difference)})"


def _counts(score: Score) -> str:
    return f"Samples: {score.wins:,} better, {score.losses:,} worse, {score.ties:,} the same."


def _of_arm(summary: Summary, arm: ArmSummary, noise: float) -> Verdict:
    baseline = summary.baseline.name
    if arm.no_effect:
        return Verdict(
            arm.name,
            "no effect",
            "had no effect",
            f"{arm.name} had no effect: all texts, and every bit of what the model computed for "
            f"them, equal those of {baseline}. This measures nothing; see whether the arm is set "
            "up as meant.",
        )
    score = _score(summary, arm)
    if score is None or score.difference is None:
        return Verdict(
            arm.name,
            "unknown",
            "can not be compared",
            f"{arm.name} and {baseline} have no sample in common, so nothing can be said.",
        )
    difference = score.difference
    if arm.effect == "same texts" and not score.wins and not score.losses:
        return Verdict(
            arm.name,
            "chance",
            "no answer changed",
            f"{arm.name} changed no answer: all texts equal those of {baseline}, though not what "
            "led to them.",
        )
    if difference.low is None or difference.high is None:
        return Verdict(
            arm.name,
            "unknown",
            "too little for an interval",
            f"{arm.name} differs from {baseline} by {points(difference.mean)} points; one group "
            f"gives no interval, so nothing can be said. {_counts(score)}",
        )
    if not difference.beyond_chance:
        return Verdict(
            arm.name,
            "chance",
            "no difference beyond chance",
            f"{arm.name} differs from {baseline} by {_told(difference)}, which holds 0. "
            f"{_counts(score)}",
        )
    better = difference.mean > 0
    if abs(difference.mean) <= noise:
        return Verdict(
            arm.name,
            "chance",
            "no more than the noise",
            f"{arm.name} differs from {baseline} by {_told(difference)}, but the placebo, which "
            f"computes the same as {baseline}, may differ by {noise * 100:.2f}: no finding. "
            f"{_counts(score)}",
        )
    word = "better" if better else "worse"
    size = f"{abs(difference.mean) * 100:.2f}"
    return Verdict(
        arm.name,
        "better" if better else "worse",
        f"{word} by {size} points",
        f"{arm.name} is {word} than {baseline} by {size} points (95 % interval of the difference "
        f"{span(difference)}). {_counts(score)}",
    )


def _of_placebo(summary: Summary, arm: ArmSummary) -> Verdict:
    baseline = summary.baseline.name
    what = (
        f"{arm.name} has its neurons in another order, which is mathematically the same as "
        f"{baseline}."
    )
    score = _score(summary, arm)
    if arm.effect == "none":
        return Verdict(
            arm.name, "noise", "the noise: none", f"{what} Its answers are equal to the bit."
        )
    if score is None or score.difference is None:
        return Verdict(
            arm.name, "unknown", "can not be compared", f"{what} They have no sample in common."
        )
    if arm.effect == "same texts" and not score.wins and not score.losses:
        text = f"{what} Rounding differs, but no text does: there is no noise in this run's scores."
        return Verdict(arm.name, "noise", "the noise: no answer changed", text)
    difference = score.difference
    return Verdict(
        arm.name,
        "noise",
        f"the noise: {points(difference.mean)} points",
        f"{what} What it differs by is what rounding alone makes of the scores, the noise: "
        f"{_told(difference)}. {_counts(score)}",
    )
