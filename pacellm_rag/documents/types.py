"""What a document is to the rest of the package: an id, a title, pages of clean text.

Knows nothing of files, parsers or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Document", "DocumentWarning", "Page"]


@dataclass(frozen=True)
class Page:
    """One page of a document.

    Attributes:
        number: physical page number, from 1.
        label: the number printed on the page ("iv", "12"); equals `str(number)` where the file
            names none.
        text: clean text, "" where the page has none.
    """

    number: int
    label: str
    text: str


@dataclass(frozen=True)
class DocumentWarning:
    """Something that a reader of the document should know is missing or doubtful.

    Attributes:
        kind: "no_text" (a scan, a picture or blank), "garbled_text" (no usable character map; the
            page's text is left out), "failed_pages" (could not be parsed), "truncated" (a limit
            was met), "repaired" (the file is damaged), "encoding" (a text file's encoding was
            guessed) or "duplicate" (another file had the same content).
        message: one sentence for people.
        pages: physical numbers of the pages concerned; empty when it concerns the whole file.
    """

    kind: str
    message: str
    pages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """A whole document.

    Attributes:
        id: hash of the file's content, "sha256:" and 64 hexadecimal digits; the same file has the
            same id wherever it lies.
        title: the file's own title where it has a meaningful one, else its name without suffix.
        pages: all pages in order, those without text included.
        source: the path that it was loaded from, or "" for text given directly.
        media_type: "application/pdf", "text/plain", "text/markdown", "text/html" or the docx type.
        warnings: what is missing or doubtful.
    """

    id: str
    title: str
    pages: tuple[Page, ...]
    source: str = ""
    media_type: str = "text/plain"
    warnings: tuple[DocumentWarning, ...] = field(default=())

    @property
    def pages_without_text(self) -> tuple[int, ...]:
        """Physical numbers of the pages that hold no text."""
        return tuple(page.number for page in self.pages if not page.text.strip())
