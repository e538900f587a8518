"""Files to text: documents, pages, and the parsers behind them. Knows nothing of models.

Importing this loads no parser: those run in a child process.
"""

from pacellm_rag.documents.grouping import LoosePage, documents_from_pages
from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.loading import (
    load_document,
    load_document_bytes,
    load_documents,
    text_document,
)
from pacellm_rag.documents.remembered import RememberedDocuments
from pacellm_rag.documents.types import Document, DocumentWarning, Page

__all__ = [
    "Document",
    "DocumentLimits",
    "DocumentWarning",
    "LoosePage",
    "Page",
    "RememberedDocuments",
    "documents_from_pages",
    "load_document",
    "load_document_bytes",
    "load_documents",
    "text_document",
]
