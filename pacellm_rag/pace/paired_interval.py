"""A paired difference with its bootstrap interval.

Knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pacellm_rag.errors import ConfigurationError

__all__ = ["Change", "ends_of", "paired_interval", "resampled_means"]

_DRAWN_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Change:
    """A paired change of the loss against the plain model, in nats; below 0 is better.

    Attributes:
        n: answers.
        mean: mean change.
        low: lower end of the 95 % bootstrap interval.
        high: its upper end.
    """

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float], groups: Sequence[int], seed: int) -> Change:
        """Of one difference per answer, and the answers per sample."""
        interval = paired_interval(differences, groups=groups, seed=seed)
        return cls(len(differences), *interval)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them; those that are not finite are null."""
        figures = {"mean": self.mean, "low": self.low, "high": self.high}
        return {"n": self.n} | {k: v if math.isfinite(v) else None for k, v in figures.items()}


def paired_interval(
    differences: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % bootstrap interval (percentiles).

    Args:
        differences: one per answer.
        groups: how many of them, one after the other, share documents; groups are drawn again, and
            answers within them. None takes every answer as independent of the others.
        seed: of the resampling.
        resamples: how often is drawn again.

    Returns:
        The mean, and the interval's lower and upper end; infinite ends for a single group.

    Raises:
        ConfigurationError: there is no difference, or no resample, or the groups do not add up.
    """
    groups = [1] * len(differences) if groups is None else list(groups)
    means = resampled_means(differences, groups, seed=seed, resamples=resamples)
    mean = float(torch.tensor(list(differences), dtype=torch.float64).mean())
    if means is None or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    return mean, *ends_of(means)


def ends_of(means: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of resampled means, shape (resamples,): lower and upper end."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(means, ends).tolist()
    return low, high


def resampled_means(
    values: Sequence[float], groups: Sequence[int], *, seed: int = 0, resamples: int = 2000
) -> torch.Tensor | None:
    """Means of values drawn again: groups first, and values within them.

    Args:
        values: one per answer.
        groups: how many of them, one after the other, are of each group.
        seed: of the resampling; equal groups and seeds draw the same places.
        resamples: how often is drawn.

    Returns:
        Shape (resamples,); None for a single group, which tells nothing of how groups differ.

    Raises:
        ConfigurationError: there is no value, or no resample, or the groups do not add up.
    """
    n, sizes = len(values), torch.tensor(list(groups), dtype=torch.long)
    if n == 0 or resamples < 1 or int(sizes.sum()) != n or int(sizes.min()) < 1:
        raise ConfigurationError(
            f"{n} differences, {int(sizes.sum())} of them in groups, and {resamples} resamples; "
            "an interval needs 1 or more of each, and every difference in one group."
        )
    if len(sizes) == 1:
        return None
    column = torch.tensor(list(values), dtype=torch.float64)
    widest = int(sizes.max())
    starts, places = sizes.cumsum(0) - sizes, torch.arange(widest)
    generator = torch.Generator().manual_seed(seed)
    at_once = max(_DRAWN_AT_ONCE // (len(sizes) * widest), 1)
    means = []
    for done in range(0, resamples, at_once):
        shape = (min(at_once, resamples - done), len(sizes))
        drawn = torch.randint(len(sizes), shape, generator=generator)
        of = sizes[drawn][..., None]
        share = torch.rand((*shape, widest), dtype=torch.float64, generator=generator)
        answers = column[starts[drawn][..., None] + (share * of).long()]
        there = places < of  # smaller groups leave places empty
        means.append((answers * there).sum((1, 2)) / there.sum((1, 2)))
    return torch.cat(means)
