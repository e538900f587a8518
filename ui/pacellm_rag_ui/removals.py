"""What is removed from the library, and what has to follow: files, images, readings.

A row goes first, then its files; whoever asked to be told is told of each file. What was removed
and nobody else keeps is noted until the models have forgotten it, also over a restart. Knows the
database's rows and the files; knows nothing of models.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pacellm_rag_ui.database import Database
from pacellm_rag_ui.document_files import DocumentFiles
from pacellm_rag_ui.document_rows import all_documents
from pacellm_rag_ui.guests import leaving_guests
from pacellm_rag_ui.owners import folder_of, known_key
from pacellm_rag_ui.records import LibraryLimits

__all__ = ["Removals", "note_removed"]

_NOTED_EVERY = 3600.0  # seconds between notes that an owner is here


class Removals:
    """The part of `Library` that removes owners and what they kept."""

    limits: LibraryLimits
    _database: Database
    _files: DocumentFiles
    _tell: list[Callable[[Path], object]]

    def when_removed(self, tell: Callable[[Path], object]) -> None:
        """Calls `tell` with the place of every document's file that is removed from now on."""
        self._tell.append(tell)

    def delete_owner(self, owner: str) -> None:
        """Removes all that an owner has; nothing happens where there is nothing.

        Raises:
            StorageError: all rows are removed, but some files can not be yet.
        """
        with self._database.writing() as connection:
            folder = folder_of(connection, owner)
            if folder is None:
                return
            documents = all_documents(connection, owner)
            connection.execute("DELETE FROM owners WHERE owner = ?", (known_key(owner),))
            note_removed(connection, [each.content_id for each in documents])
        self._told(folder, [each.id for each in documents])
        self._files.remove_owner(folder)
        self._database.forget_deleted()

    def note_use(self, owner: str) -> None:
        """Notes that an owner is here: guests who stay away for long may be removed."""
        now = time.time()
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT used FROM owners WHERE owner = ?", (known_key(owner),)
            ).fetchone()
        if row is not None and now - row["used"] > _NOTED_EVERY:
            with self._database.writing() as connection:
                connection.execute(
                    "UPDATE owners SET used = ? WHERE owner = ?", (now, known_key(owner))
                )

    def sweep_guests(self, owner: str = "", size: int = 0) -> int:
        """Removes guests who can not come back, and if need be those who stayed away longest.

        Args:
            owner: for whom there must be room; "" for nobody.
            size: for how many bytes.

        Returns:
            How many were removed.

        Raises:
            StorageError: some of their files can not be removed yet.
        """
        with self._database.reading() as connection:
            leaving = leaving_guests(connection, owner, size, self.limits)
        for each in leaving:
            self.delete_owner(each)
        return len(leaving)

    def removed_contents(self) -> dict[str, float]:
        """Content ids of documents that were removed, nobody keeps, and may still be known.

        Each with the time of its removal.
        """
        with self._database.reading() as connection:
            rows = connection.execute("SELECT content_id, removed FROM removed_contents").fetchall()
            return {str(row["content_id"]): float(row["removed"]) for row in rows}

    def contents_forgotten(self, removed: Mapping[str, float]) -> None:
        """Takes contents from `removed_contents`: no model knows them any more.

        Those that were kept, and removed again, since `removed` was looked up stay there.
        """
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM removed_contents WHERE content_id = ? AND removed = ?",
                list(removed.items()),
            )

    def _told(self, folder: str, document_ids: Iterable[str]) -> None:
        for document_id in document_ids:
            for tell in self._tell:
                tell(self._files.original(folder, document_id))


def note_removed(connection: sqlite3.Connection, content_ids: Iterable[str]) -> None:
    """Notes contents that nobody keeps any more; those that somebody does are not theirs alone."""
    connection.executemany(
        "INSERT OR REPLACE INTO removed_contents (content_id, removed) SELECT :id, :now "
        "WHERE NOT EXISTS (SELECT 1 FROM documents WHERE content_id = :id)",
        [{"id": each, "now": time.time()} for each in content_ids],
    )
