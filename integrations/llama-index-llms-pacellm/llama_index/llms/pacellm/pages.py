"""LlamaIndex' nodes as whole documents, and citations of their pages as nodes again.

Knows what PaceReader, SimpleDirectoryReader and node parsers write into metadata. Knows nothing of
models or questions. The user's nodes are never changed; what is handed out are copies.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.vector_stores.types import FilterCondition, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from pacellm_rag.context.citations import Citation
from pacellm_rag.context.matching import find_quote
from pacellm_rag.documents import Document, LoosePage, documents_from_pages
from pacellm_rag.errors import ConfigurationError

__all__ = ["NodePages", "nodes_named", "nodes_passing", "pages_of_nodes"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodePages:
    """Whole documents made of nodes, and the way back from a page to its nodes.

    Attributes:
        documents: the documents, in the order of their first nodes.
        nodes: for each document the nodes of each page, by the page's number.
    """

    documents: tuple[Document, ...]
    nodes: tuple[Mapping[int, Sequence[BaseNode]], ...]

    def cited_node(self, citation: Citation) -> BaseNode:
        """The node that a citation points to: of its page's nodes, the one with the quote."""
        nodes = self.nodes[citation.document][citation.page]
        return next(
            (node for node in nodes if find_quote(citation.quote, _text(node)) is not None),
            nodes[0],
        )

    def sources(self, citations: Sequence[Citation]) -> list[NodeWithScore]:
        """Copies of the cited nodes, each once, with their citations' scores, in their order."""
        found: dict[str, NodeWithScore] = {}
        for citation in citations:
            node = self.cited_node(citation)
            if node.node_id not in found:
                copied = node.model_copy(deep=True)
                found[node.node_id] = NodeWithScore(node=copied, score=citation.score)
        return list(found.values())


def pages_of_nodes(nodes: Iterable[BaseNode]) -> NodePages:
    """Puts nodes together into whole documents.

    Nodes are of one document when they share the metadata `document_id`, else `file_path`, else
    the document that they name as their source. Pages are ordered by the metadata `page_number`;
    where a node has none, they stay as they came, and neighbours with the same `page_label` are
    one page. A node that comes twice is taken once.

    Raises:
        ConfigurationError: there is no node, or something else than a node.
    """
    groups: dict[str, list[BaseNode]] = {}
    seen: set[str] = set()
    for position, node in enumerate(nodes):
        if not isinstance(node, BaseNode):
            raise ConfigurationError(
                f"Item {position} of the documents is a {type(node).__name__}; give documents or "
                "nodes, such as PaceReader().load_data(...)."
            )
        if node.node_id in seen:
            _log.info("The node %r was left out: it comes twice.", node.node_id)
            continue
        seen.add(node.node_id)
        groups.setdefault(_document_key(node), []).append(node)
    if not groups:
        raise ConfigurationError("There is no document to read; give at least one.")
    loose: list[LoosePage] = []
    places: list[dict[int, list[BaseNode]]] = []
    for index, (key, group) in enumerate(groups.items()):
        title = next((t for t in map(_title, group) if t), f"Document {index + 1}")
        place: dict[int, list[BaseNode]] = {}
        for node, number in zip(group, _page_numbers(group), strict=True):
            place.setdefault(number, []).append(node)
            source, label = _written(node, "file_path"), _written(node, "page_label")
            loose.append(LoosePage(key, _text(node), title, source, number, label or None))
        places.append(place)
    return NodePages(documents_from_pages(loose), tuple(places))


def nodes_passing(nodes: Iterable[BaseNode], filters: MetadataFilters) -> list[BaseNode]:
    """The nodes whose metadata passes, in their order.

    Raises:
        ConfigurationError: none does.
    """
    every = list(nodes)
    passing = [node for node in every if _passes(node.metadata, filters)]
    if not passing:
        raise ConfigurationError(
            f"None of {len(every)} nodes passes the filters ({filters.model_dump_json()}); check "
            "their keys and values against the nodes' metadata."
        )
    return passing


def nodes_named(nodes: Iterable[BaseNode], names: Sequence[str]) -> list[BaseNode]:
    """The nodes of the documents that are named, in the nodes' order.

    Args:
        nodes: all there are.
        names: titles, file names, paths or ids of documents.

    Raises:
        ConfigurationError: there is no document of some name.
    """
    every = list(nodes)
    known: dict[str, set[str]] = {}  # document -> what it is called
    for node in every:
        known.setdefault(_document_key(node), set()).update(_names(node))
    missing = [name for name in names if not any(name in called for called in known.values())]
    if missing:
        titles = {_document_key(node): _title(node) or node.node_id for node in reversed(every)}
        raise ConfigurationError(
            f"There is no document {missing[0]!r}; there are: {', '.join(sorted(titles.values()))}."
        )
    chosen = {key for key, called in known.items() if called.intersection(names)}
    return [node for node in every if _document_key(node) in chosen]


def _text(node: BaseNode) -> str:
    return _speakable(node.get_content(MetadataMode.NONE))


def _speakable(text: str) -> str:
    """A text without halves of characters, which no tokenizer takes; its length stays."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _written(node: BaseNode, key: str) -> str:
    """A field of the metadata as text; "" where it is missing or empty."""
    value = node.metadata.get(key)
    return "" if value is None else str(value)


def _document_key(node: BaseNode) -> str:
    by_metadata = _written(node, "document_id") or _written(node, "file_path")
    return by_metadata or node.ref_doc_id or node.node_id


def _title(node: BaseNode) -> str:
    file = _written(node, "file_name") or PurePath(_written(node, "file_path")).name
    return _speakable(_written(node, "title") or file)


def _names(node: BaseNode) -> set[str]:
    fields = ("title", "file_name", "file_path", "document_id")
    ids = (node.ref_doc_id or "", node.node_id, _title(node))
    return {name for name in (*(_written(node, field) for field in fields), *ids) if name}


def _page_numbers(group: Sequence[BaseNode]) -> list[int]:
    """The page of each node of a document, from 1."""
    numbers = [_number(node) for node in group]
    known = [number for number in numbers if number is not None]
    if len(known) == len(group):
        return known
    first = [True]
    for before, after in itertools.pairwise(group):
        label = _written(after, "page_label")
        first.append(not label or label != _written(before, "page_label"))
    return list(itertools.accumulate(map(int, first)))


def _number(node: BaseNode) -> int | None:
    written = _written(node, "page_number")
    return int(written) if written.isascii() and written.isdecimal() and int(written) else None


def _passes(metadata: dict[str, Any], filters: MetadataFilters) -> bool:
    # LlamaIndex' own function refuses filters within filters
    results = (
        _passes(metadata, one)
        if isinstance(one, MetadataFilters)
        else build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[one]))("")
        for one in filters.filters
    )
    if not filters.filters or filters.condition in (None, FilterCondition.AND):
        return all(results)
    if filters.condition == FilterCondition.OR:
        return any(results)
    return not any(results)
