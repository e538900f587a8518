"""What kind of file some bytes are: by content first, by the name's suffix where content is mute.

Knows signatures, not parsers.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import PurePath

from pacellm_rag.errors import DocumentError

__all__ = ["DOCX", "HTML", "MARKDOWN", "PDF", "PLAIN_TEXT", "SUPPORTED", "sniff_media_type"]

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html"
MARKDOWN = "text/markdown"
PLAIN_TEXT = "text/plain"
SUPPORTED = "PDF, Word (.docx), HTML, Markdown and plain text"

_HEAD = 1024
_TEXT_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst", ".csv", ".tsv", ".log", ".json"}
_MARKDOWN_SUFFIXES = {".md", ".markdown"}
_HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
_HTML_START = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html[\s>])",
    re.IGNORECASE | re.DOTALL,
)
_HTML_TAG = re.compile(rb"<(?:html|head|body)[\s>]", re.IGNORECASE)
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
# Controls that no text file holds; line ends, tab, form feed, escape and end-of-file are let pass.
_BINARY = re.compile(rb"[\x00-\x06\x0e-\x19\x1c-\x1f]")

_OTHER_FORMATS = (
    (
        b"\xd0\xcf\x11\xe0",
        "an Office file from before 2007 or with a password",
        "save it as .docx or PDF, without a password",
    ),
    (b"{\\rtf", "a Rich Text file", "save it as .docx or PDF"),
    (b"%!PS", "a PostScript file", "convert it to PDF (for example with ps2pdf)"),
    (b"\x89PNG", "an image", "run it through OCR first (for example tesseract)"),
    (b"\xff\xd8\xff", "an image", "run it through OCR first (for example tesseract)"),
    (b"GIF8", "an image", "run it through OCR first (for example tesseract)"),
    (b"II*\x00", "an image", "run it through OCR first (for example tesseract)"),
    (b"MM\x00*", "an image", "run it through OCR first (for example tesseract)"),
    (b"AT&TF", "a DjVu file", "convert it to PDF (for example with ddjvu)"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and load the files in it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and load the files in it"),
    (b"Rar!", "a RAR archive", "unpack it and load the files in it"),
)


def sniff_media_type(data: bytes, name: str) -> str:
    """Tells the media type of a file.

    Args:
        data: the whole file; only its start, or a zip archive's directory, is looked at.
        name: the file's name, for its suffix and for messages.

    Raises:
        DocumentError: it is none of the supported kinds.
    """
    suffix = PurePath(name).suffix.lower()
    head = data[:_HEAD]
    # A text about PDF files may quote their signature; a PDF may have junk before its own.
    if head.lstrip().startswith(b"%PDF-") or (b"%PDF-" in head and suffix not in _TEXT_SUFFIXES):
        return PDF
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _sniff_zip(data, name)
    for signature, description, next_step in _OTHER_FORMATS:
        if head.startswith(signature):
            raise _unsupported(name, description, next_step)
    if not head.startswith(_WIDE_MARKS) and _BINARY.search(data[: 8 * _HEAD]):
        raise _unsupported(name, "a binary file of unknown kind", "export it to one of these")
    if suffix in _MARKDOWN_SUFFIXES:
        return MARKDOWN
    if suffix in _HTML_SUFFIXES or _HTML_START.match(head.removeprefix(b"\xef\xbb\xbf")):
        return HTML
    if suffix not in _TEXT_SUFFIXES and _HTML_TAG.search(head):
        return HTML
    return PLAIN_TEXT


def _sniff_zip(data: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = set(archive.namelist())
    except Exception as error:
        raise DocumentError(
            f"{name} starts like a Word file or zip archive but is damaged or incomplete "
            f"({type(error).__name__}). Copy or download it again.",
            path=name,
        ) from error
    if "word/document.xml" in members:
        return DOCX
    for member, description, next_step in (
        ("xl/workbook.xml", "an Excel workbook", "save it as PDF or CSV"),
        ("ppt/presentation.xml", "a PowerPoint file", "save it as PDF"),
        ("META-INF/container.xml", "an EPUB book", "convert it to PDF or HTML"),
        ("content.xml", "an OpenDocument file", "save it as .docx or PDF"),
    ):
        if member in members:
            raise _unsupported(name, description, next_step)
    raise _unsupported(name, "a zip archive", "unpack it and load the files in it")


def _unsupported(name: str, description: str, next_step: str) -> DocumentError:
    return DocumentError(
        f"{name} is {description}, which can not be read. Supported are {SUPPORTED}; {next_step}.",
        path=name,
    )
