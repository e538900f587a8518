"""Means of scores, and of differences between arms, with their bootstrap intervals.

Groups are drawn again, and samples within them, by the bootstrap that calibration uses
(`pacellm_rag.pace.paired_interval`): samples that share a text are right or wrong together, and
counting them one by one would promise more than they can tell. Knows numbers and names only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pacellm_rag.evaluation.summary import Interval

__all__ = ["ByGroup", "TaskIntervals", "intervals_of"]

ByGroup = Mapping[str, Sequence[float]]
"""Values by the group that they are of."""


@dataclass(frozen=True)
class TaskIntervals:
    """Means with intervals.

    Attributes:
        overall: of the tasks' means, so that every task counts the same, as in LongBench (Bai et
            al., "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding",
            ACL 2024).
        tasks: of each task.
    """

    overall: Interval
    tasks: Mapping[str, Interval]


def intervals_of(tasks: Mapping[str, ByGroup], *, seed: int = 0) -> TaskIntervals:
    """Means over samples, with percentile intervals of 95 %.

    Tasks are drawn from independently of each other, but for tasks of the same groups (several
    questions of different kinds on the same texts): those draw the same texts.

    Args:
        tasks: by task, the values; at least one task, and one value in each group.
        seed: of the resampling.

    Raises:
        ConfigurationError: there is nothing to draw from.
    """
    from pacellm_rag.pace.paired_interval import ends_of, resampled_means

    means, drawn = [], []
    found: dict[str, Interval] = {}
    for task, groups in tasks.items():
        values = [value for group in groups.values() for value in group]
        sizes = [len(group) for group in groups.values()]
        again = resampled_means(values, sizes, seed=_seed_of(groups, seed))
        mean = math.fsum(values) / len(values)
        means.append(mean)
        drawn.append(again)
        found[task] = Interval(mean, *((None, None) if again is None else ends_of(again)))
    overall = math.fsum(means) / max(len(means), 1)
    known = [again for again in drawn if again is not None]
    if not known or len(known) < len(drawn):
        return TaskIntervals(Interval(overall, None, None), found)
    low, high = ends_of(sum(known[1:], start=known[0]) / len(known))
    return TaskIntervals(Interval(overall, low, high), found)


def _seed_of(groups: ByGroup, seed: int) -> int:
    names = "\0".join(f"{name} {len(values)}" for name, values in groups.items())
    digest = hashlib.sha256(f"{seed}\0{names}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big")
