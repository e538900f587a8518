"""The first PDF parser, as it runs in the child: pypdf, correct and well bounded.

Knows pypdf's interface and settings. Text only: no images, links, attachments, forms or scripts are
looked at, and no other program is run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pypdf
from pypdf.errors import LimitReachedError

from pacellm_rag.documents.messages import Failed, Opened, Request
from pacellm_rag.documents.quality import is_garbled
from pacellm_rag.documents.worker import RawPage, describe, wanted_pages

__all__ = ["parse"]

_NODES_PER_PAGE = 2
"""Entries of a page tree per page, its inner nodes included."""
_LARGEST_STREAM = 50_000_000
"""Bytes of one unpacked stream. Fonts and a page's text have a few MB at most."""


def parse(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads a PDF file within pypdf's own limits."""
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
        try:
            reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
            if reader.is_encrypted and not (
                reader.decrypt("") or (request.password and reader.decrypt(request.password))
            ):
                yield Failed("password_wrong" if request.password else "password_needed", "")
                return
            count = len(reader.pages)
        except LimitReachedError as error:
            yield Failed("size", describe(error))
            return
        yield Opened(count, _title(reader))
        labels = _labels(reader, count)
        for number in wanted_pages(request, count):
            label = labels[number - 1]
            try:
                text = reader.pages[number - 1].extract_text()
            except Exception as error:
                yield RawPage(number, label, error=describe(error))
            else:
                yield RawPage(number, label, text, is_garbled(text))


def _title(reader: pypdf.PdfReader) -> str:
    try:
        return str((reader.metadata and reader.metadata.title) or "")
    except Exception:
        return ""


def _labels(reader: pypdf.PdfReader, count: int) -> list[str]:
    try:
        labels = [str(label) for label in reader.page_labels]
    except Exception:
        labels = []
    return labels if len(labels) == count else [""] * count
