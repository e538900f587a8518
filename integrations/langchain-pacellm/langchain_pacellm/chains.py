"""A chain that reads whole documents once and answers questions about them with checked citations.

Knows LangChain's runnables. Reading, answering and citing are `pacellm_rag.DocumentReader`'s;
what goes in and comes out is in `chain_answers`, how it is told to callbacks in `answer_run`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.utils import AddableDict

from langchain_pacellm.answer_run import AnswerRun, AsyncAnswerRun
from langchain_pacellm.chain_answers import (
    OPTION_NAMES,
    WholeDocumentAnswer,
    WholeDocumentQuestion,
    answer_usage,
    answered_from,
    call_options,
    question_and_history,
)
from langchain_pacellm.errors import langchain_errors
from langchain_pacellm.pages import DocumentLike, WholeDocuments, gather_documents
from pacellm_rag import DocumentReader, GenerationOptions
from pacellm_rag.context.markers import MarkerFilter
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import TextModel

__all__ = ["WholeDocumentChain", "create_whole_document_chain"]

_DEFAULT_LIMITS = DocumentLimits()
_DEFAULT_OPTIONS = GenerationOptions()


_Question = str | WholeDocumentQuestion


def create_whole_document_chain(
    model: BaseChatModel | TextModel,
    documents: Iterable[DocumentLike] | DocumentLike,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    timeout: float | None = None,
    cite: bool = True,
    password: str | None = None,
    limits: DocumentLimits = _DEFAULT_LIMITS,
    name: str = "WholeDocumentChain",
) -> WholeDocumentChain:
    """A chain that answers questions about documents, read whole and once.

        chain = create_whole_document_chain(ChatPaceLLM(), PacePDFLoader("report.pdf").load())
        chain.invoke("Who signed the report?")["citations"]

    Files are parsed, weights loaded and documents read with the first question; later questions,
    also concurrent ones, go on from there. Each of the options from `max_tokens` to `timeout` may
    be given to a call, too, or bound: `chain.bind(max_tokens=50)`.

    Args:
        model: a `ChatPaceLLM`, or a model of `pacellm_rag`.
        documents: pages from a loader, documents of `pacellm_rag`, or paths, in any mixture. An
            iterator is read to its end at once.
        max_tokens: most tokens of an answer; without it the chat model's own. So for all options.
        temperature: 0 decodes greedily.
        top_p: sample among the most likely tokens that together hold this probability.
        top_k: sample among this many most likely tokens.
        seed: of the sampler.
        stop: strings that end an answer.
        timeout: seconds for one answer, the reading of the documents included.
        cite: whether to find out where an answer comes from.
        password: for encrypted PDFs among the paths.
        limits: what parsing each path may cost.
        name: what traces call the chain.

    Raises:
        ConfigurationError: there are no documents, `model` is another chat model than ours, or
            an option is out of range.
    """
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
        "timeout": timeout,
    }
    return WholeDocumentChain(
        model,
        documents,
        options=call_options(_model_options(model), options),
        cite=cite,
        password=password,
        limits=limits,
        name=name,
    )


class WholeDocumentChain(Runnable[_Question, WholeDocumentAnswer]):
    """Answers questions about whole documents; `create_whole_document_chain` makes it.

    Takes a question, or a dict with `question` (or `input`) and `chat_history`, and gives a
    `WholeDocumentAnswer`. Streams give the words as `{"answer": piece}` and the rest in a last
    chunk; all chunks together, added, are what `invoke` gives. Closing a stream, or cancelling
    its task, stops the model.

    Callbacks see a chain, and in it a chat model with its messages, tokens and usage: so tokens
    reach `astream_events` and LangGraph's message streams, and usage reaches its counters.

    Args:
        model: as for `create_whole_document_chain`, as all of these.
        documents: what to read.
        options: how answers are decoded.
        cite: whether to find out where an answer comes from.
        password: for encrypted PDFs among the paths.
        limits: what parsing each path may cost.
        name: what traces call the chain.
    """

    def __init__(
        self,
        model: BaseChatModel | TextModel,
        documents: Iterable[DocumentLike] | DocumentLike,
        *,
        options: GenerationOptions = _DEFAULT_OPTIONS,
        cite: bool = True,
        password: str | None = None,
        limits: DocumentLimits = _DEFAULT_LIMITS,
        name: str = "WholeDocumentChain",
    ) -> None:
        if isinstance(model, Runnable) and not hasattr(type(model), "text_model"):
            raise ConfigurationError(
                f"model is a {type(model).__name__}; whole documents are read by a ChatPaceLLM, as "
                "it is and with nothing bound to it, or by a model of pacellm_rag. Pass options "
                "such as max_tokens to the chain."
            )
        single = isinstance(documents, (str, Document)) or not isinstance(documents, Iterable)
        self._given = cast(
            "tuple[DocumentLike, ...]", (documents,) if single else tuple(cast("Any", documents))
        )
        if not self._given:
            raise ConfigurationError("There are no documents to read; pass at least one.")
        self._model = model
        self._options = options
        self._cite = cite
        self._load = partial(gather_documents, password=password, limits=limits)
        self._opening = threading.Lock()
        self._opened: tuple[WholeDocuments, DocumentReader] | None = None
        self.name = name

    @property
    def InputType(self) -> Any:
        """A question, or a question in a dict."""
        return _Question

    @property
    def OutputType(self) -> type[WholeDocumentAnswer]:
        """The answer, in a dict."""
        return WholeDocumentAnswer

    def invoke(
        self, input: _Question, config: RunnableConfig | None = None, **kwargs: Any
    ) -> WholeDocumentAnswer:
        """The whole answer; `kwargs` are options, as for `create_whole_document_chain`.

        Raises:
            ConfigurationError: there is no question, or an option is out of range.
            langchain_core.exceptions.ContextOverflowError: it does not fit the model's window.
            PaceLLMError: a document can not be read, or the model not be used.
        """

        def answer(
            given: _Question, run_manager: CallbackManagerForChainRun, **options: Any
        ) -> WholeDocumentAnswer:
            with ExitStack() as opened:
                return _sum(self._answer(opened, iter([given]), run_manager, **options))

        return self._call_with_config(cast("Any", answer), input, config, **kwargs)

    async def ainvoke(
        self, input: _Question, config: RunnableConfig | None = None, **kwargs: Any
    ) -> WholeDocumentAnswer:
        """As `invoke`; cancelling the task stops the model."""

        async def answer(
            given: _Question, run_manager: AsyncCallbackManagerForChainRun, **options: Any
        ) -> WholeDocumentAnswer:
            pieces = self._aanswer(_one(given), run_manager, **options)
            return _sum([piece async for piece in pieces])

        return await self._acall_with_config(cast("Any", answer), input, config, **kwargs)

    def stream(
        self, input: _Question, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[WholeDocumentAnswer]:
        """The answer in pieces, and at last the rest; arguments and errors as for `invoke`."""
        with ExitStack() as opened:
            answer = cast("Any", partial(self._answer, opened))
            yield from self._transform_stream_with_config(iter([input]), answer, config, **kwargs)

    async def astream(
        self, input: _Question, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[WholeDocumentAnswer]:
        """As `stream`; cancelling the task stops the model."""
        answer = cast("Any", self._aanswer)
        pieces = self._atransform_stream_with_config(_one(input), answer, config, **kwargs)
        async with aclosing(cast("AsyncGenerator[WholeDocumentAnswer, None]", pieces)) as closing:
            async for piece in closing:
                yield piece

    def _answer(
        self,
        opened: ExitStack,
        inputs: Iterator[_Question],
        run_manager: CallbackManagerForChainRun,
        **options: Any,
    ) -> Iterator[AddableDict]:
        (given,) = inputs
        with langchain_errors():
            question, history = question_and_history(given)
            changed = call_options(self._options, options)
            documents, reader = self._open()
        known, words = reader.receipt is not None, MarkerFilter()
        with AnswerRun(run_manager, reader, question, history) as run, langchain_errors():
            stream = opened.enter_context(
                reader.stream(question, history=history, options=changed, cite=self._cite)
            )
            for piece in stream:
                if text := words.feed(piece):
                    run.token(text)
                    yield AddableDict(answer=text)
            answer = stream.answer
            usage = answer_usage(answer, None if known else reader.receipt)
            tail = words.flush()
            run.end(tail, answer, usage)
        yield AddableDict(answer=tail, **answered_from(answer, usage, documents, reader))

    async def _aanswer(
        self,
        inputs: AsyncIterator[_Question],
        run_manager: AsyncCallbackManagerForChainRun,
        **options: Any,
    ) -> AsyncIterator[AddableDict]:
        given = await anext(inputs)
        with langchain_errors():
            question, history = question_and_history(given)
            changed = call_options(self._options, options)
            opened = self._opened
            if opened is None:
                opened = await asyncio.to_thread(self._open)
            documents, reader = opened
        known, words = reader.receipt is not None, MarkerFilter()
        async with AsyncAnswerRun(run_manager, reader, question, history) as run:
            with langchain_errors():
                async with await reader.astream(
                    question, history=history, options=changed, cite=self._cite
                ) as stream:
                    async for piece in stream:
                        if text := words.feed(piece):
                            await run.token(text)
                            yield AddableDict(answer=text)
                    answer = await stream.answered()
            usage = answer_usage(answer, None if known else reader.receipt)
            tail = words.flush()
            await run.end(tail, answer, usage)
        yield AddableDict(answer=tail, **answered_from(answer, usage, documents, reader))

    def _open(self) -> tuple[WholeDocuments, DocumentReader]:
        """The documents and what reads them, made by the first caller while others wait."""
        with self._opening:
            if self._opened is None:
                documents = self._load(self._given)
                model = self._model
                if isinstance(model, BaseChatModel):
                    model = cast("Any", model).text_model
                reader = DocumentReader(cast("TextModel", model), documents.documents)
                self._opened = documents, reader
            return self._opened


def _model_options(model: BaseChatModel | TextModel) -> GenerationOptions:
    """What a chat model's fields say of decoding."""
    if not isinstance(model, BaseChatModel):
        return _DEFAULT_OPTIONS
    return call_options(_DEFAULT_OPTIONS, {n: getattr(model, n, None) for n in OPTION_NAMES})


async def _one(given: _Question) -> AsyncIterator[_Question]:
    yield given


def _sum(pieces: Iterable[AddableDict]) -> WholeDocumentAnswer:
    total = AddableDict()
    for piece in pieces:
        total += piece
    return cast("WholeDocumentAnswer", dict(total))
