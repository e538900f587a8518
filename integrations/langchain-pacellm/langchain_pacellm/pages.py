"""Pages as LangChain hands them around, and the whole documents that they make.

Knows LangChain's documents and the metadata of `PacePDFLoader` and of other loaders. Knows nothing
of models, of ranking or of prompts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Union

from langchain_core.documents import Document

import pacellm_rag.documents as files
from pacellm_rag.documents import DocumentLimits, LoosePage
from pacellm_rag.errors import ConfigurationError

__all__ = ["DocumentLike", "WholeDocuments", "document_keys", "gather_documents"]

DocumentLike = Union[Document, files.Document, str, "os.PathLike[str]"]
"""A page or a text of LangChain's, a document of `pacellm_rag`'s, or a path."""

_Slot = list[Document] | files.Document | str  # pages, a whole document, a path
_DEFAULT_LIMITS = DocumentLimits()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WholeDocuments:
    """Whole documents, and what LangChain gave of each.

    Attributes:
        documents: in the order in which their first parts came.
        given: for each document its LangChain documents by page number, in the order of the pages;
            empty for documents that did not come through LangChain.
    """

    documents: tuple[files.Document, ...]
    given: tuple[Mapping[int, tuple[Document, ...]], ...]

    def page(self, document: int, number: int) -> Document:
        """A page as a LangChain document, with the metadata of `PacePDFLoader`.

        Metadata that came with the page goes before it.

        Args:
            document: index of the document, from 0.
            number: the page's physical number, from 1.
        """
        whole = self.documents[document]
        page = next(page for page in whole.pages if page.number == number)
        parts = self.given[document].get(number, ())
        own: dict[str, Any] = {
            **self.metadata(document),
            "page": number - 1,
            "page_number": number,
            "page_label": page.label,
        }
        if parts:
            came = parts[0].metadata.items()
            own.update({key: value for key, value in came if value not in (None, "")})
        return Document(page.text, id=parts[0].id if len(parts) == 1 else None, metadata=own)

    def metadata(self, document: int) -> dict[str, Any]:
        """What all pages of a document say about it."""
        whole = self.documents[document]
        return {
            "source": whole.source,
            "title": whole.title,
            "total_pages": len(whole.pages),
            "document_id": whole.id,
        }


def gather_documents(
    documents: Iterable[DocumentLike] | DocumentLike,
    *,
    password: str | None = None,
    limits: DocumentLimits = _DEFAULT_LIMITS,
) -> WholeDocuments:
    """Whole documents of pages, documents and paths, in any mixture.

    LangChain documents with the same `document_id`, else the same `source`, in their metadata are
    pages of one document; one with neither is a document of its own. A document that comes twice,
    page for page the same, is taken once.

    Args:
        documents: what to put together.
        password: for encrypted PDFs among the paths.
        limits: what reading each path may cost.

    Raises:
        ConfigurationError: something is neither a document nor a path.
        PaceLLMError: a file can not be read, as for `pacellm_rag.load_documents`.
    """
    if isinstance(documents, (Document, files.Document, str, os.PathLike)):
        documents = (documents,)
    slots: dict[tuple[str, object], _Slot] = {}
    for index, item in enumerate(documents):
        if isinstance(item, Document):
            keys = document_keys(item)
            group = slots.setdefault(("pages", keys[0]) if keys else ("text", index), [])
            if isinstance(group, list):
                group.append(item)
        elif isinstance(item, files.Document):
            slots["document", index] = item
        elif isinstance(item, (str, os.PathLike)):
            path = os.fsdecode(item)
            slots["path", path] = path
        else:
            raise ConfigurationError(
                f"Document {index + 1} is a {type(item).__name__}; pass LangChain documents, "
                "documents of pacellm_rag, or paths."
            )
    return _together(list(slots.values()), password, limits)


def _together(
    slots: Sequence[_Slot], password: str | None, limits: DocumentLimits
) -> WholeDocuments:
    paths = [slot for slot in slots if isinstance(slot, str)]
    loaded = {
        document.source: document
        for document in files.load_documents(paths, password=password, limits=limits)
    }
    found: list[files.Document] = []
    given: list[Mapping[int, tuple[Document, ...]]] = []
    for slot in slots:
        parts: Mapping[int, tuple[Document, ...]] = {}
        if isinstance(slot, list):
            document, parts = _of_pages(slot, len(found) + 1)
        elif isinstance(slot, files.Document):
            document = slot
        elif slot in loaded:
            document = loaded[slot]
            for warning in document.warnings:
                _log.warning("%r: %s", document.source, warning.message)
        else:
            continue  # another path has the same content, which that document's warnings tell
        if any((document.id, document.pages) == (other.id, other.pages) for other in found):
            _log.info("%r was left out: it comes twice.", document.title)
            continue
        found.append(document)
        given.append(parts)
    return WholeDocuments(tuple(found), tuple(given))


def _of_pages(
    pages: Sequence[Document], place: int
) -> tuple[files.Document, Mapping[int, tuple[Document, ...]]]:
    """A document of its pages, and the pages by number; a page that comes twice is taken once."""
    numbers = [_page_number(page.metadata) for page in pages]
    known = [number for number in numbers if number is not None]
    if len(known) < len(pages):
        known = list(range(1, len(pages) + 1))
    parts: dict[int, tuple[Document, ...]] = dict.fromkeys(sorted(known), ())
    for number, page in zip(known, pages, strict=True):
        if all(page.page_content != other.page_content for other in parts[number]):
            parts[number] += (page,)
    keys = document_keys(pages[0])
    (document,) = files.documents_from_pages(
        LoosePage(
            document=keys[0] if keys else f"Document {place}",
            text=page.page_content,
            title=_title(page.metadata),
            source=str(page.metadata.get("source") or ""),
            number=number,
            label=_label(page.metadata),
        )
        for number, group in parts.items()
        for page in group
    )
    return document, parts


def document_keys(page: Document) -> tuple[str, ...]:
    """What tells the document that a page belongs to, the surest first; nothing tells it: empty."""
    named = (page.metadata.get(key) for key in ("document_id", "source", "file_path"))
    return tuple(str(value) for value in named if value not in (None, ""))


def _page_number(metadata: Mapping[str, Any]) -> int | None:
    """The physical page number, from 1. LangChain's loaders count `page` from 0."""
    for key, first in (("page_number", 1), ("page", 0)):
        value = metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= first:
            return value - first + 1
    return None


def _label(metadata: Mapping[str, Any]) -> str | None:
    label = metadata.get("page_label")
    return None if label in (None, "") else str(label)


def _title(metadata: Mapping[str, Any]) -> str:
    """The title, else the file's name without suffix, else an address as it is."""
    title, source = metadata.get("title"), str(metadata.get("source") or "")
    if isinstance(title, str) and title.strip():
        return title
    return source if "://" in source else PurePath(source).stem
