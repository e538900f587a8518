"""Documents named on the command line: everybody finds them in their list.

They are parsed once, when the server starts, and become each owner's own on their first visit: they
can be reordered, cut to pages and removed like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from pacellm_rag.documents import load_documents
from pacellm_rag.errors import DocumentError, EncryptedDocumentError
from pacellm_rag_ui.library import Library

__all__ = ["Shelf"]


class Shelf:
    """Files that are offered to everybody.

    Args:
        library: where they are put.
        files: what to offer.

    Attributes:
        locked: names of files that need a password, which are not offered.

    Raises:
        DocumentError: another file can not be read; the server does not start then.
    """

    def __init__(self, library: Library, files: Sequence[Path]) -> None:
        self._library = library
        self.locked: list[str] = []
        self._documents = tuple(load_documents(files, on_error=self._leave_out))
        self._offered: set[str] = set()
        self._lock = threading.Lock()

    def _leave_out(self, error: DocumentError) -> None:
        if not isinstance(error, EncryptedDocumentError):
            raise error
        self.locked.append(Path(error.path).name)

    def offer(self, owner: str) -> None:
        """Puts them into the owner's list, once a process, unless they are there."""
        with self._lock:
            if owner in self._offered or not self._documents:
                return
            self._offered.add(owner)
            known = {document.content_id for document in self._library.documents(owner)}
            for document in self._documents:
                if document.id not in known:
                    file = Path(document.source)
                    self._library.add_document(owner, file.name, file, document, None)
