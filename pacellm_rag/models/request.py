"""One request to the engine: what is to be read, how to answer, and what has come of it.

A request belongs to the engine's worker, except for what is marked as the caller's. Knows tokens
and options; knows nothing of threads or models.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.cache_utils import Cache

from pacellm_rag.models.constrained import TokenConstraint
from pacellm_rag.models.kv_cache import Block
from pacellm_rag.models.prefix_cache import Node, PrefixCache, Snapshot, Tokens, common_length
from pacellm_rag.models.query_recorder import QueryRecorder
from pacellm_rag.models.retrieval_heads import RetrievalHeads
from pacellm_rag.models.sampling import Sampler
from pacellm_rag.models.text_stream import TextStream
from pacellm_rag.protocols import (
    CancelSignal,
    FinishReason,
    GenerationOptions,
    PromptLayout,
    ReadProgress,
)

__all__ = ["Answering", "Event", "PinnedNode", "Request", "Row", "token_keys"]

_LEAST_STRETCH = 256  # tokens between points to go on from: a snapshot costs memory


def token_keys(token_ids: Sequence[int], layout: PromptLayout, *, by_message: bool) -> Tokens:
    """Tokens as the prefix cache and the store know them.

    With memory banks the state behind a token depends on whether a message ends with it, so the
    last token before each message's start gets a key of its own. (Not the first one behind: a
    prefix that ends there would be known to everybody, with its window closed and without.)
    """
    keys = np.asarray(token_ids, dtype=np.int64)
    if by_message:
        last = [start - 1 for start in set(layout.message_starts) if 0 < start <= len(keys)]
        keys[last] = -1 - keys[last]
    return keys


@dataclass(frozen=True)
class Event:
    """What a request hands to its caller.

    Attributes:
        piece: text; "" where there is none.
        progress: how far reading is, or None.
        tokens: tokens generated so far.
    """

    piece: str = ""
    progress: ReadProgress | None = None
    tokens: int = 0


@dataclass
class Answering:
    """The answer of a request.

    Attributes:
        options: how to decode.
        stop_ids: tokens that end it.
        stream: from tokens to text.
        sampler: chooses tokens.
        heads: whose attention to keep, or None.
        spans: token ranges of the prompt that attention is summed over.
        constraint: keeps it to a form, or None.
    """

    options: GenerationOptions
    stop_ids: frozenset[int]
    stream: TextStream
    sampler: Sampler
    heads: RetrievalHeads | None
    spans: Sequence[tuple[int, int]]
    constraint: TokenConstraint | None = None
    recorder: QueryRecorder | None = None
    tokens: int = 0
    newest: int = 0
    finish_reason: FinishReason | None = None
    span_attention: list[list[float]] | None = None


class PinnedNode:
    """Keeps a node in the prefix cache for as long as this object lives."""

    def __init__(self, cache: PrefixCache, node: Node) -> None:
        self.node = node
        cache.pin(node)
        weakref.finalize(self, cache.unpin, node)


@dataclass
class Row:
    """A request's place in the engine while it runs.

    Attributes:
        cache: its own.
        base: the node that it went on from.
        block: holds the keys and values of its prompt behind `base`.
        length: tokens in the cache.
        pauses: token counts to pause at while reading, ascending.
        points: token counts that others may go on from.
        keep: whether what is read goes into the prefix cache.
        reached: points with their snapshots, in order.
        logits: behind the prompt, until the first token is chosen by them.
    """

    cache: Cache
    base: PinnedNode
    block: Block
    length: int
    pauses: list[int]
    points: list[int]
    keep: bool
    reached: list[tuple[int, Snapshot | None]] = field(default_factory=list)
    logits: torch.Tensor | None = None


@dataclass(eq=False)
class Request:
    """A prompt to be read, and an answer to be given where `answering` is there.

    Attributes:
        token_ids: the whole prompt.
        keys: its tokens as the prefix cache knows them.
        layout: where its messages begin and its documents end.
        answering: None for a request that only reads.
        cancel: the caller's signal.
        deadline: on `time.monotonic`, or None.
        note: what is read, for people who list what is stored.
        kept: whether what it reads may be kept for others: not where its documents are forgotten.
        tells_progress: whether the caller wants progress.
        ahead: the caller's: pieces that may be made before they are asked for.
        asked: the caller's: it waits for an event.
        closed: the caller's: nothing more is wanted.
        wake: the caller's: called when an event has come or the request has ended.
    """

    token_ids: tuple[int, ...]
    keys: Tokens
    layout: PromptLayout
    answering: Answering | None
    cancel: CancelSignal | None = None
    deadline: float | None = None
    note: str = ""
    kept: bool = True
    tells_progress: bool = False
    ahead: float = 0
    asked: bool = False
    closed: bool = False
    wake: Callable[[], object] | None = None
    submitted: bool = False
    ended: bool = False
    error: BaseException | None = None
    events: deque[Event] = field(default_factory=deque)
    row: Row | None = None
    result: PinnedNode | None = None
    turn: int = 0
    reused: int | None = None
    started: float = 0.0
    place: int = -1
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def usable(self) -> int:
        """Tokens of the prompt that need not be run; an answer needs the last one's logits."""
        return len(self.token_ids) - (self.answering is not None)

    @property
    def wants_work(self) -> bool:
        """Whether its caller waits, or may be given more pieces ahead."""
        if self.ended:
            return False
        ahead = self.is_answering and len(self.events) < self.ahead
        return self.asked or ahead or self.ahead == math.inf

    @property
    def cancelled(self) -> bool:
        """Whether the caller's signal is set."""
        return self.cancel is not None and self.cancel.is_set()

    @property
    def unwanted(self) -> bool:
        """Whether nothing more should be done for it."""
        return self.closed or self.cancelled

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not read whole yet, or nothing was done for it."""
        if self.row is None:
            return False
        return self.row.length < len(self.token_ids) or self.answering is None

    @property
    def is_answering(self) -> bool:
        """Whether its prompt is read and its answer under way."""
        return self.row is not None and not self.is_reading

    @property
    def live_row(self) -> Row:
        """Its row, which is there while it runs."""
        assert self.row is not None
        return self.row

    @property
    def answer(self) -> Answering:
        """Its answer, where it asks for one."""
        assert self.answering is not None
        return self.answering

    @property
    def doing(self) -> str:
        """What is being done for it, in words."""
        if self.row is None:
            return "waiting for the model"
        if self.is_reading:
            return f"reading (token {self.row.length} of {len(self.token_ids)})"
        return f"answering (token {self.answer.tokens})"

    def common_length(self, other: Request) -> int:
        """Tokens that both prompts begin with."""
        return common_length(self.keys, other.keys)

    def next_event(self, wake: Callable[[], object]) -> Event | None:
        """The next event, or, if it is to come, notes that it is waited for.

        Raises:
            PaceLLMError: what ended the request, the first time.
        """
        with self.guard:
            self.wake = None
            if self.events:
                return self.events.popleft()
            if self.ended:
                error, self.error = self.error, None
                if error is not None:
                    raise error
                return None
            self.wake = wake
            self.asked = True
            return None

    def listen(self, wake: Callable[[], object]) -> None:
        """Calls `wake` at the next event or the end."""
        with self.guard:
            self.wake = wake

    def emit(self, event: Event) -> None:
        """Hands something to the caller."""
        with self.guard:
            self.events.append(event)
            self.asked = False
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        with self.guard:
            self.error = error
            self.ended = True
            self.row = None
            self._wake()

    def _wake(self) -> None:
        """Wakes the caller, if it is still there: its event loop may have been closed meanwhile."""
        if self.wake is not None:
            try:
                self.wake()
            except RuntimeError:
                self.wake = None

    def tell_place(self, place: int) -> None:
        """Says how many requests are before this one, if that has changed."""
        if self.tells_progress and self.place != place:
            self.place = place
            self.tell_progress(0, None, place)

    def tell_progress(self, done: int, pace: float | None, place: int = 0) -> None:
        """Says how far reading is; `pace` is in seconds per token."""
        total = len(self.token_ids)
        began = self.reused or 0
        seconds = time.perf_counter() - self.started if self.started else 0.0
        rate = (done - began) / seconds if pace is not None and seconds > 0 else 0.0
        left = None if pace is None else pace * (total - done)
        self.emit(Event(progress=ReadProgress(done, total, rate, left, place)))

    def stops(
        self, start: int, *, stateful: bool, every: int, window: int
    ) -> tuple[list[int], list[int]]:
        """Where reading must pause behind `start`.

        Args:
            start: tokens read already.
            stateful: whether points to go on from need a snapshot, and so a pause.
            every: tokens between points that nobody named.
            window: tokens between points that leave no window of the memory banks pending.

        Returns:
            Points to go on from, and all pauses (message starts among them).
        """
        total = len(self.token_ids)
        starts = [s for s in self.layout.message_starts if start < s <= total]
        named = {*starts, *(e for e in self.layout.document_ends if start < e <= total)}
        if self.answering is None:
            named.add(total)
        points: list[int] = []
        for point in sorted(named):
            far = point - max([start, *points]) >= _LEAST_STRETCH
            if far or point == total or point in starts[-1:]:
                points.append(point)
        if stateful:
            regular: set[int] = set()
            for first, last in zip([start, *starts], [*starts, total], strict=True):
                regular |= set(range(self._grid(first, every), last, every))
            # and one near the end, so that the same prompt is not read again from far back
            newest = starts[-1] if starts else start
            regular |= set(range(self._grid(newest, window), total, window)[-1:])
            for point in sorted(regular):
                if min(abs(point - other) for other in [start, *points]) >= _LEAST_STRETCH:
                    points.append(point)
        points.sort()
        pauses = {*starts, *points} if stateful else set()
        return points, sorted(pauses)

    def _grid(self, first: int, every: int) -> int:
        """The first point behind `first` that is a whole multiple from its message's start."""
        begins = [s for s in self.layout.message_starts if s <= first]
        origin = begins[-1] if begins else 0
        return first + every - (first - origin) % every
