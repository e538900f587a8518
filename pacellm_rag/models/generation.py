"""An answer in the making, as its caller sees it: pulled piece by piece, or waited for.

The same request is behind the sync and the async face. Knows the engine and its requests; knows
nothing of tensors.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator, Sequence

from pacellm_rag.models.engine import Engine
from pacellm_rag.models.inspecting import memory_points
from pacellm_rag.models.inspection import MemoryPoint
from pacellm_rag.models.prefix_cache import Node
from pacellm_rag.models.request import Answering, Event, PinnedNode, Request
from pacellm_rag.protocols import ONE_MESSAGE, FinishReason, ProgressCallback, PromptLayout

__all__ = ["Generation", "PrefixState", "pull_all"]


class PrefixState:
    """A token prefix that has been read (`protocols.ContextState`).

    It stays in memory as long as this object lives.

    Args:
        token_ids: the tokens.
        reused: how many of them had been read before.
        node: their end in the prefix cache.
        layout: where their messages begin and their documents end.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        reused: int,
        node: PinnedNode,
        layout: PromptLayout = ONE_MESSAGE,
    ) -> None:
        self._token_ids = tuple(token_ids)
        self._reused = reused
        self._node = node
        self._layout = layout

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens read, in order."""
        return self._token_ids

    @property
    def tokens_reused(self) -> int:
        """Of these, how many had been read before."""
        return self._reused

    @property
    def layout(self) -> PromptLayout:
        """Where the messages begin and the documents end."""
        return self._layout

    @property
    def node(self) -> Node:
        """Their end in the prefix cache, pinned there by this object."""
        return self._node.node

    @property
    def root(self) -> Node | None:
        """Where the prefix cache that holds them begins."""
        return self.node.path()[0].parent

    def memory_report(self) -> tuple[MemoryPoint, ...]:
        """The counts of the memory banks where the engine kept them (`inspection.MemoryReport`).

        That is at the ends of documents, every few thousand tokens, and at the end; empty
        without banks. It is the same for what was read, reused or restored from disk.
        """
        return memory_points(self.node)


def pull_all(engine: Engine, request: Request, progress: ProgressCallback | None) -> None:
    """Runs a request that only reads to its end."""
    try:
        while (event := engine.pull(request)) is not None:
            if event.progress is not None and progress is not None:
                progress(event.progress)
    finally:
        engine.close(request)


class Generation:
    """An answer in the making (`protocols.TextGeneration`): iterate it, or close it.

    Errors are raised where pieces are asked for.
    """

    def __init__(
        self, engine: Engine, request: Request, progress: ProgressCallback | None = None
    ) -> None:
        if request.answering is None:
            raise ValueError("The request asks for no answer.")
        self._engine = engine
        self._request = request
        self._answering: Answering = request.answering
        self._progress = progress
        self._over = False
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._over:
            try:
                event = self._engine.pull(self._request)
            except BaseException:
                self.close()
                raise
            piece = self._take(event)
            if piece:
                return piece
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        loop = asyncio.get_running_loop()
        while not self._over:
            came = asyncio.Event()
            wake = functools.partial(loop.call_soon_threadsafe, came.set)
            try:
                event = self._engine.poll(self._request, wake)
                if event is None and not self._request.ended:
                    await came.wait()
                    continue
            except BaseException:
                self.close()
                raise
            piece = self._take(event)
            if piece:
                return piece
        raise StopAsyncIteration

    def _take(self, event: Event | None) -> str:
        """The text of an event; notes the end."""
        if event is None:
            self._over = True
            self.completion_tokens = self._answering.tokens
            self.finish_reason = self._answering.finish_reason or "closed"
            return ""
        if event.progress is not None:
            if self._progress is not None:
                try:
                    self._progress(event.progress)
                except BaseException:
                    self.close()
                    raise
            return ""
        self.completion_tokens = event.tokens
        return event.piece

    def start(self) -> None:
        """Begins, and goes on without being asked for pieces. Safe to repeat."""
        if not self._over:
            self._engine.start(self._request)

    def close(self) -> None:
        """Stops decoding and frees the branch. Safe to repeat."""
        if not self._over:
            self._over = True
            self.finish_reason = "closed"
            self._engine.close(self._request)

    def __del__(self) -> None:
        self._engine.close(self._request)

    @property
    def tokens_reused(self) -> int:
        """Prompt tokens that had been read before; known once the answer has begun."""
        return self._request.reused or 0

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that this answer had to read; known once it has begun."""
        if self._request.reused is None:
            return 0
        return len(self._request.token_ids) - self._request.reused

    @property
    def token_ends(self) -> Sequence[int]:
        """For each generated token, the characters of the answer known after it."""
        return tuple(self._answering.stream.ends[: self.completion_tokens])

    def span_attention(self) -> list[list[float]] | None:
        """Attention of the answer to the spans given as `attend_to`, once it has ended."""
        if not self._over:
            return None
        self._engine.wait(self._request)
        found = self._answering.span_attention
        return None if found is None else found[: self.completion_tokens]
