"""The documents that a question reads: the ticked ones, in order, cut to the pages to be kept.

Knows the library and documents; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pacellm_rag.documents import Document
from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.library import Library, StoredDocument

__all__ = ["ChosenDocument", "DocumentKey", "cut_pages", "key_of", "open_document"]

DocumentKey = tuple[str, tuple[int, int] | None]
"""What a document's text depends on: its id in the library, and the pages kept."""


@dataclass(frozen=True)
class ChosenDocument:
    """A document as a question reads it.

    Attributes:
        stored: what the library says of it.
        document: its pages, cut to the range; page numbers and labels are those of the whole.
    """

    stored: StoredDocument
    document: Document

    @property
    def key(self) -> DocumentKey:
        """What its text depends on."""
        return key_of(self.stored)


def key_of(stored: StoredDocument) -> DocumentKey:
    """What the text of a stored document depends on."""
    return stored.id, stored.page_range


def cut_pages(document: Document, page_range: tuple[int, int] | None) -> Document:
    """A document with the pages from the first to the last of a range, both by physical number.

    Raises:
        ConfigurationError: none of its pages is in the range.
    """
    if page_range is None:
        return document
    first, last = page_range
    pages = tuple(page for page in document.pages if first <= page.number <= last)
    if not pages:
        raise ConfigurationError(
            f"Pages {first} to {last} are none of {document.title!r}, which has "
            f"{len(document.pages)}. Choose others."
        )
    return replace(document, pages=pages)


def open_document(
    library: Library,
    stored: StoredDocument,
    known: Mapping[DocumentKey, ChosenDocument] | None = None,
) -> ChosenDocument:
    """A stored document with its pages, taken from `known` where they are there.

    Raises:
        LibraryError: it can not be read.
    """
    found = (known or {}).get(key_of(stored))
    if found is not None:
        return replace(found, stored=stored)
    document = library.pages(stored.owner, stored.id)
    return ChosenDocument(stored, cut_pages(document, stored.page_range))
