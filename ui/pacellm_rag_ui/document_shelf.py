"""The documents of an owner: files, parsed pages, order, choice.

Knows the database's rows and the files; knows nothing of conversations, models or the web.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pacellm_rag.documents import Document
from pacellm_rag_ui.arrivals import Arrivals
from pacellm_rag_ui.disk import new_id
from pacellm_rag_ui.document_rows import (
    all_documents,
    insert_document,
    number_documents,
    one_document,
)
from pacellm_rag_ui.guests import check_guests
from pacellm_rag_ui.owners import folder_of, known_owner, owner_usage, register
from pacellm_rag_ui.parsed_pages import document_from_bytes, document_to_bytes
from pacellm_rag_ui.records import (
    LibraryError,
    LibraryLimitError,
    StorageError,
    StoredDocument,
)
from pacellm_rag_ui.removals import Removals, note_removed

__all__ = ["UNCHANGED", "DocumentShelf", "Unchanged"]


class Unchanged(enum.Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = enum.auto()


UNCHANGED: Final = Unchanged.UNCHANGED
"""For `update_document`: leave it as it is; None for a page range means all pages."""


class DocumentShelf(Removals):
    """The part of `Library` that keeps documents."""

    _arrivals: Arrivals

    def take_in(self, path: Path) -> Path:
        """Moves an upload out of its place, into a private folder of this process, at once.

        Where it can not be kept it is removed: either way nothing is left in its old place.

        Returns:
            Its new path, with a random name, for `load_document_bytes` (with the original name)
            and then for `add_document`; unlink it if it is not to be added. What is left over
            goes at `close`, or when the next process starts if this one is killed.

        Raises:
            LibraryLimitError: it has more than `file_bytes`.
            StorageError: there is no such file, or it is a link, a folder or a device.
        """
        return self._arrivals.take_in(path)

    def add_document(
        self, owner: str, name: str, data: bytes | Path, document: Document, tokens: int | None
    ) -> StoredDocument:
        """Keeps a file and its parsed pages; it comes last in the list, and is chosen.

        Args:
            owner: whose it is to be.
            name: the file's name as the owner gave it.
            data: the file. A path from `take_in` is used up, even after an error; any other
                file is copied.
            document: what it was parsed to.
            tokens: of its text, if they are counted.

        Raises:
            LibraryLimitError: the owner has too many documents, or bytes, or the file too many; or
                all guests together have.
            StorageError: the disk is full or fails.
        """
        try:
            original = self._arrivals.receive(data)
        except LibraryError:
            if isinstance(data, Path) and self._arrivals.holds(data):
                data.unlink(missing_ok=True)
            raise
        parsed: Path | None = None
        try:
            kept = document_to_bytes(document)
            size = original.stat().st_size + len(kept)
            self.sweep_guests(known_owner(owner), size)
            # before the pages are written; it counts again when they are
            with self._database.reading() as connection:
                self._check_room(connection, owner, size)
            parsed = self._arrivals.write(kept)
            return self._add(owner, name, (original, parsed), document, tokens)
        finally:
            original.unlink(missing_ok=True)
            if parsed is not None:
                parsed.unlink(missing_ok=True)

    def documents(self, owner: str) -> list[StoredDocument]:
        """An owner's documents in their order."""
        with self._database.reading() as connection:
            return all_documents(connection, owner)

    def document(self, owner: str, document_id: str) -> StoredDocument:
        """One document.

        Raises:
            NotFoundError: the owner has no such document.
        """
        with self._database.reading() as connection:
            return one_document(connection, owner, document_id)

    def pages(self, owner: str, document_id: str) -> Document:
        """What a document was parsed to; read from the disk each time.

        Raises:
            NotFoundError: the owner has no such document.
            StorageError: the file is missing or damaged.
        """
        found, folder = self._found(owner, document_id)
        try:
            data = self._files.pages(folder, found.id).read_bytes()
            return document_from_bytes(data, found.name)
        except (OSError, ValueError) as error:
            self.document(owner, document_id)  # it may have been removed just now
            raise _missing(found) from error

    def file(self, owner: str, document_id: str) -> Path:
        """Where the original lies; to be read, never to be changed.

        Raises:
            NotFoundError: the owner has no such document.
            StorageError: the file is missing.
        """
        found, folder = self._found(owner, document_id)
        path = self._files.original(folder, found.id)
        if not path.is_file():
            self.document(owner, document_id)
            raise _missing(found)
        return path

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
        """Changes what is given and leaves the rest.

        Args:
            owner: whose it is.
            document_id: which.
            position: its new place; one beyond the list's ends means the end.
            chosen: whether the next question reads it.
            page_range: first and last page that questions read; None for all.
            tokens: of its text, counted anew.

        Raises:
            NotFoundError: the owner has no such document.
            LibraryError: it has no such pages.
        """
        with self._database.writing() as connection:
            found = one_document(connection, owner, document_id)
            if page_range is not UNCHANGED:
                first, last = page_range or (None, None)
                if first is not None and last is not None:
                    _check_pages(found, first, last)
                connection.execute(
                    "UPDATE documents SET first_page = ?, last_page = ? WHERE id = ?",
                    (first, last, found.id),
                )
            if chosen is not None:
                connection.execute(
                    "UPDATE documents SET chosen = ? WHERE id = ?", (bool(chosen), found.id)
                )
            if tokens is not None:
                connection.execute(
                    "UPDATE documents SET tokens = ? WHERE id = ?", (tokens, found.id)
                )
            if position is not None:
                ids = [each.id for each in all_documents(connection, owner) if each.id != found.id]
                ids.insert(max(position, 0), found.id)
                number_documents(connection, ids)
            return one_document(connection, owner, document_id)

    def reorder(self, owner: str, document_ids: Sequence[str]) -> list[StoredDocument]:
        """Puts the documents named first, in that order; the others follow in their old order.

        Raises:
            NotFoundError: the owner has no document of one of these ids.
        """
        with self._database.writing() as connection:
            named = [one_document(connection, owner, each).id for each in document_ids]
            others = [each.id for each in all_documents(connection, owner)]
            number_documents(connection, list(dict.fromkeys([*named, *others])))
            return all_documents(connection, owner)

    def remove_document(self, owner: str, document_id: str) -> None:
        """Removes a document, its files and its place in conversations, which stay.

        Raises:
            NotFoundError: the owner has no such document.
            StorageError: it is removed from the list, but its files can not be yet.
        """
        with self._database.writing() as connection:
            found = one_document(connection, owner, document_id)
            folder = folder_of(connection, owner) or ""
            connection.execute("DELETE FROM documents WHERE id = ?", (found.id,))
            note_removed(connection, [found.content_id])
            number_documents(connection, [each.id for each in all_documents(connection, owner)])
        self._told(folder, [found.id])
        self._files.remove(folder, found.id)
        self._database.forget_deleted()

    def _add(
        self,
        owner: str,
        name: str,
        files: tuple[Path, Path],
        document: Document,
        tokens: int | None,
    ) -> StoredDocument:
        document_id = new_id()
        size, pages_size = (path.stat().st_size for path in files)
        folder = None
        try:
            with self._database.writing() as connection:
                self._check_room(connection, owner, size + pages_size)
                folder = register(connection, owner)
                # The files first: a row whose files are missing would be worse than the reverse.
                self._files.place(*files, folder, document_id)
                return insert_document(
                    connection,
                    (owner, document_id),
                    name,
                    (size, size + pages_size),
                    document,
                    tokens,
                )
        except Exception:  # after anything harder the next start sweeps
            if folder is not None:
                self._files.remove(folder, document_id)
            raise

    def _check_room(self, connection: sqlite3.Connection, owner: str, size: int) -> None:
        check_guests(connection, owner, size, self.limits)
        used = owner_usage(connection, owner)
        if used.files >= self.limits.files:
            raise LibraryLimitError(
                f"You keep {used.files} documents, and the limit of this server is "
                f"{self.limits.files}. Remove one first."
            )
        if used.bytes + size > self.limits.owner_bytes:
            raise LibraryLimitError(
                f"With this file, which takes {size:,} bytes with its text, your documents would "
                f"take {used.bytes + size:,}; the limit of this server is "
                f"{self.limits.owner_bytes:,} bytes. Remove documents first."
            )

    def _found(self, owner: str, document_id: str) -> tuple[StoredDocument, str]:
        with self._database.reading() as connection:
            found = one_document(connection, owner, document_id)
            return found, folder_of(connection, owner) or ""


def _check_pages(document: StoredDocument, first: int, last: int) -> None:
    if not 1 <= first <= last <= document.pages:
        raise LibraryError(
            f"Pages {first} to {last} can not be read: {document.title} has pages 1 to "
            f"{document.pages}. Give a first page and a last one that is not before it."
        )


def _missing(document: StoredDocument) -> StorageError:
    return StorageError(
        f"The file of {document.title} is missing on the server, or damaged. Remove the document "
        "and add it again."
    )
