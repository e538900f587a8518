"""A query engine that reads all its documents whole, once, and cites the pages of its answers.

Knows LlamaIndex' query engines and their events. How documents are made of nodes, read and cited
is the business of the modules beside it and of pacellm_rag.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.synthesis import (
    SynthesizeEndEvent,
    SynthesizeStartEvent,
)
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.settings import Settings
from llama_index.core.types import TokenAsyncGen, TokenGen
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.llms.pacellm.asking import Asking
from llama_index.llms.pacellm.whole_documents import DocumentLLM, WholeDocuments
from pacellm_rag.answer import Answer
from pacellm_rag.documents import Document
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.reader import DocumentReader

__all__ = ["WholeDocumentQueryEngine"]

_dispatcher = get_dispatcher(__name__)


class WholeDocumentQueryEngine(BaseQueryEngine):
    """Answers from whole documents, without chunks, embeddings or an index.

        engine = WholeDocumentQueryEngine.from_documents(PaceReader().load_data("report.pdf"), llm)
        response = engine.query("Who signed the report?")

    All pages of all documents are put into one prompt, which is read once: later questions read
    only themselves. `response.source_nodes` are the pages that the answer rests on, as copies of
    the nodes given, with the share of the evidence that points to them as score.
    `response.metadata` has

    * `citations`: title, page, page_label, quote, verified, score, found_by and node_id of each;
    * `usage`: prompt_tokens, tokens_reused, tokens_read, completion_tokens;
    * `finish_reason`: "stop", or "length" for an answer that was cut off;
    * `receipt`: what has been read, pages without text included;
    * `timings`: seconds.

    Streamed responses get them when the stream has ended; closing its generator stops the model.
    Documents that do not fit the model's window raise `pacellm_rag.ContextOverflowError`, which
    says how many tokens each takes; nothing is ever cut.

    Args:
        llm: a PaceLLM or a `pacellm_rag.TextModel`; None takes `Settings.llm`.
        nodes: documents, pages (`page_nodes`) or chunks, in the order in which to read them.
        filters: which nodes to read, by their metadata; None reads all.
        streaming: whether responses are streamed.
        options: how to decode; None takes the llm's own settings.
        callback_manager: None takes `Settings.callback_manager`.

    Raises:
        ConfigurationError: there is no node, or the llm can not read documents.
    """

    def __init__(
        self,
        llm: DocumentLLM | None,
        nodes: Iterable[BaseNode],
        *,
        filters: MetadataFilters | None = None,
        streaming: bool = False,
        options: GenerationOptions | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager or Settings.callback_manager)
        self.streaming = streaming
        self._whole = WholeDocuments(llm, nodes, filters=filters, options=options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        llm: DocumentLLM | None = None,
        *,
        filters: MetadataFilters | None = None,
        streaming: bool = False,
        options: GenerationOptions | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> WholeDocumentQueryEngine:
        """An engine over what a reader loaded; arguments and errors as for the class."""
        return cls(
            llm,
            documents,
            filters=filters,
            streaming=streaming,
            options=options,
            callback_manager=callback_manager,
        )

    def select(
        self, *names: str, filters: MetadataFilters | None = None
    ) -> WholeDocumentQueryEngine:
        """An engine over some of the documents, which go on being read only once.

        Documents that stand first among all and first among the chosen are not read again.

        Args:
            names: titles, file names, paths or ids of documents; none chooses all.
            filters: which of their nodes to read; None reads all.

        Raises:
            ConfigurationError: a name is unknown, or no node passes the filters.
        """
        return WholeDocumentQueryEngine(
            self._whole.llm,
            self._whole.named(names),
            filters=filters,
            streaming=self.streaming,
            options=self._whole.given_options,
            callback_manager=self.callback_manager,
        )

    @property
    def documents(self) -> tuple[Document, ...]:
        """What is read, in this order."""
        return self._whole.pages.documents

    @property
    def reader(self) -> DocumentReader:
        """The documents' reader, for plans and receipts; loads the model."""
        return self._whole.reader

    def close(self) -> None:
        """Lets the memory of the documents go, once others need it. Querying reads them again."""
        self._whole.close()

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with (
            self.callback_manager.event(CBEventType.QUERY, payload=payload) as query_event,
            self.callback_manager.event(CBEventType.SYNTHESIZE, payload=payload) as event,
        ):
            _dispatcher.event(SynthesizeStartEvent(query=query_bundle))
            asking = self._asking(query_bundle, self._whole.reader)
            response = self._stream(asking) if self.streaming else self._response(asking.ask())
            event.on_end(payload={EventPayload.RESPONSE: response})
            query_event.on_end(payload={EventPayload.RESPONSE: response})
        _dispatcher.event(SynthesizeEndEvent(query=query_bundle, response=response))
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with (
            self.callback_manager.event(CBEventType.QUERY, payload=payload) as query_event,
            self.callback_manager.event(CBEventType.SYNTHESIZE, payload=payload) as event,
        ):
            _dispatcher.event(SynthesizeStartEvent(query=query_bundle))
            asking = self._asking(query_bundle, await self._whole.ready())
            response: RESPONSE_TYPE
            if self.streaming:
                response = await self._astream(asking)
            else:
                response = self._response(await asking.aask())
            event.on_end(payload={EventPayload.RESPONSE: response})
            query_event.on_end(payload={EventPayload.RESPONSE: response})
        _dispatcher.event(SynthesizeEndEvent(query=query_bundle, response=response))
        return response

    def _asking(self, query_bundle: QueryBundle, reader: DocumentReader) -> Asking:
        return self._whole.ask(
            query_bundle.query_str, reader=reader, callback_manager=self.callback_manager
        )

    def _response(self, answer: Answer) -> Response:
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {}
        self._whole.tell(answer, sources, metadata)
        return Response(answer.text, sources, metadata)

    def _stream(self, asking: Asking) -> StreamingResponse:
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {}
        responses = asking.stream()  # here, so that an overflow is raised by query()

        # knows the lists and not the response: one that nobody holds must go, and its stream too
        def pieces() -> TokenGen:
            try:
                for response in responses:
                    if response.delta:
                        yield response.delta
                self._whole.tell(asking.ended(), sources, metadata)
            finally:
                asking.close()
                responses.close()

        return StreamingResponse(pieces(), sources, metadata)

    async def _astream(self, asking: Asking) -> AsyncStreamingResponse:
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {}
        responses = await asking.astream()

        async def pieces() -> TokenAsyncGen:
            try:
                async for response in responses:
                    if response.delta:
                        yield response.delta
                self._whole.tell(asking.ended(), sources, metadata)
            finally:
                asking.close()
                await responses.aclose()

        return AsyncStreamingResponse(pieces(), sources, metadata)
