"""PDF to text: which parser reads which page.

Knows neither parser's interface. pypdf reads first. pypdfium2 then reads, in a child of its own,
the pages that pypdf could not read, found empty or found unreadable; the better text of each page
is kept. Pages that neither can read stay in the document without text, and a warning names them.
"""

from __future__ import annotations

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.outcome import LIMIT_REASONS
from pacellm_rag.documents.parsed import PageProgress, ParsedDocument
from pacellm_rag.documents.reading import FileReading

__all__ = ["parse_pdf"]

_FIRST_PARSERS_SHARE = 0.75
"""Of the wall time; pypdfium2 is ten times as fast and needs less."""
_CHILDREN = 4
"""pypdfium2 may be started so often, as one bad page ends its child."""
_CHILD_ENDED = ("crash", "time", "cpu", "memory")


def parse_pdf(
    data: bytes,
    *,
    name: str,
    password: str | None,
    limits: DocumentLimits,
    progress: PageProgress | None,
) -> ParsedDocument:
    """Reads a PDF file.

    Args:
        data: the whole file.
        name: what messages call it.
        password: tried after the empty password.
        limits: what it may cost.
        progress: called for every page.

    Raises:
        EncryptedDocumentError: it needs a password, or `password` is wrong.
        DocumentLimitError: a limit was met before any page was read.
        DocumentError: no page could be read for another reason.
    """
    reading = FileReading(data, name, password or "", limits, progress)
    reading.run("pypdf", share=_FIRST_PARSERS_SHARE, silence_seconds=limits.page_seconds)
    _read_rest(reading, limits)
    return reading.outcome.document()


def _read_rest(reading: FileReading, limits: DocumentLimits) -> None:
    """Reads what pypdf left without text; goes on behind a page that ends the child."""
    outcome = reading.outcome
    opened = outcome.claimed_pages is not None
    wanted = outcome.pages_to_retry() if opened else None
    for _ in range(_CHILDREN):
        if wanted == ():
            break
        failure, last_page = reading.run("pypdfium2", wanted, silence_seconds=limits.page_seconds)
        if outcome.claimed_pages is None or not failure or failure.reason not in _CHILD_ENDED:
            break
        rest = wanted or range(1, outcome.page_count + 1)
        wanted = tuple(number for number in rest if number > last_page)[1:]
    outcome.repaired = not opened and all(
        failure.reason not in LIMIT_REASONS for failure in outcome.failures[:1]
    )
