"""What a run found, in figures: for each arm its scores, its costs, and what its banks did.

Plain values that JSON can hold; how they are computed is in `summarising`, how they are shown in
`report`. Knows no model and no suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "ArmSummary",
    "BankSummary",
    "Breakdown",
    "Cost",
    "Effect",
    "Interval",
    "Score",
    "Summary",
]

Effect = Literal["baseline", "changed", "same texts", "none"]
"""What an arm changed of the baseline's answers.

"baseline": it is what the others are compared with; "changed": some text is another; "same texts":
all texts are equal, though what the model computed was not; "none": all texts are equal, and either
its banks changed no bit of any activation of the plain model, or all logits are equal to the bit.
"""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval.

    Attributes:
        mean: the mean.
        low: the interval's lower end; None where there is no more than one group to draw from.
        high: its upper end; None likewise.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval is known and 0 lies outside of it."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Score:
    """One metric of one arm, on one task or on all of them.

    Attributes:
        metric: its name.
        task: the task; None for all together, where the mean is that of the tasks' means, so that
            a task counts the same however many samples it has.
        samples: samples that have the metric.
        groups: groups that they are from.
        value: the mean, 0 to 1.
        difference: mean of the paired differences, this arm less the baseline, over samples that
            both have; None for the baseline, and where they share no sample.
        wins: samples on which this arm is better than the baseline, which is to score lower where
            lower is better; 0 for the baseline.
        losses: on which it is worse.
        ties: on which they score the same.
    """

    metric: str
    task: str | None
    samples: int
    groups: int
    value: Interval
    difference: Interval | None = None
    wins: int = 0
    losses: int = 0
    ties: int = 0


@dataclass(frozen=True)
class Breakdown:
    """The suite's metric on the samples for which a fact has one value.

    Attributes:
        fact: "length", "depth", "position" or "kind".
        value: as the suite gave it: a number or a word.
        score: of these samples.
    """

    fact: str
    value: float | str
    score: Score


@dataclass(frozen=True)
class Cost:
    """What an arm took.

    Attributes:
        seconds: of all units together.
        tokens_per_second: tokens read and generated, per second; the median over units.
        speed_ratio: that of this arm over the baseline's on the same group, the median over
            groups; None for the baseline, and where they share no group.
        peak_bytes: most memory in use in any unit: allocated on the GPUs, else the process'.
        added_bytes: most that a unit took beyond what was in use when it began.
        seconds_first: of the first question about a text, reading it included, the median; None
            where samples do not tell their position among those about a text.
        seconds_later: of the questions after it, the median; None likewise.
    """

    seconds: float
    tokens_per_second: float
    speed_ratio: float | None
    peak_bytes: int
    added_bytes: int
    seconds_first: float | None = None
    seconds_later: float | None = None


@dataclass(frozen=True)
class BankSummary:
    """What one layer's memory bank did, on average over the newest sequences of the units.

    Attributes:
        layer: index of the layer.
        sequences: how many are averaged.
        high: share of tokens that memory replaced.
        middle: share that were mixed with memory.
        untouched: share that were left alone.
        slots_filled: slots in use at the end.
        slots: slots there are.
    """

    layer: int
    sequences: int
    high: float
    middle: float
    untouched: float
    slots_filled: float
    slots: int


@dataclass(frozen=True)
class ArmSummary:
    """All about one arm.

    Attributes:
        name: as the run named it.
        pace: settings of its memory banks, as `PaceConfig.to_dict` gives them; None without banks.
        placebo: whether neurons were permuted, which is mathematically nothing.
        reading: the way in which the text was given.
        samples: samples answered.
        groups: groups finished.
        scores: the suite's metric over all tasks first; then, where there are several tasks, the
            suite's metric by task; then the other metrics likewise.
        cost: time and memory.
        banks: by layer; empty without banks.
        truncated: share of prompts of which something was left out to fit the window.
        tokens_left_out: mean over those prompts; 0 where there are none.
        prompt_tokens: mean over all samples.
        completion_tokens: mean over all samples.
        effect: what it changed of the baseline's answers.
        breakdowns: of the suite's metric, by fact and value; in the order of the values.
    """

    name: str
    pace: Mapping[str, Any] | None
    placebo: bool
    reading: str
    samples: int
    groups: int
    scores: tuple[Score, ...]
    cost: Cost
    banks: tuple[BankSummary, ...]
    truncated: float
    tokens_left_out: float
    prompt_tokens: float
    completion_tokens: float
    effect: Effect
    breakdowns: tuple[Breakdown, ...] = ()

    @property
    def no_effect(self) -> bool:
        """Whether a difference was to be expected, and there was none, to the bit."""
        return self.effect == "none" and not self.placebo

    def score(self, metric: str, task: str | None = None) -> Score | None:
        """The score of a metric on a task, or on all of them; None where there is none."""
        found = (s for s in self.scores if (s.metric, s.task) == (metric, task))
        return next(found, None)


@dataclass(frozen=True)
class Summary:
    """All that a run found.

    Attributes:
        suite: its name.
        metric: the score that the run is about.
        settings: what the suite's samples, prompts and scores depend on.
        arms: the baseline first.
        groups_planned: groups that every arm was to answer.
        complete: whether every arm answered every one of them.
        tasks: in the order in which they came.
        model: name of the model.
        identity: what the run's results depend on: `run.json` has the same.
        notes: where and when it ran: hardware, commit, command, what the arm `pace` took its
            settings from.
    """

    suite: str
    metric: str
    settings: Mapping[str, Any]
    arms: tuple[ArmSummary, ...]
    groups_planned: int
    complete: bool
    tasks: tuple[str, ...]
    model: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> ArmSummary:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Names of the arms that should have changed something and did not, to the bit."""
        return tuple(arm.name for arm in self.arms if arm.no_effect)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return asdict(self)
