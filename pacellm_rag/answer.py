"""An answer with its sources, and the stream that it comes in.

Knows what the model generates and how citations are resolved; knows nothing of documents' files,
of reading, or of torch.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from pacellm_rag.context.citations import Citation, CitationResolver, Evidence
from pacellm_rag.protocols import FinishReason, TextGeneration

__all__ = ["Answer", "AnswerStream", "Timings", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt_tokens: tokens of the whole prompt, documents included.
        tokens_reused: of these, how many had been read before.
        tokens_read: of these, how many this answer had to read.
        completion_tokens: tokens generated, the end-of-turn token included.
    """

    prompt_tokens: int
    tokens_reused: int
    tokens_read: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds that one answer took, reading the documents not included.

    Attributes:
        first_token: from the question to the first piece of text (TTFT).
        total: from the question to the end of the answer.
        per_token: time per output token after the first (TPOT); 0 for answers of one token.
    """

    first_token: float
    total: float
    per_token: float


@dataclass(frozen=True)
class Answer:
    """An answer with its sources.

    Attributes:
        question: what was asked.
        text: the answer, without page markers.
        citations: the pages that it rests on, the most important first.
        usage: tokens.
        timings: seconds.
        finish_reason: "stop" (the model ended it), "length" (max_new_tokens) or "closed".
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    usage: Usage
    timings: Timings
    finish_reason: FinishReason


class AnswerStream:
    """An answer in the making: iterate it for pieces of text, then read `answer`.

    It can be iterated by `for` and by `async for`. The pieces are the model's own words; page
    markers that it writes are still in them, while `answer.text` is without. Closing the stream,
    or leaving a `with` block, stops the model.
    """

    def __init__(
        self,
        question: str,
        generation: TextGeneration,
        resolver: CitationResolver,
        prompt_tokens: int,
        *,
        cite: bool,
    ) -> None:
        self._question = question
        self._generation = generation
        self._resolver = resolver
        self._prompt_tokens = prompt_tokens
        self._cite = cite
        self._pieces: list[str] = []
        self._started = time.perf_counter()
        self._first: float | None = None
        self._ended: float | None = None
        self._answer: Answer | None = None

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._came(next(self._generation))
        except BaseException:
            self._ended = self._ended or time.perf_counter()
            raise

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            return self._came(await self._generation.__anext__())
        except BaseException:
            self._ended = self._ended or time.perf_counter()
            raise

    def start(self) -> None:
        """Lets the model go on without being asked for pieces."""
        self._generation.start()

    def _came(self, piece: str) -> str:
        self._first = self._first or time.perf_counter()
        self._pieces.append(piece)
        return piece

    def close(self) -> None:
        """Stops the model; what has come so far stays."""
        self._generation.close()
        self._ended = self._ended or time.perf_counter()

    @property
    def text(self) -> str:
        """The words so far."""
        return "".join(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end where that has not happened."""
        if self._answer is None:
            for _ in self:
                pass
            self.close()
            self._answer = self._finish()
        return self._answer

    async def answered(self) -> Answer:
        """As `answer`, without holding up the event loop."""
        if self._answer is None:
            async for _ in self:
                pass
            self.close()
            self._answer = self._finish()
        return self._answer

    def _finish(self) -> Answer:
        generation, ended = self._generation, self._ended or time.perf_counter()
        evidence = Evidence(generation.token_ends, generation.span_attention())
        resolved = self._resolver.resolve(self._question, self.text, evidence, cite=self._cite)
        first = self._first or ended
        tokens = generation.completion_tokens
        return Answer(
            question=self._question,
            text=resolved.text,
            citations=resolved.citations,
            usage=Usage(
                self._prompt_tokens, generation.tokens_reused, generation.tokens_read, tokens
            ),
            timings=Timings(
                first_token=first - self._started,
                total=ended - self._started,
                per_token=(ended - first) / (tokens - 1) if tokens > 1 else 0.0,
            ),
            finish_reason=generation.finish_reason or "closed",
        )
