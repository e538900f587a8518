"""Whole documents and the model that reads them: what the query engine and the chat engine share.

Knows how a language model's settings become options, how an answer becomes a response's sources
and metadata, and that the reader is made when it is first needed, since that loads the model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.llms.pacellm.asking import Asking
from llama_index.llms.pacellm.loading import SharedModelLLM
from llama_index.llms.pacellm.pages import (
    NodePages,
    nodes_named,
    nodes_passing,
    pages_of_nodes,
)
from pacellm_rag.answer import Answer
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import GenerationOptions, TextModel
from pacellm_rag.reader import DocumentReader

__all__ = ["DocumentLLM", "WholeDocuments"]


DocumentLLM = SharedModelLLM | TextModel
"""A PaceLLM, or a model as `pacellm_rag.load_model` gives it."""


class WholeDocuments:
    """Nodes as documents, and the model that reads them.

    Args:
        llm: a PaceLLM, or anything that is a `pacellm_rag.TextModel`; None takes `Settings.llm`.
        nodes: pages, chunks or documents.
        filters: which of the nodes to read, by their metadata; None reads all.
        options: how to decode; None takes the llm's own settings at each question.

    Raises:
        ConfigurationError: there is no node, or the llm can not read documents.
    """

    def __init__(
        self,
        llm: DocumentLLM | None,
        nodes: Iterable[BaseNode],
        *,
        filters: MetadataFilters | None = None,
        options: GenerationOptions | None = None,
    ) -> None:
        given: Any = Settings.llm if llm is None else llm
        if not isinstance(given, SharedModelLLM) and not hasattr(given, "prefill"):
            raise ConfigurationError(
                f"llm is a {type(given).__name__}, which can not read documents once and answer "
                "many questions; give a PaceLLM or a model from pacellm_rag.load_model()."
            )
        self.llm: DocumentLLM = given
        self.nodes = tuple(nodes)
        if filters is not None:
            self.nodes = tuple(nodes_passing(self.nodes, filters))
        self.pages: NodePages = pages_of_nodes(self.nodes)
        self.given_options = options
        self._reader: DocumentReader | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeDocuments:
        """Itself: nothing of it changes, and what has been read is shared."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the reader, which is made again where it is needed."""
        return {**self.__dict__, "_reader": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def named(self, names: Sequence[str]) -> Sequence[BaseNode]:
        """The nodes of some of the documents; of all where none is named.

        Raises:
            ConfigurationError: a name is unknown.
        """
        return nodes_named(self.nodes, names) if names else self.nodes

    @property
    def options(self) -> GenerationOptions:
        """How the next answer is decoded."""
        if self.given_options is not None:
            return self.given_options
        if isinstance(self.llm, SharedModelLLM):
            return _options_of(self.llm)
        return GenerationOptions()

    @property
    def reader(self) -> DocumentReader:
        """The documents' reader; the first time, the model is loaded where it is not."""
        with self._lock:
            if self._reader is None:
                llm, documents = self.llm, self.pages.documents
                model = llm.text_model if isinstance(llm, SharedModelLLM) else llm
                self._reader = DocumentReader(model, documents)
            self._reader.options = self.options  # the llm's settings may have changed since
            return self._reader

    async def ready(self) -> DocumentReader:
        """As `reader`, without holding up the event loop."""
        if self._reader is None:
            await asyncio.to_thread(lambda: self.reader)
        return self.reader

    def close(self) -> None:
        """Lets the memory of the documents go, once others need it. Asking reads them again."""
        if self._reader is not None:
            self._reader.close()

    def ask(
        self,
        question: str,
        *,
        reader: DocumentReader,
        callback_manager: CallbackManager,
        history: Sequence[Message] = (),
        instructions: str = "",
    ) -> Asking:
        """A question over the documents, not asked yet."""
        if isinstance(self.llm, SharedModelLLM):
            payload = self.llm.to_payload()
        else:
            payload = {"class_name": type(self.llm).__name__, "model_name": reader.model.name}
        return Asking(
            reader,
            question,
            options=self.options,
            history=history,
            instructions=instructions,
            payload=payload,
            callback_manager=callback_manager,
            rate_limiter=getattr(self.llm, "rate_limiter", None),
        )

    def tell(self, answer: Answer, sources: list[NodeWithScore], metadata: dict[str, Any]) -> None:
        """Writes an answer's cited nodes and what is known of it into a response's own fields."""
        sources.extend(self.pages.sources(answer.citations))
        receipt = self._reader.receipt if self._reader is not None else None
        metadata.update(
            citations=[
                {
                    "title": citation.title,
                    "page": citation.page,
                    "page_label": citation.label,
                    "quote": citation.quote,
                    "verified": citation.verified,
                    "score": citation.score,
                    "found_by": citation.source,
                    "node_id": self.pages.cited_node(citation).node_id,
                }
                for citation in answer.citations
            ],
            usage=asdict(answer.usage),
            timings=asdict(answer.timings),
            finish_reason=answer.finish_reason,
            receipt=asdict(receipt) if receipt is not None else None,
        )


def _options_of(llm: SharedModelLLM) -> GenerationOptions:
    return GenerationOptions(
        max_new_tokens=llm.max_tokens,
        temperature=llm.temperature,
        top_p=llm.top_p,
        top_k=llm.top_k,
        seed=llm.seed,
        stop=tuple(llm.stop),
        timeout=llm.timeout,
    )
