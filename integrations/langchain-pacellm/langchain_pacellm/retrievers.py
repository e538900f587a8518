"""A retriever of whole documents: ranks them, and gives as many as a budget of tokens allows.

Knows LangChain's retriever interface. Of models it knows that they count tokens; how pages make
documents is in `pages`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import run_in_executor
from pydantic import Field, PrivateAttr, field_validator, model_validator
from typing_extensions import Self

from langchain_pacellm.errors import langchain_errors
from langchain_pacellm.pages import WholeDocuments, document_keys, gather_documents
from pacellm_rag.context.lexical import BM25, words_of
from pacellm_rag.context.packing import pack_context
from pacellm_rag.errors import ConfigurationError, ContextOverflowError

__all__ = ["WholeDocumentRetriever"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ranked:
    """Indices of documents, the best first, and their scores; `unranked` were not hit."""

    order: tuple[int, ...]
    scores: tuple[float, ...]
    unranked: tuple[int, ...] = ()


@dataclass
class _Library:
    """The documents, laid out for reading and for ranking."""

    made_of: Sequence[Document]
    whole: WholeDocuments
    texts: tuple[str, ...]
    pages: BM25
    page_documents: tuple[int, ...]
    keys: dict[str, int]
    tokens: dict[int, int] = field(default_factory=dict)


class WholeDocumentRetriever(BaseRetriever):
    """Ranks whole documents for a question and returns them whole, never a piece of one.

        retriever = WholeDocumentRetriever(
            documents=PacePDFLoader(paths).load(), model=model, max_tokens=24_000
        )

    Documents are ranked by their best page (BM25; between equals by their second best, and so
    on), or by the best hit of another `retriever`. They are taken from the best on: up to `k`,
    and as long as they fit into `max_tokens`. One that does not fit is left out, and a smaller
    one behind it may still be taken. Documents that share no word with the question come last
    and are taken where there is room; what another `retriever` does not hit is left out.

    Results come **in the order of `documents`**, whatever their rank, and a document's text is
    the same in every result: prompts that begin with the same documents begin with the same
    tokens, which a model reads once.

    A result is a document as PaceLLM's reader lays it out: its title, then each page behind a
    marker such as `[D2 p5]`, page 5 of the second of `documents`. Its metadata: `source`,
    `title`, `document_id`, `total_pages`, `document_number` (as in the markers), `page_labels`
    (the number printed on each page, by physical number), and `rank` (from 1), `score` and
    `left_out`. With `as_pages`, a result is a page as it was given, with `rank`, `score`,
    `document_number` and `left_out` of its document in its metadata.

    `left_out` is in every result's metadata, and logged as a warning: one entry for each document
    that is not there, with `title`, `source`, `document_id` and `reason`: "budget", "k" or
    "no hit".
    """

    documents: Sequence[Document] = Field(repr=False)
    """Pages, mostly from `PacePDFLoader`; those with the same `document_id`, else the same
    `source`, in their metadata are one document."""

    k: int | None = Field(default=None, ge=1)
    """Most documents to return; `invoke(question, k=...)` overrides it."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of all documents returned; needs `model` or `count_tokens`."""

    count_tokens: Callable[[str], int] | None = Field(default=None, repr=False)
    """Counts the tokens of a text."""

    model: Any = Field(default=None, repr=False)
    """Counts tokens where `count_tokens` is not given: a chat model or a `pacellm_rag` model."""

    retriever: Runnable[str, list[Document]] | None = Field(default=None, repr=False)
    """Ranks documents by its hits, which may be pieces of them. Its hits must have the
    `document_id` or `source` of their document in their metadata."""

    as_pages: bool = False
    """Whether to return the pages of the chosen documents instead of one text for each."""

    _library: _Library | None = PrivateAttr(default=None)

    @field_validator("documents", mode="after")
    @classmethod
    def _some_documents(cls, documents: Sequence[Document]) -> Sequence[Document]:
        if not documents:
            raise ConfigurationError("There are no documents to retrieve; pass at least one.")
        return tuple(documents)

    @model_validator(mode="after")
    def _can_count(self) -> Self:
        # a chat model counts for certain, and its tokenizer need not be loaded yet
        if self.max_tokens is not None and not isinstance(self.model, BaseLanguageModel):
            self._counter()
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        hits = None
        if self.retriever is not None:
            hits = self.retriever.invoke(query, {"callbacks": run_manager.get_child()})
        return self._choose(query, hits, k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        hits = None
        if self.retriever is not None:
            hits = await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()})
        return await run_in_executor(None, self._choose, query, hits, k)

    def _choose(self, query: str, hits: Sequence[Document] | None, k: int | None) -> list[Document]:
        k = self.k if k is None else k
        if k is not None and k < 1:
            raise ConfigurationError(f"k is {k}; it must be 1 or more.")
        library = self._prepare()
        ranked = _by_words(library, query) if hits is None else _by_hits(library, hits)
        left = dict.fromkeys(ranked.unranked, "no hit")
        chosen: list[int] = []
        room = self.max_tokens
        for index in ranked.order:
            if k is not None and len(chosen) == k:
                left[index] = "k"
                continue
            if room is not None:
                tokens = self._tokens(library, index)
                if tokens > room:
                    left[index] = "budget"
                    continue
                room -= tokens
            chosen.append(index)
        self._tell(library, chosen, left)
        said = [
            {key: library.whole.metadata(i)[key] for key in ("title", "source", "document_id")}
            | {"reason": left[i]}
            for i in sorted(left)
        ]
        ranks = {index: rank for rank, index in enumerate(ranked.order, start=1)}
        results: list[Document] = []
        for index in sorted(chosen):
            more = {
                "document_number": index + 1,
                "rank": ranks[index],
                "score": ranked.scores[ranks[index] - 1],
                "left_out": said,
            }
            results.extend(_pages(library, index, more) if self.as_pages else ())
            results.extend(() if self.as_pages else [_whole(library, index, more)])
        return results

    def _tell(self, library: _Library, chosen: Sequence[int], left: dict[int, str]) -> None:
        """Says what is missing; nothing at all, for want of room, would be no answer."""
        names = {i: library.whole.documents[i].title for i in sorted(left)}
        dear = {names[i]: self._tokens(library, i) for i in names if left[i] == "budget"}
        if dear and not chosen:
            sizes = ", ".join(f"{title!r} has {tokens:,}" for title, tokens in dear.items())
            with langchain_errors():
                raise ContextOverflowError(
                    f"None of the documents found fits into max_tokens={self.max_tokens:,}: "
                    f"{sizes}. Documents are never cut; raise max_tokens, or pass fewer pages.",
                    needed_tokens=min(dear.values()),
                    available_tokens=self.max_tokens or 0,
                    document_tokens=dear,
                )
        if names:
            told = ", ".join(f"{name!r} ({left[i]})" for i, name in names.items())
            _log.warning("Left out: %s", told)

    def _prepare(self) -> _Library:
        library = self._library  # two callers may both make it, which does no harm
        if library is None or library.made_of is not self.documents:
            whole = gather_documents(self.documents)
            packed = pack_context(whole.documents)
            keys: dict[str, int] = {}
            for index, given in enumerate(whole.given):
                for page in (page for pages in given.values() for page in pages):
                    for key in (*document_keys(page), whole.documents[index].id):
                        keys.setdefault(key, index)
            library = self._library = _Library(
                made_of=self.documents,
                whole=whole,
                texts=tuple(packed.text[start:end].strip() for start, end in packed.document_spans),
                pages=BM25([packed.text[s.start : s.end] for s in packed.segments]),
                page_documents=tuple(segment.document for segment in packed.segments),
                keys=keys,
            )
        return library

    def _tokens(self, library: _Library, index: int) -> int:
        if index not in library.tokens:
            tokens = self._counter()(library.texts[index])
            if tokens < 1:  # LangChain's own counting does so where it can not load GPT-2
                raise ConfigurationError(
                    f"{library.whole.documents[index].title!r} is said to have {tokens} tokens. "
                    "Pass a count_tokens that counts, or a model that has its own tokenizer."
                )
            library.tokens[index] = tokens
        return library.tokens[index]

    def _counter(self) -> Callable[[str], int]:
        if self.count_tokens is not None:
            return self.count_tokens
        for tokenizer in ("prompt_tokenizer", "tokenizer"):
            count = getattr(getattr(self.model, tokenizer, None), "count_tokens", None)
            if callable(count):
                return count  # type: ignore[no-any-return]
        count = getattr(self.model, "get_num_tokens", None)
        if callable(count):
            return count  # type: ignore[no-any-return]
        raise ConfigurationError(
            f"max_tokens is {self.max_tokens}, but nothing counts tokens. Pass model=, the chat "
            "model that will read the documents, or count_tokens=, a function of a text."
        )


