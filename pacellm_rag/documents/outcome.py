"""What came out of parsing a file in the child: its pages, and in words what is missing and why.

Knows the limits and the parsers' messages, not how the parsers are run.
"""

from __future__ import annotations

from collections.abc import Iterator

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.messages import Failed, Opened, PageText
from pacellm_rag.documents.parsed import ParsedDocument, page_warning
from pacellm_rag.documents.types import DocumentWarning, Page
from pacellm_rag.errors import DocumentError, DocumentLimitError

__all__ = ["LIMIT_REASONS", "ParseOutcome"]

LIMIT_REASONS = {
    "time": "the time ran out (limits: wall_seconds, page_seconds)",
    "cpu": "the CPU time ran out (limit: cpu_seconds)",
    "memory": "the memory ran out (limit: memory_bytes)",
    "size": "it unpacks to more than the parser allows",
    "crash": "the parser broke off, most often for lack of memory (limit: memory_bytes)",
}
_LIMIT_ERRORS = ("LimitReachedError", "MemoryError")
_BROKEN, _EMPTY, _GARBLED, _TEXT = range(4)


class ParseOutcome:
    """The pages of one file so far.

    Attributes:
        name: what messages call the file.
        limits: what it may cost.
        claimed_pages: how many pages it says it has; None until a parser has opened it.
        pages: by physical number.
        failures: why parsers broke off, in order.
        repaired: the stricter parser took it for damaged, the more tolerant one read it.
    """

    def __init__(self, name: str, limits: DocumentLimits) -> None:
        self.name = name
        self.limits = limits
        self.claimed_pages: int | None = None
        self.pages: dict[int, PageText] = {}
        self.failures: list[Failed] = []
        self.repaired = False
        self._title = ""

    @property
    def page_count(self) -> int:
        """Pages that the document will have."""
        return min(max(self.claimed_pages or 0, 0), self.limits.pages)

    @property
    def characters_left(self) -> int:
        """Characters that the document may still grow by."""
        return self.limits.characters - sum(len(page.text) for page in self.pages.values())

    def open(self, opened: Opened) -> None:
        """Takes the page count of the first parser that opened the file."""
        if self.claimed_pages is None:
            self.claimed_pages = opened.pages
        self._title = self._title or opened.title

    def keep(self, page: PageText) -> None:
        """Keeps a page if it is better than what there is of it."""
        known = self.pages.get(page.number)
        if 1 <= page.number <= self.page_count and (known is None or _rank(page) > _rank(known)):
            self.pages[page.number] = page

    def pages_to_retry(self) -> tuple[int, ...]:
        """Pages of which there is no text yet."""
        numbers = range(1, self.page_count + 1)
        return tuple(n for n in numbers if n not in self.pages or _rank(self.pages[n]) < _TEXT)

    def document(self) -> ParsedDocument:
        """The result.

        Raises:
            DocumentLimitError: no page could be read, because of a limit.
            DocumentError: no page could be read.
        """
        if all(page.error for page in self.pages.values()):
            raise self._nothing_read()
        pages = []
        for number in range(1, self.page_count + 1):
            page = self.pages.get(number)
            label = (page.label if page else "") or str(number)
            pages.append(Page(number, label, page.text if page else ""))
        return ParsedDocument(self._title or None, tuple(pages), tuple(self._warnings()))

    def _nothing_read(self) -> DocumentError:
        name = self.name
        if self.claimed_pages == 0 and not self.failures:
            return DocumentError(f"{name} holds no pages. Choose another file.", path=name)
        errors = [page.error for page in self.pages.values()]
        reasons = [f.reason for f in self.failures if f.reason in LIMIT_REASONS]
        if any(error.startswith(_LIMIT_ERRORS) for error in errors):
            reasons.append("size")
        if reasons:
            return DocumentLimitError(
                f"No page of {name} could be read: {LIMIT_REASONS[reasons[0]]}. If you trust the "
                "file, split it or raise the limit with DocumentLimits(...).",
                path=name,
            )
        details = dict.fromkeys([f.detail for f in self.failures if f.detail] + errors[:1])
        return DocumentError(
            f"{name} is damaged: no page could be read ({'; '.join(details)}). Open it in the "
            "program that shows such files and save it anew, or get another copy.",
            path=name,
        )

    def _warnings(self) -> Iterator[DocumentWarning]:
        kept, limits = self.pages.values(), self.limits
        missing = [n for n in range(1, self.page_count + 1) if n not in self.pages]
        failed = [page.number for page in kept if page.error]
        if any(failure.reason == "characters" for failure in self.failures):
            yield from page_warning(
                "truncated",
                missing,
                f"not read: the document has more than {limits.characters:,} characters (limit: "
                "characters).",
            )
        else:
            failed += missing
        if (self.claimed_pages or 0) > self.page_count:
            yield DocumentWarning(
                "truncated",
                f"The file claims {self.claimed_pages:,} pages; those after page "
                f"{self.page_count:,} were not read (limit: pages).",
            )
        yield from page_warning(
            "truncated",
            [page.number for page in kept if page.truncated],
            "cut short (limits: characters_per_page, characters).",
        )
        yield from page_warning("failed_pages", failed, f"not read: {self._reasons()}.")
        yield from page_warning(
            "garbled_text",
            [page.number for page in kept if page.garbled],
            "left without text: its fonts do not say which letters they show, so that only "
            "rubbish can be extracted. OCR can read it (for example ocrmypdf --force-ocr).",
        )
        yield from page_warning(
            "no_text",
            [page.number for page in kept if _rank(page) == _EMPTY],
            "without text: scanned, drawn or blank. OCR can read scans (for example ocrmypdf).",
        )
        if self.repaired:
            yield DocumentWarning(
                "repaired", "The file is damaged; what could be repaired was read. Check it."
            )

    def _reasons(self) -> str:
        reasons = [LIMIT_REASONS.get(f.reason, f.detail) for f in self.failures]
        reasons += [page.error for page in self.pages.values() if page.error][:1]
        return "; ".join(dict.fromkeys(filter(None, reasons))) or "no reason is known"


def _rank(page: PageText) -> int:
    """How good a page's text is, for the choice between two parsers."""
    if page.error:
        return _BROKEN
    if page.garbled:
        return _GARBLED
    return _TEXT if page.text else _EMPTY
