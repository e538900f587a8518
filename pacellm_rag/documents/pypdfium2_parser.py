"""The second PDF parser, as it runs in the child: pypdfium2, fast and tolerant.

Knows pypdfium2's interface. It has no limits of its own and can abort the process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pypdfium2

from pacellm_rag.documents.messages import Failed, Opened, Request
from pacellm_rag.documents.quality import is_garbled
from pacellm_rag.documents.worker import RawPage, describe, wanted_pages

__all__ = ["parse"]


def parse(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads a PDF file."""
    try:
        document = pypdfium2.PdfDocument(data, password=request.password or None)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            yield Failed("password_wrong" if request.password else "password_needed", "")
        else:
            yield Failed("damaged", describe(error))
        return
    count = len(document)
    yield Opened(count, document.get_metadata_value("Title"))
    for number in wanted_pages(request, count):
        label = ""
        try:
            label = document.get_page_label(number - 1)
            page = document[number - 1]
            text_page = page.get_textpage()
            text = text_page.get_text_range()
            text_page.close()
            page.close()
        except Exception as error:
            yield RawPage(number, label, error=describe(error))
        else:
            yield RawPage(number, label, text, is_garbled(text))
