"""Loads documents: a file, several files, uploaded bytes, or a text.

Knows which parser reads which kind of file, and names what can not be read. Parsing untrusted
formats happens in a child process (`sandbox`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pacellm_rag.documents.cleaning import clean_line
from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.office import parse_docx_file, parse_html_file
from pacellm_rag.documents.parsed import PageProgress, ParsedDocument
from pacellm_rag.documents.pdf import parse_pdf
from pacellm_rag.documents.sniffing import (
    DOCX,
    HTML,
    MARKDOWN,
    PDF,
    SUPPORTED,
    sniff_media_type,
)
from pacellm_rag.documents.text import parse_text, parse_text_file
from pacellm_rag.documents.titles import choose_title, with_distinct_titles
from pacellm_rag.documents.types import Document, DocumentWarning
from pacellm_rag.errors import DocumentError, DocumentLimitError

__all__ = ["load_document", "load_document_bytes", "load_documents", "text_document"]

_DEFAULT_LIMITS = DocumentLimits()


def load_document(
    path: str | os.PathLike[str],
    *,
    password: str | None = None,
    limits: DocumentLimits = _DEFAULT_LIMITS,
    progress: PageProgress | None = None,
) -> Document:
    """Reads a file: PDF, Word (.docx), HTML, Markdown or plain text, told apart by content.

    What is missing from the document, or doubtful in it, stands in its `warnings`.

    Args:
        path: the file; "~" stands for the home folder.
        password: for an encrypted PDF.
        limits: what reading it may cost.
        progress: called with pages done and pages in all; an exception that it raises stops the
            reading and passes through.

    Raises:
        DocumentError: there is no such file, it can not be opened, is empty, of a kind that can not
            be read, or damaged.
        EncryptedDocumentError: it needs a password, or `password` is wrong.
        DocumentLimitError: a limit was met before any page was read.
        MissingDependencyError: reading this kind of file needs an optional library.
    """
    source = os.fsdecode(path)
    data = _read_file(source, limits)
    return _load(data, source, password, limits, progress)


def load_document_bytes(
    data: bytes | bytearray | memoryview,
    name: str,
    *,
    password: str | None = None,
    limits: DocumentLimits = _DEFAULT_LIMITS,
    progress: PageProgress | None = None,
) -> Document:
    """Reads an uploaded file's content as `load_document` reads a file.

    Args:
        data: the whole file.
        name: the file's name, for its title, its suffix and for messages; nothing is opened.
        password: for an encrypted PDF.
        limits: what reading it may cost.
        progress: as for `load_document`.

    Raises:
        PaceLLMError: as for `load_document`.
    """
    if len(data) > limits.file_bytes:
        raise _too_large(name, len(data), limits)
    return _load(bytes(data), name, password, limits, progress)


def load_documents(
    paths: Iterable[str | os.PathLike[str]],
    *,
    password: str | None = None,
    limits: DocumentLimits = _DEFAULT_LIMITS,
    progress: PageProgress | None = None,
    on_error: Callable[[DocumentError], None] | None = None,
) -> list[Document]:
    """Reads several files.

    A content that comes twice is read once, and a "duplicate" warning of the document names the
    other files. Equal titles of different documents are made distinct.

    Args:
        paths: the files, in the order of the result.
        password: tried on every encrypted PDF.
        limits: what reading each of them may cost.
        progress: as for `load_document`, for one file after the other.
        on_error: called for a file that can not be read, which is then left out. Without it the
            first such file ends the loading.

    Raises:
        PaceLLMError: as for `load_document`.
    """
    documents: dict[str, Document] = {}
    for path in paths:
        source = os.fsdecode(path)
        try:
            data = _read_file(source, limits)
            known = documents.get(_content_id(data))
            if known is None:
                document = _load(data, source, password, limits, progress)
                documents[document.id] = document
                continue
        except DocumentError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        same = DocumentWarning(
            "duplicate", f"{_shown(source)} has the same content and was not read again."
        )
        documents[known.id] = replace(known, warnings=(*known.warnings, same))
    return with_distinct_titles(list(documents.values()))


def text_document(
    text: str,
    title: str = "Text",
    *,
    limits: DocumentLimits = _DEFAULT_LIMITS,
) -> Document:
    """Makes a document of a text; its id is that of a UTF-8 file with the same content.

    Args:
        text: the text; form feeds separate pages, long text without them is cut into pages.
        title: what citations call it.
        limits: only `characters` applies.

    Raises:
        DocumentError: the text is blank.
    """
    if not text.strip():
        raise DocumentError(f"The text {title!r} is blank. Pass the text to read.", path=title)
    parsed = parse_text(text, limits)
    return Document(
        id=_content_id(text.encode("utf-8", "surrogatepass")),
        title=clean_line(title) or "Text",
        pages=parsed.pages,
        warnings=parsed.warnings,
    )


def _load(
    data: bytes,
    source: str,
    password: str | None,
    limits: DocumentLimits,
    progress: PageProgress | None,
) -> Document:
    name = _shown(source)
    if not data:
        raise DocumentError(f"{name} is empty. Choose another file.", path=source)
    try:
        media_type = sniff_media_type(data, name)
        parsed = _parse(data, media_type, name, password, limits, progress)
    except DocumentError as error:
        error.path = source
        raise
    if progress:
        progress(len(parsed.pages), len(parsed.pages))
    return Document(
        id=_content_id(data),
        title=choose_title(parsed.title, source),
        pages=parsed.pages,
        source=source,
        media_type=media_type,
        warnings=parsed.warnings,
    )


def _parse(
    data: bytes,
    media_type: str,
    name: str,
    password: str | None,
    limits: DocumentLimits,
    progress: PageProgress | None,
) -> ParsedDocument:
    if media_type == PDF:
        return parse_pdf(data, name=name, password=password, limits=limits, progress=progress)
    if media_type == DOCX:
        return parse_docx_file(data, name=name, limits=limits, progress=progress)
    if media_type == HTML:
        return parse_html_file(data, name=name, limits=limits, progress=progress)
    return parse_text_file(data, limits, markdown=media_type == MARKDOWN)


def _read_file(source: str, limits: DocumentLimits) -> bytes:
    """Reads a regular file; a pipe or device, which may never end, is refused unopened."""
    name = _shown(source)
    try:
        path = Path(source).expanduser()
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DocumentError(
                f"{name} is a folder. Name the files in it: {SUPPORTED}.", path=source
            )
        if not stat.S_ISREG(status.st_mode):
            raise DocumentError(
                f"{name} is a pipe or device. Copy its content to a file first.", path=source
            )
        if status.st_size > limits.file_bytes:
            raise _too_large(source, status.st_size, limits)
        with path.open("rb") as file:
            data = file.read(limits.file_bytes + 1)
    except FileNotFoundError as error:
        hint = (
            "Web addresses are not fetched: download the file first."
            if "://" in source
            else "Check the name and the folder."
        )
        raise DocumentError(f"There is no file {name}. {hint}", path=source) from error
    except PermissionError as error:
        raise DocumentError(
            f"{name} can not be opened: permission denied. Change its permissions (for example "
            "chmod u+r) or copy it to a folder of yours.",
            path=source,
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # broken disk, no home, NUL in the name
        raise DocumentError(
            f"{name} can not be opened: {clean_line(str(error))}. Check the name, or copy the "
            "file to a local folder.",
            path=source,
        ) from error
    if len(data) > limits.file_bytes:
        raise _too_large(source, len(data), limits)
    return data


def _too_large(source: str, size: int, limits: DocumentLimits) -> DocumentLimitError:
    return DocumentLimitError(
        f"{_shown(source)} has {size / 1e6:,.1f} MB; the limit is {limits.file_bytes / 1e6:,.1f} "
        "MB. Split the file, or raise the limit with DocumentLimits(file_bytes=...).",
        path=source,
    )


def _shown(source: str) -> str:
    """A file's name for messages: one line, without controls that a terminal would obey."""
    return clean_line(source, 500)


def _content_id(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
