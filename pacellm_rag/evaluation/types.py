"""What is evaluated, and what came of it: suites of samples in groups, and outcomes.

A suite makes its samples from a seed and a tokenizer, puts them to whatever model it is given, and
scores what comes. Which model that is, with or without banks, is not its business: every arm of a
run gets the same groups. Knows no model and no benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = ["LOWER_IS_BETTER", "WHOLE", "Group", "Outcome", "Suite"]

WHOLE = "whole"
"""The way of reading in which the model gets the whole text."""

LOWER_IS_BETTER = frozenset({"answered_when_unanswerable", "declined"})
"""The metrics of which less is better."""

SampleT = TypeVar("SampleT")


@dataclass(frozen=True)
class Group(Generic[SampleT]):
    """Samples that are run together and drawn together, as they share a text.

    The unit of a run: what a killed run had not finished of a group is done again.

    Attributes:
        id: unique within the suite, and the same in every run with the same settings.
        samples: of the suite's own type.
    """

    id: str
    samples: tuple[SampleT, ...]


@dataclass(frozen=True)
class Outcome:
    """What a model made of one sample.

    Attributes:
        sample: the sample's id, unique within the suite.
        task: the part of the suite that it belongs to ("hotpotqa", "passkey", "single").
        text: the model's words, as scored.
        scores: by metric, 0 to 1. A metric that does not apply to the sample is left out.
        prompt_tokens: tokens of the prompt.
        tokens_left_out: tokens cut out of it to fit the window; 0 where nothing was.
        tokens_reused: of the prompt's tokens, those that had been read before.
        completion_tokens: tokens generated.
        seconds: from the request to the end of the answer, reading included.
        facts: what tables are broken down by or people want to see: length, depth, position in
            its group, accepted answers, citations. As JSON can hold them.
    """

    sample: str
    task: str
    text: str
    scores: Mapping[str, float]
    prompt_tokens: int
    tokens_left_out: int
    tokens_reused: int
    completion_tokens: int
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Suite(Protocol[SampleT]):
    """Samples, how they are asked, and how answers are scored."""

    @property
    def name(self) -> str:
        """What the command calls it: "niah", "longbench"."""
        ...

    @property
    def metric(self) -> str:
        """The score that the run is about; every outcome that counts has it."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that samples, prompts and scores depend on, as JSON can hold it.

        A run goes on only with the settings that it began with.
        """
        ...

    @property
    def readings(self) -> Sequence[str]:
        """The ways of giving the text to the model that `answer` knows; `WHOLE` first."""
        ...

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[SampleT]]:
        """The samples; equal for equal settings and tokenizers.

        Raises:
            ConfigurationError: the data are missing or not as needed, with what to do.
        """
        ...

    def answer(
        self,
        model: TextModel,
        group: Group[SampleT],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Puts a group's samples to a model one after the other, so that runs can be repeated.

        Args:
            model: any.
            group: one of `groups`.
            reading: one of `readings`.
            cancel: set to stop within a window or token.

        Raises:
            CancelledError: `cancel` was set.
        """
        ...
