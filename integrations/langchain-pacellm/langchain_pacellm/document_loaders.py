"""Files as LangChain documents, one for each page, with what a citation needs in the metadata.

Knows LangChain's loader interface. How a file is read, in a child process and under limits, is
`pacellm_rag.documents`' business.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from langchain_core.document_loaders import BaseBlobParser, BaseLoader, Blob
from langchain_core.documents import Document

import pacellm_rag.documents as files
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ConfigurationError

__all__ = ["PaceBlobParser", "PacePDFLoader"]

_DEFAULT_LIMITS = DocumentLimits()
_log = logging.getLogger(__name__)


class PacePDFLoader(BaseLoader):
    """Loads PDF files, and Word, HTML, Markdown and text files too, one document for each page.

    Every page comes, those without text included. Its metadata:

    * `source`: the file, as it was named;
    * `title`: the file's own title, else its name without suffix;
    * `page`: from 0, as LangChain's own PDF loaders count;
    * `page_number`: the same from 1, as PaceLLM's citations count;
    * `page_label`: the number printed on the page ("iv", "12");
    * `total_pages`: pages read of this file;
    * `document_id`: hash of the file's content;
    * `document_warnings`: what is missing or doubtful on this page or in the whole file; only where
      there is something to say. Each warning is logged once as well.

    A document's `id` is a UUID made of the content's hash and the page: loading the same file again
    gives the same ids.

    Args:
        file_path: a file, or several; they are read one after the other, each when it is needed.
        password: for encrypted PDFs.
        limits: what reading each file may cost.

    Raises:
        ConfigurationError: there is no file in `file_path`.
    """

    def __init__(
        self,
        file_path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        password: str | None = None,
        limits: DocumentLimits = _DEFAULT_LIMITS,
    ) -> None:
        if isinstance(file_path, (str, os.PathLike)):
            file_path = (file_path,)
        self.file_paths = tuple(file_path)
        self.password = password
        self.limits = limits
        if not self.file_paths:
            raise ConfigurationError("There are no files to load. Pass a path, or several.")

    def lazy_load(self) -> Iterator[Document]:
        """Yields the pages of one file after the other; reads a file when its first is asked for.

        Raises:
            PaceLLMError: as for `pacellm_rag.load_document`; it ends the loading.
        """
        for path in self.file_paths:
            document = files.load_document(path, password=self.password, limits=self.limits)
            yield from _pages(document, {"source": document.source})


class PaceBlobParser(BaseBlobParser):
    """Parses blobs of every kind that `PacePDFLoader` reads, with the same metadata.

    The blob's own metadata is kept below it. A blob without a path should have a `source` in its
    metadata or a MIME type: names help to tell Markdown from plain text.

    Args:
        password: for encrypted PDFs.
        limits: what reading each blob may cost.
    """

    def __init__(
        self, *, password: str | None = None, limits: DocumentLimits = _DEFAULT_LIMITS
    ) -> None:
        self.password = password
        self.limits = limits

    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """Yields the blob's pages; reads it when the first one is asked for.

        Raises:
            PaceLLMError: as for `pacellm_rag.load_document`.
        """
        if blob.data is None and blob.path is not None:
            document = files.load_document(blob.path, password=self.password, limits=self.limits)
        else:
            name = blob.source or f"blob{mimetypes.guess_extension(blob.mimetype or '') or ''}"
            document = files.load_document_bytes(
                _content(blob), name, password=self.password, limits=self.limits
            )
        yield from _pages(document, {**blob.metadata, "source": blob.source or document.source})


def _content(blob: Blob) -> bytes:
    """The blob's bytes; text is marked as UTF-8, whatever charset it claimed before decoding."""
    if isinstance(blob.data, str):
        return blob.data.encode("utf-8-sig", "replace")
    return blob.as_bytes()


def _pages(document: files.Document, metadata: Mapping[Any, Any]) -> Iterator[Document]:
    for warning in document.warnings:
        _log.warning("%r: %s", metadata["source"], warning.message)
    for page in document.pages:
        warnings = " ".join(
            warning.message
            for warning in document.warnings
            if not warning.pages or page.number in warning.pages
        )
        yield Document(
            page.text,
            id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{document.id}#page={page.number}")),
            metadata={
                **metadata,
                "title": document.title,
                "page": page.number - 1,
                "page_number": page.number,
                "page_label": page.label,
                "total_pages": len(document.pages),
                "document_id": document.id,
                **({"document_warnings": warnings} if warnings else {}),
            },
        )
