"""Which groups of a suite a run takes. Knows suites as such; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.types import Group, Suite
from pacellm_rag.protocols import PromptTokenizer

__all__ = ["take_groups"]

SampleT = TypeVar("SampleT")


def take_groups(
    suite: Suite[SampleT], tokenizer: PromptTokenizer, limit: int | None = None
) -> Sequence[Group[SampleT]]:
    """A suite's groups, or the first of them that together have `limit` samples or just more.

    Groups stay whole.

    Raises:
        ConfigurationError: there are none, the suite gave an id twice, or its data are missing.
    """
    groups = suite.groups(tokenizer)
    ids: set[str] = set()
    for group in groups:
        if group.id in ids:
            raise ConfigurationError(
                f"{suite.name} has two groups {group.id!r}; give every group an id of its own."
            )
        ids.add(group.id)
    taken: list[Group[SampleT]] = []
    samples = 0
    for group in groups:
        if limit is not None and samples >= limit:
            break
        taken.append(group)
        samples += len(group.samples)
    if not samples:
        raise ConfigurationError(f"{suite.name} has no samples with these settings.")
    return taken
