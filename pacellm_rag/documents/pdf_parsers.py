"""The two PDF parsers, as they run in the child: pypdf and pypdfium2.

Knows their interfaces and settings. Text only: no images, links, attachments, forms or scripts are
looked at, and no other program is run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pacellm_rag.documents.messages import Failed, Opened, Request
from pacellm_rag.documents.quality import is_garbled
from pacellm_rag.documents.worker import RawPage, describe

if TYPE_CHECKING:
    from pypdf import PdfReader

__all__ = ["parse_with_pypdf", "parse_with_pypdfium2"]

_NODES_PER_PAGE = 2
"""Entries of a page tree per page, its inner nodes included."""
_LARGEST_STREAM = 50_000_000
"""Bytes of one unpacked stream. Fonts and a page's text have a few MB at most."""


def parse_with_pypdf(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads with pypdf: correct, well bounded, 30 to 80 pages a second."""
    import pypdf

    with pypdf.apply_configuration(
        zlib_maximum_output_length=_LARGEST_STREAM,
        lzw_maximum_output_length=_LARGEST_STREAM,
        run_length_maximum_output_length=_LARGEST_STREAM,
        brotli_maximum_output_length=_LARGEST_STREAM,
        array_based_stream_maximum_output_length=_LARGEST_STREAM,
        stream_parsing_work_maximum_count=1_000_000,
        page_tree_maximum_entries=_NODES_PER_PAGE * request.max_pages + 100,
        jbig2dec_binary=None,
        disable_legacy_handling=True,
    ):
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not (
            reader.decrypt("") or (request.password and reader.decrypt(request.password))
        ):
            yield Failed("password_wrong" if request.password else "password_needed", "")
            return
        try:
            count = len(reader.pages)
        except pypdf.errors.LimitReachedError as error:
            yield Failed("size", describe(error))
            return
        yield Opened(count, _pypdf_title(reader))
        labels = _pypdf_labels(reader, count)
        for number in _wanted(request, count):
            try:
                text = reader.pages[number - 1].extract_text()
            except Exception as error:
                yield RawPage(number, labels[number - 1], error=describe(error))
            else:
                yield RawPage(number, labels[number - 1], text, is_garbled(text))


def parse_with_pypdfium2(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads with pypdfium2: fast and tolerant, but it knows no limits and can abort."""
    import pypdfium2

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
    for number in _wanted(request, count):
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


def _wanted(request: Request, count: int) -> Iterator[int]:
    """The pages to read, of those that there are."""
    if request.pages is None:
        yield from range(1, min(count, request.max_pages) + 1)
    else:
        yield from (number for number in request.pages if 1 <= number <= count)


def _pypdf_title(reader: PdfReader) -> str:
    try:
        return str((reader.metadata and reader.metadata.title) or "")
    except Exception:
        return ""


def _pypdf_labels(reader: PdfReader, count: int) -> list[str]:
    try:
        labels = [str(label) for label in reader.page_labels]
    except Exception:
        labels = []
    return labels if len(labels) == count else [""] * count
