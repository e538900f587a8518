"""Watching a model go through a text that it has read: its memory banks and experts, by ranges.

The text is run once more in stretches that begin and end where ranges do, each on top of the keys
and values that the first reading has left. Nothing of it is kept, and other requests have their
turns between the stretches. Reading itself keeps counts at its snapshots only: to have them at
every page, it would have to pause at every page, which costs it forward passes, and to keep a copy
of the banks there.

Knows the engine, its decoder and prefix cache; knows nothing of documents.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from pacellm_rag.errors import CancelledError, ConfigurationError, InsufficientMemoryError
from pacellm_rag.models.engine import Engine
from pacellm_rag.models.expert_watch import ExpertWatch
from pacellm_rag.models.inspection import BankCounts, MemoryPoint
from pacellm_rag.models.kv_cache import Block, Part
from pacellm_rag.models.prefix_cache import Node, Snapshot
from pacellm_rag.models.runner import RequestRunner, is_out_of_memory
from pacellm_rag.pace.cache import memories_of
from pacellm_rag.pace.layer_memory import LayerMemory
from pacellm_rag.protocols import CancelSignal, ProgressCallback, ReadProgress

__all__ = ["Stretch", "memory_points", "stretches_of", "walk"]


@dataclass(frozen=True)
class _Sums:
    """Tokens looked up, and of these, replaced and mixed."""

    tokens: int = 0
    high: int = 0
    middle: int = 0

    @classmethod
    def of(cls, memory: LayerMemory | None) -> _Sums:
        if memory is None:
            return cls()
        stats = memory.stats
        return cls(int(stats.tokens[0]), int(stats.high[0]), int(stats.middle[0]))

    def since(self, before: _Sums) -> _Sums:
        return _Sums(
            self.tokens - before.tokens, self.high - before.high, self.middle - before.middle
        )

    def counts(self, memory: LayerMemory) -> BankCounts:
        """As shares, with what the memory holds now."""
        tokens = max(self.tokens, 1)
        return BankCounts(
            slots_filled=int(memory.bank.filled[0]),
            slots=memory.config.slots,
            tokens=self.tokens,
            high=self.high / tokens,
            middle=self.middle / tokens,
        )


def memory_points(node: Node) -> tuple[MemoryPoint, ...]:
    """The counts of the banks at every snapshot on the way to a node."""
    # up the tree without its lock: an edge that is split meanwhile is whole before and after
    return tuple(
        MemoryPoint(each.end, {i: _Sums.of(m).counts(m) for i, m in each.snapshot.memories.items()})
        for each in node.path()
        if each.snapshot is not None and each.snapshot.memories
    )


@dataclass(frozen=True)
class Stretch:
    """Some tokens that go through the model at once.

    Attributes:
        start: the first.
        end: the one behind the last.
        place: index of the range that they are of; None where they are of none.
        closes: whether a message begins behind them.
    """

    start: int
    end: int
    place: int | None
    closes: bool


def stretches_of(
    total: int, ranges: Sequence[tuple[int, int]], starts: Sequence[int], window: int
) -> list[Stretch]:
    """Cuts a text where ranges and messages begin and end, in stretches of at most `window`.

    What lies behind the last range is left out.

    Raises:
        ConfigurationError: the ranges are not ascending, share tokens, or go beyond the text.
    """
    last = 0
    for start, end in ranges:
        if not last <= start <= end <= total:
            raise ConfigurationError(
                f"The range [{start}, {end}) does not lie behind token {last} and within the "
                f"{total} tokens that were read; give ascending ranges that share none."
            )
        last = end
    closing = {start for start in starts if 0 < start <= last}
    cuts = {0, last, *closing, *(each for one in ranges for each in one)}
    places = iter(enumerate(ranges))
    place, (start, end) = next(places, (0, (0, 0)))
    found: list[Stretch] = []
    for first, behind in pairwise(sorted(cuts)):
        while first >= end:
            place, (start, end) = next(places)
        for begin in range(first, behind, window):
            stop = min(begin + window, behind)
            found.append(Stretch(begin, stop, place if begin >= start else None, stop in closing))
    return found


def walk(
    engine: Engine,
    node: Node,
    token_ids: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    *,
    starts: Sequence[int],
    watch: ExpertWatch | None,
    progress: ProgressCallback | None,
    cancel: CancelSignal | None,
) -> tuple[Mapping[int, BankCounts], ...]:
    """Goes through a text that was read, in turns with other requests.

    Args:
        engine: has read it.
        node: the end of what was read, pinned.
        token_ids: the text up to there.
        ranges: [start, end) tokens, as for `stretches_of`.
        starts: of messages.
        watch: sees the experts meanwhile.
        progress: called before the first stretch and after every one.
        cancel: looked at between stretches.

    Returns:
        For each range, by layer, what the bank did; empty without banks.

    Raises:
        CancelledError: `cancel` was set.
        ConfigurationError: the ranges are not ascending, share tokens, or go beyond the text.
        InsufficientMemoryError: the memory ran out.
    """
    stretches = stretches_of(node.end, ranges, starts, engine.window)
    steps = _Walk(engine.runner, node, token_ids, len(ranges))
    total, started = stretches[-1].end if stretches else 0, time.perf_counter()
    if progress is not None:
        progress(ReadProgress(0, total, 0.0, None))
    for stretch in stretches:
        if cancel is not None and cancel.is_set():
            raise CancelledError(f"Cancelled while watching (token {stretch.start} of {total}).")
        engine.call(partial(steps.step, stretch, watch))
        if progress is not None:
            rate = stretch.end / max(time.perf_counter() - started, 1e-9)
            progress(ReadProgress(stretch.end, total, rate, (total - stretch.end) / rate))
    return steps.banks


class _Walk:
    """The way through a text; each step is to run on the engine's thread.

    Args:
        runner: has read it.
        node: the end of what was read.
        token_ids: the text.
        ranges: how many are counted.
    """

    def __init__(
        self, runner: RequestRunner, node: Node, token_ids: Sequence[int], ranges: int
    ) -> None:
        self._runner = runner
        self._node = node
        self._token_ids = token_ids
        self._snapshot: Snapshot | None = None
        self._range: int | None = None
        self._began: Mapping[int, LayerMemory] = {}
        self._counts: list[Mapping[int, BankCounts]] = [{} for _ in range(ranges)]

    def step(self, stretch: Stretch, watch: ExpertWatch | None) -> None:
        """Runs the next stretch.

        Raises:
            InsufficientMemoryError: the memory ran out.
        """
        seeing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if watch is not None and stretch.place is not None:
            seeing = watch.seeing(stretch.start, stretch.end, stretch.place)
        try:
            with seeing:
                self._run(stretch)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._memory_error(stretch) from error
            raise

    def _run(self, stretch: Stretch) -> None:
        decoder, size = self._runner.decoder, stretch.end - stretch.start
        parts = _first(self._node.parts(), stretch.start)
        cache = decoder.open(parts, self._snapshot, Block(size, self._runner.storage))
        decoder.read(cache, self._token_ids[stretch.start : stretch.end])
        if stretch.place is not None:
            self._count(stretch.place, memories_of(cache))
        if stretch.closes:
            decoder.close_windows(cache)
        self._snapshot = decoder.snapshot(cache)

    def _count(self, place: int, memories: Mapping[int, LayerMemory]) -> None:
        """Notes what the banks have done since a range began."""
        if place != self._range:
            self._range = place
            self._began = self._snapshot.memories if self._snapshot is not None else {}
        self._counts[place] = {
            layer: _Sums.of(memory).since(_Sums.of(self._began.get(layer))).counts(memory)
            for layer, memory in memories.items()
        }

    @property
    def banks(self) -> tuple[Mapping[int, BankCounts], ...]:
        """For each range, what the banks did with it; empty without banks."""
        return tuple(self._counts) if any(self._counts) else ()

    def _memory_error(self, stretch: Stretch) -> InsufficientMemoryError:
        needs = self._runner.needs
        return InsufficientMemoryError(
            f"The memory ran out while the model was watched (token {stretch.start} of "
            f"{self._node.end}). Try again when nobody else asks, or untick documents.",
            needed_bytes=needs.kv_bytes(stretch.end - stretch.start) + needs.bank_bytes,
            free_bytes=None,
        )


def _first(parts: Sequence[Part], tokens: int) -> list[Part]:
    """The parts that hold the first tokens."""
    found: list[Part] = []
    for part in parts:
        size = min(len(part), tokens - sum(map(len, found)))
        if size <= 0:
            break
        found.append(Part(part.block, part.start, part.start + size))
    return found
