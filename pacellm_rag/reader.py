"""Reading whole documents once and answering questions about them with checked citations.

`DocumentReader` binds a model (`protocols.TextModel`) and documents together: it plans, reads,
asks and cites. It knows documents, prompts and citations; of the model it knows the protocol only,
so that it runs without torch against any implementation of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pacellm_rag.answer import Answer, AnswerStream
from pacellm_rag.context.citations import CitationResolver
from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import Plan, plan_question
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.documents.types import Document
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import (
    CancelSignal,
    ContextState,
    EncodedPrompt,
    GenerationOptions,
    Message,
    ProgressCallback,
    PromptLayout,
    ReadingCost,
    TextModel,
)

__all__ = ["DocumentReader", "Receipt"]


@dataclass(frozen=True)
class Receipt:
    """What has been read.

    Attributes:
        documents: number of documents.
        pages: pages read, those without text not counted.
        tokens: tokens that the model has read.
        seconds: time it took.
        tokens_reused: of these, how many had been read before, in this process or an earlier one.
        pages_without_text: (document title, page number) of pages that hold no text.
    """

    documents: int
    pages: int
    tokens: int
    seconds: float
    pages_without_text: tuple[tuple[str, int], ...] = ()
    tokens_reused: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Reading rate, of the tokens that had to be read."""
        return (self.tokens - self.tokens_reused) / self.seconds if self.seconds > 0 else 0.0


@dataclass
class _Reading:
    """The documents' state and the receipt for it."""

    state: ContextState
    receipt: Receipt = field(repr=False)


