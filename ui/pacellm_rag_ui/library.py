"""What is kept on the server: documents, conversations, by owner. SIGNATURES; being filled in."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from pacellm_rag.documents import Document
from pacellm_rag_ui.records import (
    LibraryError,
    LibraryLimitError,
    LibraryLimits,
    NotFoundError,
    Role,
    StorageError,
    StoredConversation,
    StoredDocument,
    StoredTurn,
    Usage,
)

__all__ = [
    "UNCHANGED",
    "Library",
    "LibraryError",
    "LibraryLimitError",
    "LibraryLimits",
    "NotFoundError",
    "StorageError",
    "StoredConversation",
    "StoredDocument",
    "StoredTurn",
    "Unchanged",
    "Usage",
]


class Unchanged(enum.Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = enum.auto()


UNCHANGED: Final = Unchanged.UNCHANGED
"""For `update_document`: leave it as it is; None for a page range means all pages."""


class Library:
    """Documents and conversations on disk. Safe for threads and for several processes.

    All errors are LibraryError (a PaceLLMError): NotFoundError (unknown or foreign id, same
    message), LibraryLimitError, StorageError (disk full, database damaged). Close it (context
    manager) when done.

    Args:
        folder: the data folder; made with mode 0700 if it is not there.
    """

    def __init__(self, folder: Path, *, limits: LibraryLimits = LibraryLimits()) -> None: ...

    def close(self) -> None: ...
    def __enter__(self) -> Library: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def signing_key(self) -> bytes:
        """32 random bytes, made once per data folder: to sign cookies that outlive a restart."""

    def usage(self, owner: str) -> Usage: ...
    def delete_owner(self, owner: str) -> None:
        """Removes all that an owner has, files included. Nothing happens if there is nothing."""

    # documents
    def take_in(self, path: Path) -> Path:
        """Moves an upload out of its place, into a private folder of this process, at once.

        Returns:
            Its new path, with a random name: pass it to `load_document_bytes` (with the original
            file name) and then to `add_document`, or unlink it if it is refused. Left-overs go at
            `close`, or at the next start if the process dies.

        Raises:
            LibraryLimitError: larger than `file_bytes`. StorageError: no such regular file.
        """

    def add_document(
        self, owner: str, name: str, data: bytes | Path, document: Document, tokens: int | None
    ) -> StoredDocument:
        """Keeps a file and its parsed pages; it comes last in the list, and is chosen.

        Args:
            data: the file. A path from `take_in` is moved, any other is copied.
        """

    def documents(self, owner: str) -> list[StoredDocument]: ...
    def document(self, owner: str, document_id: str) -> StoredDocument: ...
    def pages(self, owner: str, document_id: str) -> Document: ...
    def file(self, owner: str, document_id: str) -> Path: ...
    def update_document(
        self,
        owner: str,
        document_id: str,
        *,
        position: int | None = None,
        chosen: bool | None = None,
        page_range: tuple[int, int] | Literal[Unchanged.UNCHANGED] | None = UNCHANGED,
        tokens: int | None = None,
    ) -> StoredDocument:
        """Position: cut to the list's ends. page_range: None = all pages; LibraryError if the
        document has no such pages."""

    def reorder(self, owner: str, document_ids: Sequence[str]) -> list[StoredDocument]:
        """Those named first, in that order; the others after them, in their old order."""

    def remove_document(self, owner: str, document_id: str) -> None: ...

    # conversations
    def conversations(self, owner: str) -> list[StoredConversation]:
        """Last updated first."""

    def create_conversation(
        self, owner: str, *, title: str = "", document_ids: Sequence[str] = ()
    ) -> StoredConversation: ...
    def conversation(
        self, owner: str, conversation_id: str
    ) -> tuple[StoredConversation, list[StoredTurn]]: ...
    def add_turn(
        self,
        owner: str,
        conversation_id: str,
        role: Role,
        text: str,
        *,
        citations: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> StoredTurn: ...
    def truncate_conversation(
        self, owner: str, conversation_id: str, turn_id: str
    ) -> list[StoredTurn]:
        """Takes away a turn and all after it; returns what was taken away, in order."""

    def set_conversation_documents(
        self, owner: str, conversation_id: str, document_ids: Sequence[str]
    ) -> StoredConversation: ...
    def rename(self, owner: str, conversation_id: str, title: str) -> StoredConversation: ...
    def delete_conversation(self, owner: str, conversation_id: str) -> None: ...
