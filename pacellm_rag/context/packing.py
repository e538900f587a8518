"""Documents into one text, with a map back from its characters to documents, pages, sentences.

Each page begins with a short marker, `[D1 p2]` for page 2 of the first document, by which the
model can name its source. Text of a document that looks like such a marker gets round brackets, so
that no document can pose as another's page; lengths stay, so that a place in the packed text is a
place on the page. Knows nothing of tokens or models.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pacellm_rag.context.markers import disarm_markers, page_marker
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError

__all__ = ["PackedContext", "Segment", "pack_context"]

_NO_TEXT = "(This page has no text.)"


@dataclass(frozen=True)
class Segment:
    """Where one page stands in the packed text.

    Attributes:
        document: index of the document, from 0.
        page: index of the page within its document, from 0.
        start: first character of the page's own text (the marker is before it).
        end: the character after its last; equal to `start` for a page without text.
    """

    document: int
    page: int
    start: int
    end: int


@dataclass(frozen=True)
class PackedContext:
    """Documents as one text.

    Attributes:
        documents: the documents, in the order of the text.
        text: what the model reads.
        segments: one per page, in the order of the text.
        document_spans: for each document the [start, end) characters it takes, headings included.
    """

    documents: tuple[Document, ...]
    text: str
    segments: tuple[Segment, ...]
    document_spans: tuple[tuple[int, int], ...]

    def segment_at(self, character: int) -> Segment | None:
        """The page on which a character of the text stands; None between pages."""
        index = bisect_right(self.segments, character, key=lambda s: s.start) - 1
        if index < 0 or character >= self.segments[index].end:
            return None
        return self.segments[index]

    def page(self, segment: Segment) -> Page:
        """The page of a segment."""
        return self.documents[segment.document].pages[segment.page]

    def find_marker(self, document_number: int, page_number: int) -> Segment | None:
        """The page that a marker's two numbers name, or None for an unknown one."""
        for segment in self.segments:
            if (segment.document + 1, self.page(segment).number) == (document_number, page_number):
                return segment
        return None


def pack_context(documents: Sequence[Document]) -> PackedContext:
    """Lays documents one after the other, every page behind its marker.

    Raises:
        ConfigurationError: there is no document.
    """
    if not documents:
        raise ConfigurationError("There is no document to read; give at least one.")
    parts: list[str] = []
    segments: list[Segment] = []
    spans: list[tuple[int, int]] = []
    length = 0

    def add(text: str) -> None:
        nonlocal length
        parts.append(text)
        length += len(text)

    for index, document in enumerate(documents):
        begin = length
        title = " ".join(disarm_markers(document.title).split())
        add(f"Document D{index + 1}: {title}\n\n")
        for number, page in enumerate(document.pages):
            add(f"{page_marker(index, page.number)}\n")
            start = length
            if page.text.strip():
                add(disarm_markers(page.text))
            segments.append(Segment(index, number, start, length))
            add("\n\n" if length > start else f"{_NO_TEXT}\n\n")
        spans.append((begin, length))
    return PackedContext(tuple(documents), "".join(parts), tuple(segments), tuple(spans))
