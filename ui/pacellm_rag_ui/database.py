"""One SQLite file, used by many threads and processes.

Knows transactions and the ways in which they fail; knows nothing of what the tables hold.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pacellm_rag_ui.disk import clear_errors
from pacellm_rag_ui.records import StorageError
from pacellm_rag_ui.schema import migrate

__all__ = ["Database"]

_PATIENCE = 30.0  # seconds to wait for another process' transaction; ours take milliseconds


class Database:
    """A connection that threads take turns at.

    Turns are short: nothing slower than a rename happens within one. Opening the same file for
    the first time is not for two processes at once; the caller sees to that.

    Args:
        path: the file; made, for its owner only, if it is not there.

    Raises:
        StorageError: it can not be opened, is no such database, or a newer version made it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        with clear_errors():  # SQLite gives its journals the mode of this file
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._clear_errors():
            connection = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            try:
                for pragma in (
                    "journal_mode = WAL",
                    "synchronous = FULL",
                    "foreign_keys = ON",
                    "secure_delete = ON",
                ):
                    connection.execute(f"PRAGMA {pragma}")
                migrate(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read within is of one moment.

        Raises:
            StorageError: the database can not be read, or is closed.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written within is kept, or after an exception none of it.

        No other thread or process writes meanwhile.

        Raises:
            StorageError: the database can not be written, or is closed.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def forget_deleted(self) -> None:
        """Wipes what was deleted from the journal as well, as far as no other process reads it."""
        with self._lock, self._clear_errors():
            self._open_connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Closes it; a second time does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._clear_errors():
            connection = self._open_connection()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk ends it by itself
                    connection.execute("ROLLBACK")
                raise

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError("The library is closed; open it again to use it.")
        return self._connection

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(_explained(error, self._path)) from error


def _explained(error: Exception, path: Path) -> str:
    said = str(error)
    if "is full" in said:
        return (
            "The disk of the data folder is full, and nothing was changed. Remove documents, or "
            "make room on the server."
        )
    if "is locked" in said:
        return (
            f"Another process has kept the library in use for {_PATIENCE:.0f} seconds, and nothing "
            "was changed. Try again."
        )
    if "not a database" in said or "malformed" in said:
        return (
            f"{path} is damaged or no library. Put a copy of it in its place, or start with "
            "another data folder."
        )
    return f"The library {path} can not be used: {said}. Nothing was changed."
