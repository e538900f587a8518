"""PDF to text: which parser reads which page, and what the reader is told about the rest.

Knows neither parser's interface. pypdf reads first. pypdfium2 then reads, in a child of its own,
the pages that pypdf could not read, found empty or found unreadable; of each page the better text is
kept. Pages that neither can read stay in the document without text, and a warning names them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.messages import Failed, Opened, PageText, Request
from pacellm_rag.documents.parsed import PageProgress, ParsedDocument, page_ranges
from pacellm_rag.documents.sandbox import run_parser
from pacellm_rag.documents.types import DocumentWarning, Page
from pacellm_rag.errors import DocumentError, DocumentLimitError, EncryptedDocumentError