class DocumentReader:
    """Reads documents whole, once, and answers questions about them.

    Args:
        model: from `load_model`, or anything else that is a `protocols.TextModel`.
        documents: what to read, in this order.
        options: how answers are decoded unless a call says otherwise.

    Raises:
        ConfigurationError: there is no document.

    Example:
        >>> reader = DocumentReader(load_model(), [load_document("report.pdf")])
        >>> answer = reader.ask("Who signed the report?")
        >>> print(answer.text, answer.citations[0].page)
    """

    def __init__(
        self,
        model: TextModel,
        documents: Sequence[Document],
        *,
        options: GenerationOptions | None = None,
    ) -> None:
        self.model = model
        self.documents = tuple(documents)
        self.options = options or GenerationOptions()
        self.packed = pack_context(self.documents)
        self._resolver = CitationResolver(self.packed)
        self._reading: _Reading | None = None

    @property
    def receipt(self) -> Receipt | None:
        """What has been read; None before `read`."""
        return self._reading.receipt if self._reading else None

    @property
    def state(self) -> ContextState | None:
        """What the model keeps of the documents; None before `read` and after `close`."""
        return self._reading.state if self._reading else None

    def plan(
        self,
        question: str = "",
        *,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
    ) -> Plan:
        """What a question needs of the model and the machine, without any model work."""
        answer_tokens = (options or self.options).max_new_tokens

        def cost(prompt: EncodedPrompt) -> ReadingCost:
            layout = self._layout(prompt)
            return self.model.cost(prompt.token_ids, answer_tokens, layout=layout)

        return plan_question(
            self.packed,
            self.model.tokenizer,
            question,
            answer_tokens=answer_tokens,
            history=history,
            cost=cost,
        )

    def _layout(self, prompt: EncodedPrompt) -> PromptLayout:
        """Where messages begin and documents end, in tokens."""
        base = locate_context(prompt, self.packed)
        # without the blanks behind a document and without its last token, which may take them in:
        # they are others behind the last document than behind one that is followed
        spans = [
            (base + start, base + start + len(self.packed.text[start:end].rstrip()))
            for start, end in self.packed.document_spans
        ]
        ranges = token_ranges(prompt.offsets, spans)
        ends = tuple(max(end - 1, 1) for _, end in ranges)
        ids = [document.id for document in self.documents]
        sources = tuple((each, first) for each, (first, _) in zip(ids, ranges, strict=True))
        return PromptLayout(prompt.message_starts, ends, sources)

    def read(
        self,
        *,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        timeout: float | None = None,
        options: GenerationOptions | None = None,
    ) -> Receipt:
        """Reads all documents into the model, as far as that has not been done before.

        Args:
            progress: called before the first and after every window of tokens.
            cancel: looked at between windows.
            timeout: seconds after which it ends with an error.
            options: of the answers that are to come: there must be room for them.

        Raises:
            ContextOverflowError: the documents do not fit the model's window; nothing was read.
            InsufficientMemoryError: there is not the memory; nothing was read.
            CancelledError: `cancel` was set; what was read stays known.
            DeadlineExceededError: the time was over.
        """
        if self._reading is not None:
            return self._reading.receipt
        self.plan(options=options).check()
        started = time.perf_counter()
        prefix, layout = self._prefix()
        state = self.model.prefill(
            prefix,
            layout=layout,
            note=", ".join(document.title for document in self.documents),
            timeout=timeout,
            progress=progress,
            cancel=cancel,
        )
        seconds = time.perf_counter() - started
        empty = tuple(
            (document.title, number)
            for document in self.documents
            for number in document.pages_without_text
        )
        pages = sum(len(document.pages) for document in self.documents) - len(empty)
        receipt = Receipt(
            len(self.documents), pages, len(prefix), seconds, empty, state.tokens_reused
        )
        if self._reading is None:  # else somebody else has read them meanwhile
            self._reading = _Reading(state, receipt)
        return self._reading.receipt

    def close(self) -> None:
        """Lets the memory of the documents go, once others need it. Asking reads them again."""
        self._reading = None

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prefix(self) -> tuple[tuple[int, ...], PromptLayout]:
        """The tokens that every question shares: what two different questions have in common."""
        encode = self.model.tokenizer.encode_messages
        one, two = (encode(build_messages(self.packed, q)) for q in ("A", "9?"))
        pairs = zip(one.token_ids, two.token_ids, strict=False)
        limit = min(len(one.token_ids), len(two.token_ids))
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), limit)
        return one.token_ids[:common], self._layout(one)

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        cite: bool = True,
    ) -> AnswerStream:
        """Starts an answer; reads the documents first where that has not been done.

        Args:
            question: what to ask.
            history: earlier turns, questions and answers.
            options: how to decode this answer.
            progress: called while the documents, and then the question, are read.
            cancel: looked at between windows and tokens.
            cite: whether to find out where the answer comes from.

        Raises:
            ConfigurationError: the question is empty.
            ContextOverflowError: it does not fit; nothing was read.
            CancelledError: `cancel` was set.
        """
        if not question.strip():
            raise ConfigurationError("The question is empty; ask something.")
        options = options or self.options
        prompt = self.model.tokenizer.encode_messages(
            build_messages(self.packed, question, history)
        )
        if len(prompt.token_ids) + options.max_new_tokens > self.model.context_window:
            self.plan(question, history=history, options=options).check()  # says what is too much
        started = time.monotonic()
        self.read(progress=progress, cancel=cancel, timeout=options.timeout, options=options)
        if options.timeout is not None:  # what is left of it, were it next to nothing
            left = max(options.timeout - (time.monotonic() - started), 1e-3)
            options = replace(options, timeout=left)
        base = locate_context(prompt, self.packed)
        spans = [(start + base, end + base) for start, end in self._resolver.sentence_spans]
        generation = self.model.stream(
            prompt.token_ids,
            options,
            layout=self._layout(prompt),
            progress=progress,
            cancel=cancel,
            attend_to=token_ranges(prompt.offsets, spans) if cite else (),
        )
        return AnswerStream(question, generation, self._resolver, len(prompt.token_ids), cite=cite)

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        cite: bool = True,
    ) -> Answer:
        """The whole answer; arguments and errors as for `stream`."""
        with self.stream(
            question,
            history=history,
            options=options,
            progress=progress,
            cancel=cancel,
            cite=cite,
        ) as stream:
            return stream.answer

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        options: GenerationOptions | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        cite: bool = True,
    ) -> list[Answer]:
        """Answers several questions together, which is faster than one after the other.

        The documents are read once, shared in memory, and the answers decoded side by side; each
        is the one that `ask` gives. Arguments and errors as for `stream`; the first error ends all.

        Returns:
            The answers in the order of the questions.
        """
        streams: list[AnswerStream] = []
        try:
            for question in questions:
                streams.append(
                    self.stream(
                        question, options=options, progress=progress, cancel=cancel, cite=cite
                    )
                )
            for stream in streams:
                stream.start()
            return [stream.answer for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    async def aask(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        cite: bool = True,
    ) -> Answer:
        """As `ask`, for asyncio: cancelling the task stops the model."""
        async with await self.astream(
            question,
            history=history,
            options=options,
            progress=progress,
            cancel=cancel,
            cite=cite,
        ) as stream:
            return await stream.answered()

    async def astream(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        cite: bool = True,
    ) -> AnswerStream:
        """As `stream`, for asyncio. The documents are read in a thread; `progress` is called there.

        Cancelling the task while they are read stops the reading at its next window.
        """
        stopped = _EitherSignal(cancel)
        try:
            return await asyncio.to_thread(
                self.stream,
                question,
                history=history,
                options=options,
                progress=progress,
                cancel=stopped,
                cite=cite,
            )
        except asyncio.CancelledError:
            stopped.set()
            raise


class _EitherSignal:
    """A cancel signal of our own beside the caller's."""

    def __init__(self, other: CancelSignal | None) -> None:
        self._other = other
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set or (self._other is not None and self._other.is_set())
