"""Questions put to a `DocumentReader` one after the other, as a user does who waits for answers.

Never several at once: side by side they share forward passes, and the last bits of an answer's
numbers then depend on its neighbours. Seconds are those a user waits, so the first question over
documents pays for their reading. Knows no scores and no benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pacellm_rag.answer import Answer
from pacellm_rag.context.matching import reduce_text
from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document
from pacellm_rag.evaluation.retrieval import (
    BM25_CHUNKS,
    WINDOW,
    ChunkIndex,
    Part,
    last_tokens,
    parse_reading,
    whole,
)
from pacellm_rag.evaluation.types import WHOLE
from pacellm_rag.protocols import CancelSignal, GenerationOptions, TextModel
from pacellm_rag.reader import DocumentReader

__all__ = ["Cited", "DocumentAnswer", "answer_questions", "declines"]


@dataclass(frozen=True)
class Cited:
    """A page that an answer cites.

    Attributes:
        document: index of its document among all that were there to be read.
        title: the document's.
        page: physical page number, from 1.
        verified: whether the quotation stands there.
    """

    document: int
    title: str
    page: int
    verified: bool


@dataclass(frozen=True)
class DocumentAnswer:
    """An answer over documents, and what it took.

    Attributes:
        text: without page markers.
        citations: the most important first.
        position: how many questions over the same documents were before it.
        prompt_tokens: tokens of the whole prompt.
        tokens_left_out: tokens of the documents cut off to fit.
        tokens_reused: of the prompt's tokens, those read before this question came.
        completion_tokens: tokens generated.
        seconds: from the question to the end of its answer, all reading included.
        finish_reason: why it ended.
    """

    text: str
    citations: tuple[Cited, ...]
    position: int
    prompt_tokens: int
    tokens_left_out: int
    tokens_reused: int
    completion_tokens: int
    seconds: float
    finish_reason: str


def declines(text: str) -> bool:
    """Whether an answer claims nothing: the agreed words, or no letter or digit at all."""
    said = reduce_text(text)[0]
    return not said or said.startswith(reduce_text(NOT_ANSWERED)[0])


def answer_questions(
    model: TextModel,
    documents: Sequence[Document],
    questions: Sequence[str],
    *,
    reading: str = WHOLE,
    max_new_tokens: int,
    cancel: CancelSignal | None = None,
) -> Iterator[DocumentAnswer]:
    """Asks one question after the other about the same documents, decoded greedily.

    Args:
        model: any.
        documents: what to read.
        questions: what to ask, in this order.
        reading: how much of the documents the model gets (`retrieval.parse_reading`).
        max_new_tokens: most tokens of an answer.
        cancel: set to stop within a window or token.

    Raises:
        ConfigurationError: there is no such way of reading.
        ContextOverflowError: it does not fit the model's window.
        CancelledError: `cancel` was set.
    """
    select = _selector(model, documents, reading)
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    reader: DocumentReader | None = None
    known: Part | None = None
    for position, question in enumerate(questions):
        started = time.perf_counter()
        part = select(question)
        if reader is None or part is not known:
            reader, known = DocumentReader(model, part.documents, options=options), part
        unread = reader.receipt is None
        answer = reader.ask(question, cancel=cancel)
        seconds = time.perf_counter() - started
        reused = answer.usage.tokens_reused
        if unread and reader.receipt is not None:  # what this very question read is not reused
            reused = min(reused, reader.receipt.tokens_reused)
        yield DocumentAnswer(
            text=answer.text,
            citations=_cited(answer, part),
            position=position,
            prompt_tokens=answer.usage.prompt_tokens,
            tokens_left_out=part.tokens_left_out,
            tokens_reused=reused,
            completion_tokens=answer.usage.completion_tokens,
            seconds=seconds,
            finish_reason=answer.finish_reason,
        )


def _selector(model: TextModel, documents: Sequence[Document], name: str) -> Callable[[str], Part]:
    """What the model gets for a question; the same object where it is the same text.

    The first question pays for cutting and indexing, so that happens when it is asked.
    """
    reading = parse_reading(name)
    index: ChunkIndex | None = None
    shared: Part | None = None

    def select(question: str) -> Part:
        nonlocal index, shared
        if reading.kind == BM25_CHUNKS:
            index = index or ChunkIndex(documents)
            return index.best(question, reading.amount)
        if shared is None:
            shared = (
                last_tokens(documents, model.tokenizer, reading.amount)
                if reading.kind == WINDOW
                else whole(documents)
            )
        return shared

    return select


def _cited(answer: Answer, part: Part) -> tuple[Cited, ...]:
    return tuple(
        Cited(part.origins[c.document], c.title, c.page, c.verified) for c in answer.citations
    )
