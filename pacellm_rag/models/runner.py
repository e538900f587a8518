"""What is done for requests: finding what is known, reading windows, decoding tokens, parting.

`RequestRunner` does the work and holds what it needs for it: model, prefix cache, disk. When
whose work is done is the engine's to say. To be used by one thread at a time. Knows tokens, caches
and tensors; knows nothing of threads or queues.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

import torch

from pacellm_rag.errors import InsufficientMemoryError
from pacellm_rag.models.decoder import Batch, Decoder
from pacellm_rag.models.kv_cache import Block, KVStorage
from pacellm_rag.models.planning import MemoryNeeds, ReadingRate, free_memory, gib
from pacellm_rag.models.prefix_cache import Node, PrefixCache, Tokens
from pacellm_rag.models.query_recorder import QueryRecorder
from pacellm_rag.models.reading_archive import ReadingArchive
from pacellm_rag.models.request import Answering, Event, PinnedNode, Request, Row
from pacellm_rag.models.retrieval_heads import attention_to_spans
from pacellm_rag.protocols import ReadingCost

__all__ = ["RequestRunner", "is_out_of_memory"]

_KEEP_FROM = 256  # tokens of a prompt that are worth keeping for others
_FIRST_ROOM = 512  # tokens of an answer that room is made for at once


class RequestRunner:
    """Does the work of requests.

    Args:
        decoder: the model.
        every: tokens between points to go on from in a stateful model's long messages.
        step: tokens between points that such a model can be left at near a prompt's end.
        cache: what has been read.
        archive: what is on disk; None for nothing.
        storage: how keys and values are held.
        needs: what memory tokens take.
        rate: how fast the model reads.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        every: int,
        step: int,
        cache: PrefixCache,
        archive: ReadingArchive | None,
        storage: KVStorage,
        needs: MemoryNeeds,
        rate: ReadingRate,
    ) -> None:
        self.decoder = decoder
        self.every = every
        self.step = step
        self.cache = cache
        self.archive = archive
        self.storage = storage
        self.needs = needs
        self.rate = rate
        self._batch: Batch | None = None
        self._batched: list[Request] = []

    def known(self, keys: Tokens) -> int:
        """How many of the first tokens need not be read, in memory or on disk."""
        known = self.cache.known(keys)
        return known if self.archive is None else max(known, self.archive.known(keys))

    def cost(self, keys: Tokens, new_tokens: int) -> ReadingCost:
        """What reading a prompt, and an answer of `new_tokens` tokens, would take."""
        known = self.known(keys)
        free = free_memory(self.storage.device or self.decoder.module.device)
        return ReadingCost(
            tokens_known=known,
            tokens_to_read=len(keys) - known,
            kv_bytes=self.needs.kv_bytes(len(keys) - self.cache.known(keys) + new_tokens),
            bank_bytes=self.needs.bank_bytes,
            free_bytes=None if free is None else free + self.cache.spare_bytes,
            seconds=self.rate.seconds(known, len(keys)),
        )

    def begin(self, request: Request) -> None:
        """Finds what is known of a prompt, and makes a branch of it."""
        total = len(request.token_ids)
        request.started = time.perf_counter()
        if self.archive is not None:
            self.archive.restore(self.cache, request.keys, request.usable, request.layout)
        node = self.cache.match(request.keys, request.usable)
        unread = total - node.end
        keep = request.kept and (request.answering is None or unread >= _KEEP_FROM)
        points, pauses = request.stops(
            node.end, stateful=self.decoder.stateful, every=self.every, window=self.step
        )
        answer = 0 if request.answering is None else request.answering.options.max_new_tokens
        block = Block(unread + min(answer, _FIRST_ROOM), self.storage)
        cache = self.decoder.open(node.parts(), node.snapshot, block)
        base = PinnedNode(self.cache, node)
        request.reused = node.end
        request.row = Row(cache, base, block, node.end, pauses, points, keep)
        if request.tells_progress:
            request.tell_progress(node.end, None)

    def begin_again(self, request: Request) -> None:
        """Makes a new branch, where more is known now than when the request came in."""
        row = request.live_row
        if min(self.cache.known(request.keys), request.usable) > row.length:
            request.row = None
            self.begin(request)

    def needs_what_is_read(self, request: Request, other: Request) -> bool:
        """Whether `other` is reading what `request`, which has not begun, would read as well."""
        row, theirs = request.live_row, other.row
        if row.length > row.base.node.end or other is request:
            return False
        if theirs is None or not theirs.keep or not other.is_reading or not other.wants_work:
            return False
        if other.turn == 0 or theirs.length <= row.length:
            return False  # it has not begun either, or is no further
        return request.common_length(other) - row.length >= _KEEP_FROM

    def read_window(self, request: Request, window: int) -> bool:
        """Reads up to `window` tokens of a prompt.

        Returns:
            Whether that was the end of a request which only reads.
        """
        row = request.live_row
        start, total = row.length, len(request.token_ids)
        end = min(start + window, total, *(pause for pause in row.pauses if pause > start))
        before = time.perf_counter()
        if end > start and (end < total or request.answering is None):
            self._read(request, row, end)
        elif request.answering is not None:
            self._start_answer(request, row, request.answering)
        seconds = time.perf_counter() - before
        self.rate.record(start, end - start, seconds)
        if request.tells_progress and end > start:
            request.tell_progress(end, seconds / (end - start))
        if request.answering is None and end == total:
            request.result = PinnedNode(self.cache, self._keep(request, row) or row.base.node)
            return True
        return False

    def _read(self, request: Request, row: Row, end: int) -> None:
        kept = self.decoder.stateful and end in row.points
        # whole or not at all: it may be tried again when memory ran out
        with self.decoder.undone_on_error([row.cache]):
            self.decoder.read(row.cache, request.token_ids[row.length : end])
            if end in request.layout.message_starts:
                self.decoder.close_windows(row.cache)
            snapshot = self.decoder.snapshot(row.cache) if kept else None
        row.length = end
        if kept:
            row.reached.append((end, snapshot))

    def _start_answer(self, request: Request, row: Row, answering: Answering) -> None:
        """The last window of a prompt, and the first token behind it."""
        if row.logits is None:  # else choosing a token failed for want of memory
            if answering.heads is not None:
                answering.recorder = QueryRecorder(answering.heads.layers)
            ids = request.token_ids[row.length :]
            row.logits = self.decoder.start(row.cache, ids, answering.recorder)
            row.length = len(request.token_ids)
            self._keep(request, row)
        self._take(request, answering, row.logits)
        row.logits = None

    def _keep(self, request: Request, row: Row) -> Node | None:
        """Puts what was read into the prefix cache, and on disk."""
        if not row.keep:
            return None
        row.keep = False
        reached = row.reached
        if not self.decoder.stateful:
            done = min(row.length, len(request.token_ids))
            points = [point for point in row.points if point <= done]
            if done > row.base.node.end and (not points or points[-1] < done):
                points.append(done)
            reached = [(point, None) for point in points]
        if not reached:
            return None
        node = self.cache.add(request.keys, row.base.node.end, row.block, reached, request.layout)
        if self.archive is not None:
            self.archive.keep(node, request.keys[: node.end], request.note, request.layout)
        return node

    def forget(self, documents: Collection[str], here: Iterable[Request]) -> None:
        """Forgets what was read of some documents, but for what is in use.

        Args:
            documents: their ids, as in the layouts of prompts.
            here: all requests; those that read these documents keep nothing for others.
        """
        names = frozenset(documents)
        for request in here:
            if request.layout.sources_before(len(request.token_ids)) & names:
                request.kept = False
                if request.row is not None:
                    request.row.keep = False
        self.cache.forget(names)

    # ---- answering

    def decode(self, group: Sequence[Request]) -> torch.Tensor:
        """One token for each of some answers: logits of shape (requests, vocabulary)."""
        group = list(group)
        if group != self._batched:
            self.disband()
            self._batch = Batch(self.decoder, [request.live_row.cache for request in group])
            self._batched = group
        assert self._batch is not None
        answers = [request.answer for request in group]
        logits = self._batch.step(
            [answering.newest for answering in answers],
            [request.live_row.length for request in group],
            [answering.recorder for answering in answers],
        )
        for request in group:
            request.live_row.length += 1
        return logits

    def disband(self) -> None:
        """Gives the rows of the last batch their state back."""
        batch, self._batch, self._batched = self._batch, None, []
        if batch is not None:
            batch.close()

    def forget_batch(self) -> None:
        """Lets the last batch go where nobody needs its rows any more."""
        self._batch, self._batched = None, []

    def take(self, request: Request, logits: torch.Tensor) -> None:
        """Puts the next token behind an answer, by logits of shape (1, vocabulary)."""
        self._take(request, request.answer, logits)

    def _take(self, request: Request, answering: Answering, logits: torch.Tensor) -> None:
        form = answering.constraint
        token = answering.sampler(logits if form is None else form.allow(logits))
        if form is not None:
            token = form.choose(token, answering.options.max_new_tokens - answering.tokens)
        answering.tokens += 1
        answering.newest = token
        piece = ""
        if token in answering.stop_ids:
            answering.finish_reason = "stop"
        else:
            piece = answering.stream.feed(token)
            if answering.stream.stopped or (form is not None and form.complete):
                answering.finish_reason = "stop"
            elif answering.tokens >= answering.options.max_new_tokens:
                answering.finish_reason = "length"
        if answering.finish_reason is not None and not answering.stream.stopped:
            piece += answering.stream.flush()
        if piece:
            request.emit(Event(piece, tokens=answering.tokens))

    # ---- parting

    def part(self, request: Request) -> None:
        """Keeps what a request has read, sums up where it looked, and lets its branch go."""
        if request in self._batched:
            self.disband()
        row, request.row = request.row, None
        if row is None:
            return
        self._keep(request, row)
        answering = request.answering
        if answering is not None and answering.recorder is not None and answering.heads is not None:
            answering.span_attention = attention_to_spans(
                answering.heads,
                answering.recorder,
                row.cache,
                len(request.token_ids),
                answering.spans,
            )

    def memory_error(self, request: Request, error: BaseException) -> InsufficientMemoryError:
        """What to tell a caller whose request ran out of memory."""
        free = free_memory(self.storage.device or self.decoder.module.device)
        total = len(request.token_ids)
        needed = self.needs.kv_bytes(total - (request.reused or 0)) + self.needs.bank_bytes
        known = "" if free is None else f"; {gib(free)} are free"
        found = InsufficientMemoryError(
            f"The memory ran out while {request.doing}: {total:,} tokens take {gib(needed)} for "
            f"keys and values{known}. Leave out documents or pages, keep fewer tokens for the "
            'answer, or hold them in half the bytes (kv_cache="fp8").',
            needed_bytes=needed,
            free_bytes=free,
        )
        found.__cause__ = error
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
