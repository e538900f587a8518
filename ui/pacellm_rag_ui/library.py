"""What is kept on the server: documents and conversations, each for its owner alone.

    library.sqlite3  rows: `schema`
    owners/          the documents' files: `document_files`
    arrivals/        files on their way: `arrivals`

Every access is by owner; another owner's id is as unknown as one that never was. A file is on the
disk before its row is, and a row is gone before its file is: after a crash there may be files
without rows, which the next start removes, and never a row without files. Knows nothing of models
or the web.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from pacellm_rag_ui.arrivals import Arrivals
from pacellm_rag_ui.conversation_log import ConversationLog
from pacellm_rag_ui.database import Database
from pacellm_rag_ui.disk import clear_errors
from pacellm_rag_ui.document_files import DocumentFiles
from pacellm_rag_ui.document_shelf import UNCHANGED, DocumentShelf, Unchanged
from pacellm_rag_ui.owners import owner_usage
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
    "Role",
    "StorageError",
    "StoredConversation",
    "StoredDocument",
    "StoredTurn",
    "Unchanged",
    "Usage",
]

logger = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds to wait while another process opens the same library
_DEFAULT_LIMITS = LibraryLimits()


class Library(DocumentShelf, ConversationLog):
    """Documents and conversations in a folder, for many threads and processes at once.

    Close it when done; it is a context manager. Methods for documents: `DocumentShelf`; for
    conversations: `ConversationLog`; for removing: `Removals`. All errors are LibraryError.

    Args:
        folder: the data folder; made, for this user only, if it is not there.
        limits: how much an owner may keep.

    Raises:
        StorageError: it can not be used: no rights, full, damaged, made by a newer version, or
            holds documents but no library.
    """

    def __init__(self, folder: Path, *, limits: LibraryLimits = _DEFAULT_LIMITS) -> None:
        self.folder = folder
        self.limits = limits
        self._tell = []
        with clear_errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            opening = FileLock(folder / "opening.lock", timeout=_PATIENCE)
            try:
                opening.acquire()
            except Timeout as error:
                raise StorageError(
                    f"Another process has been opening {folder} for {_PATIENCE:.0f} seconds. "
                    "Try again, or end it."
                ) from error
        try:
            self._open()
        finally:
            opening.release()
        try:
            self.sweep_guests()
        except StorageError:  # of files, which the next start removes
            logger.warning("Files of guests could not be removed.", exc_info=True)

    def close(self) -> None:
        """Removes what has arrived and was not added, and closes the database."""
        self._arrivals.close()
        self._database.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def signing_key(self) -> bytes:
        """32 secret bytes, the same in every process and after a restart, to sign cookies with."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO secrets (name, value) VALUES ('signing', ?) ON CONFLICT DO NOTHING",
                (secrets.token_bytes(32),),
            )
            row = connection.execute("SELECT value FROM secrets WHERE name = 'signing'").fetchone()
            return bytes(row["value"])

    def usage(self, owner: str) -> Usage:
        """What an owner keeps, to be held against the limits."""
        with self._database.reading() as connection:
            return owner_usage(connection, owner)

    def _open(self) -> None:
        rows = self.folder / "library.sqlite3"
        files = self.folder / "owners"
        with clear_errors():
            if not rows.exists() and files.is_dir() and any(files.iterdir()):
                raise StorageError(
                    f"{files} holds files, but {rows.name} beside it is missing, without which "
                    "nobody knows whose they are. Put a copy of it back, or name another folder."
                )
        self._files = DocumentFiles(files)
        self._database = Database(rows)
        try:
            self._arrivals = Arrivals(self.folder / "arrivals", file_bytes=self.limits.file_bytes)
            self._sweep()
        except BaseException:
            self._database.close()
            raise

    def _sweep(self) -> None:
        """Within a transaction, so that no other process places files meanwhile."""
        with self._database.writing() as connection, clear_errors():
            known: dict[str, set[str]] = {}
            for row in connection.execute(
                "SELECT folder, id FROM owners JOIN documents USING (owner)"
            ):
                known.setdefault(row["folder"], set()).add(row["id"])
            self._files.sweep(known)
