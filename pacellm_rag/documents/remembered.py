"""Documents whose content comes again and again, each parsed once.

Chat messages carry whole files, with every question anew. Knows content and names; knows nothing
of messages.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.loading import load_document_bytes
from pacellm_rag.documents.types import Document

__all__ = ["RememberedDocuments"]

_DEFAULT_LIMITS = DocumentLimits()


class RememberedDocuments:
    """The documents parsed last, by content and name; safe to use from several threads.

    Args:
        most: how many to remember.
        limits: what parsing each may cost.
    """

    def __init__(self, most: int, limits: DocumentLimits = _DEFAULT_LIMITS) -> None:
        self._most = most
        self._limits = limits
        self._lock = threading.Lock()
        self._documents: OrderedDict[tuple[bytes, str], Document] = OrderedDict()

    def open(self, data: bytes, name: str) -> Document:
        """The document of a file's content, parsed now or before.

        Args:
            data: the content.
            name: of the file; its title where it has none itself.

        Raises:
            PaceLLMError: as for `load_document_bytes`.
        """
        key = (hashlib.sha256(data).digest(), name)
        with self._lock:
            known = self._documents.get(key)
            if known is not None:
                self._documents.move_to_end(key)
                return known
        document = load_document_bytes(data, name, limits=self._limits)
        with self._lock:
            self._documents[key] = document
            while len(self._documents) > self._most:
                self._documents.popitem(last=False)
        return document