def _by_words(library: _Library, query: str) -> _Ranked:
    """All documents by the BM25 scores of their pages, the best page first."""
    scores: list[list[float]] = [[] for _ in library.texts]
    page_scores = library.pages.scores(words_of(query))
    for document, score in zip(library.page_documents, page_scores, strict=True):
        scores[document].append(score)
    for own in scores:
        own.sort(reverse=True)
    order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
    return _Ranked(tuple(order), tuple(max(scores[i], default=0.0) for i in order))


def _by_hits(library: _Library, hits: Sequence[Document]) -> _Ranked:
    """The documents that hits belong to, by their best; the score is one by the best's place."""
    places: dict[int, int] = {}
    strangers = 0
    for place, hit in enumerate(hits, start=1):
        known = [library.keys[key] for key in document_keys(hit) if key in library.keys]
        if known:
            places.setdefault(known[0], place)
        else:
            strangers += 1
    if strangers:
        _log.warning(
            "%d of %d hits belong to none of the documents: their metadata has no document_id or "
            "source of one.",
            strangers,
            len(hits),
        )
    unranked = tuple(i for i in range(len(library.texts)) if i not in places)
    return _Ranked(tuple(places), tuple(1 / place for place in places.values()), unranked)


def _whole(library: _Library, index: int, more: dict[str, Any]) -> Document:
    document = library.whole.documents[index]
    labels = {page.number: page.label for page in document.pages}
    return Document(
        library.texts[index],
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, document.id)),
        metadata={**library.whole.metadata(index), "page_labels": labels, **more},
    )


def _pages(library: _Library, index: int, more: dict[str, Any]) -> list[Document]:
    return [
        Document(page.page_content, id=page.id, metadata={**page.metadata, **more})
        for pages in library.whole.given[index].values()
        for page in pages
    ]
