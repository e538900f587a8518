"""What a model may tell of its inside beside its answers, in plain values.

Optional: a state that tells the counts of its memory banks is a `MemoryReport`, a model that can go
through a text once more and watch it range by range is `Inspectable`; ask with `isinstance`. Needs
no torch; how it is found out is in `inspecting`. Knows nothing of documents: pages are ranges of
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pacellm_rag.protocols import CancelSignal, ContextState, ProgressCallback

__all__ = [
    "BankCounts",
    "ExpertReport",
    "Inspectable",
    "Inspection",
    "MemoryPoint",
    "MemoryReport",
]


@dataclass(frozen=True)
class BankCounts:
    """What one layer's memory bank holds, and did with some tokens.

    Attributes:
        slots_filled: slots in use behind the tokens.
        slots: slots there are.
        tokens: tokens looked up.
        high: share of them that memory replaced.
        middle: share that were mixed with memory.
    """

    slots_filled: int
    slots: int
    tokens: int
    high: float
    middle: float

    @property
    def untouched(self) -> float:
        """Share that were left alone."""
        return max(1 - self.high - self.middle, 0.0)


@dataclass(frozen=True)
class MemoryPoint:
    """Counts of the banks from the beginning of a sequence up to one of its tokens.

    Attributes:
        end: tokens up to here.
        layers: by layer, the counts so far.
    """

    end: int
    layers: Mapping[int, BankCounts]


@dataclass(frozen=True)
class ExpertReport:
    """How strongly one expert reacted to each of some ranges.

    Attributes:
        layer: index of the decoder layer.
        expert: index of the expert.
        activity: for each range, how far its mean magnitude lies above that of all ranges
            together: 0.25 is a quarter more; 0 for a range without tokens.
        words: tokens, as text, that excite the expert most, the most exciting first.
    """

    layer: int
    expert: int
    activity: tuple[float, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What was seen of some ranges of a text.

    Attributes:
        banks: for each range, by layer, what the bank did with its tokens; empty without banks.
        experts: those that differ most from range to range, the liveliest first; empty without a
            map of the experts.
    """

    banks: tuple[Mapping[int, BankCounts], ...]
    experts: tuple[ExpertReport, ...]


@runtime_checkable
class MemoryReport(Protocol):
    """A state that tells what memory banks did while it was read."""

    def memory_report(self) -> Sequence[MemoryPoint]:
        """The counts at those tokens where they were kept, ascending; empty without banks."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A model that can be watched while it goes through a text that it has read."""

    @property
    def has_experts(self) -> bool:
        """Whether there is a map of the model's experts."""
        ...

    def inspect(
        self,
        state: ContextState,
        ranges: Sequence[tuple[int, int]],
        *,
        top: int = 12,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> Inspection:
        """Goes through what was read once more and watches banks and experts, range by range.

        Args:
            state: what was read, by this model.
            ranges: [start, end) tokens, ascending, that share none; one may be empty. Begin behind
                the text's first token, whose activations dwarf all others in many models.
            top: most experts to report.
            progress: called before the first and after every stretch of tokens.
            cancel: looked at between stretches.

        Raises:
            CancelledError: `cancel` was set.
            ConfigurationError: the ranges are not as said, or the state is of another model.
            InsufficientMemoryError: the memory ran out.
            ModelError: the map of the experts is damaged or of other weights.
        """
        ...
