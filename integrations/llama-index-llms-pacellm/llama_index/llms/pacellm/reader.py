"""Files as LlamaIndex documents, one for each page, and nodes that keep pages whole.

Knows LlamaIndex' reader interface. How a file is read, in a child process and under limits, is
`pacellm_rag.documents`' business.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import (
    Document,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)

import pacellm_rag.documents as files
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import DocumentError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["PaceReader", "page_nodes"]

_DEFAULT_LIMITS = DocumentLimits()
# A model needs the title and the printed page number in front of a page; an embedding of the page
# gains from the title alone. SimpleDirectoryReader hides file names too, so that a document gives
# the same prompt, and the same cached prefix, whichever way it was loaded.
_NOT_FOR_MODELS = [
    "file_name",
    "file_path",
    "page_number",
    "total_pages",
    "document_id",
    "document_warnings",
]
_NOT_FOR_EMBEDDINGS = [*_NOT_FOR_MODELS, "page_label"]
_log = logging.getLogger(__name__)


class PaceReader(BaseReader):
    """Reads PDF, Word, HTML, Markdown and text files, one document for each page.

        SimpleDirectoryReader(
            "reports", file_extractor={".pdf": PaceReader()}, raise_on_error=True
        ).load_data()

    Without `raise_on_error`, SimpleDirectoryReader prints the error of a file that can not be read
    and leaves the file out.

    Every page comes, those without text included. Its metadata:

    * `file_name`, `file_path`: the file;
    * `title`: the file's own title, else its name without suffix;
    * `page_label`: the number printed on the page ("iv", "12");
    * `page_number`: the physical one, from 1;
    * `total_pages`: pages read of this file;
    * `document_id`: hash of the file's content;
    * `document_warnings`: what is missing or doubtful on this page or in the whole file; only where
      there is something to say. Each warning is logged once as well.

    Models see `title` and `page_label` of it, embeddings see `title`. A document's id is a UUID
    made of the content's hash and the page: loading the same file again gives the same ids.

    Args:
        password: for encrypted PDFs.
        limits: what reading each file may cost.
    """

    def __init__(
        self, *, password: str | None = None, limits: DocumentLimits = _DEFAULT_LIMITS
    ) -> None:
        self.password = password
        self.limits = limits

    def load_data(
        self,
        file: str | os.PathLike[str],
        extra_info: Mapping[str, Any] | None = None,
        password: str | None = None,
        fs: AbstractFileSystem | None = None,
    ) -> list[Document]:
        """Reads a file.

        Args:
            file: its path.
            extra_info: more metadata for every page; goes before the reader's own.
            password: for this file, instead of the reader's.
            fs: the file system that holds the file; without it, this machine's.

        Raises:
            PaceLLMError: as for `pacellm_rag.load_document`.
        """
        document = self._read(os.fspath(file), password or self.password, fs)
        for warning in document.warnings:
            _log.warning("%r: %s", document.source, warning.message)
        return [_page(document, page, extra_info or {}) for page in document.pages]

    def _read(
        self, path: str, password: str | None, fs: AbstractFileSystem | None
    ) -> files.Document:
        if fs is None:
            return files.load_document(path, password=password, limits=self.limits)
        try:
            with fs.open(path, "rb") as remote:
                data = remote.read(self.limits.file_bytes + 1)
        except OSError as error:
            raise DocumentError(
                f"{path!r} can not be opened: {error}. Check the name and the file system.",
                path=path,
            ) from error
        return files.load_document_bytes(data, path, password=password, limits=self.limits)


def page_nodes(documents: Iterable[Document]) -> list[TextNode]:
    """Makes a node of each page, for `SummaryIndex(nodes=...)`: no page is ever split.

    Pages of one file name it as their source (so that `delete_ref_doc(document_id)` removes all of
    them) and their neighbours as previous and next. A page that comes twice, because the same file
    lies in two places, is taken once.

    Args:
        documents: what `PaceReader` gave, alone or through `SimpleDirectoryReader`.
    """
    nodes: dict[str, TextNode] = {}
    for document in documents:
        if document.id_ in nodes:
            place = document.metadata.get("file_path", document.id_)
            _log.info("A page of %r was left out: it comes twice.", place)
            continue
        nodes[document.id_] = node = TextNode(
            id_=document.id_,
            text=document.text,
            metadata=document.metadata,
            excluded_embed_metadata_keys=document.excluded_embed_metadata_keys,
            excluded_llm_metadata_keys=document.excluded_llm_metadata_keys,
            metadata_template=document.metadata_template,
            metadata_separator=document.metadata_separator,
            text_template=document.text_template,
        )
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(
            node_id=document.metadata.get("document_id", document.id_),
            node_type=ObjectType.DOCUMENT,
        )
    for before, after in itertools.pairwise(nodes.values()):
        if before.ref_doc_id == after.ref_doc_id:
            before.relationships[NodeRelationship.NEXT] = after.as_related_node_info()
            after.relationships[NodeRelationship.PREVIOUS] = before.as_related_node_info()
    return list(nodes.values())


def _page(document: files.Document, page: files.Page, extra_info: Mapping[str, Any]) -> Document:
    warnings = " ".join(
        warning.message
        for warning in document.warnings
        if not warning.pages or page.number in warning.pages
    )
    return Document(
        id_=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{document.id}#page={page.number}")),
        text=page.text,
        metadata={
            "file_name": PurePath(document.source).name,
            "file_path": document.source,
            "title": document.title,
            "page_label": page.label,
            "page_number": page.number,
            "total_pages": len(document.pages),
            "document_id": document.id,
            **({"document_warnings": warnings} if warnings else {}),
            **extra_info,
        },
        excluded_llm_metadata_keys=list(_NOT_FOR_MODELS),
        excluded_embed_metadata_keys=list(_NOT_FOR_EMBEDDINGS),
    )
