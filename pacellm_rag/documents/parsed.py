"""What a parser hands to `loading`: pages, the title that the file gives itself, warnings.

Knows nothing of files or of the parsers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pacellm_rag.documents.types import DocumentWarning, Page

__all__ = ["PageProgress", "ParsedDocument", "page_ranges", "page_warning"]

PageProgress = Callable[[int, int], None]
"""Called with pages done and pages in all; an exception that it raises stops the reading."""


@dataclass(frozen=True)
class ParsedDocument:
    """A file's text.

    Attributes:
        title: the file's own title as it stands there, or None.
        pages: all pages in order.
        warnings: what is missing or doubtful.
    """

    title: str | None
    pages: tuple[Page, ...]
    warnings: tuple[DocumentWarning, ...]


def page_ranges(numbers: Iterable[int]) -> str:
    """Names pages for people: "page 3", "pages 1-4, 7 and 9-12"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    names = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:20]]
    if len(spans) > 20:
        names.append(f"{len(spans) - 20} more places")
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"page{'s' if len(spans) > 1 or spans[0][0] != spans[0][1] else ''} {listed}"


def page_warning(kind: str, numbers: Iterable[int], what: str) -> tuple[DocumentWarning, ...]:
    """A warning about pages, "Pages 1-4 " and `what`; none where there are no pages."""
    pages = tuple(sorted(numbers))
    if not pages:
        return ()
    named = page_ranges(pages)
    return (DocumentWarning(kind, f"{named[0].upper()}{named[1:]} {what}", pages),)
