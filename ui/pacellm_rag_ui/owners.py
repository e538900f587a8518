"""Whose things are: the owners' rows, and what may be asked for at all.

Knows the database's rows only. Who an owner is, and how they prove it, is for others to say.
"""

from __future__ import annotations

import sqlite3
import time
import unicodedata

from pacellm_rag_ui.disk import new_id
from pacellm_rag_ui.records import LibraryError, Usage

__all__ = ["folder_of", "known_key", "known_owner", "owner_usage", "register"]

_LONGEST_OWNER = 300


def known_key(value: object) -> str:
    """An id as it came from a browser; "", which nothing has, for what can not be one."""
    if not isinstance(value, str) or any(unicodedata.category(c) == "Cs" for c in value):
        return ""
    return value


def known_owner(owner: str) -> str:
    """The owner, if it can be one.

    Raises:
        LibraryError: it is empty, too long, or has characters that would make it hard to tell
            from another.
    """
    if not isinstance(owner, str) or not 1 <= len(owner) <= _LONGEST_OWNER:
        raise LibraryError(f"An owner has 1 to {_LONGEST_OWNER} characters.")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in owner):
        raise LibraryError(f"The owner {owner!r} has control characters; use another name.")
    return owner


def folder_of(connection: sqlite3.Connection, owner: str) -> str | None:
    """The name of an owner's folder; None where nothing is kept of this owner."""
    row = connection.execute(
        "SELECT folder FROM owners WHERE owner = ?", (known_key(owner),)
    ).fetchone()
    return None if row is None else str(row["folder"])


def register(connection: sqlite3.Connection, owner: str) -> str:
    """The name of an owner's folder, chosen when there is none yet.

    Raises:
        LibraryError: there can be no such owner.
    """
    known = folder_of(connection, owner)
    if known is not None:
        return known
    folder, now = new_id(), time.time()
    connection.execute(
        "INSERT INTO owners (owner, folder, created, used) VALUES (?, ?, ?, ?)",
        (known_owner(owner), folder, now, now),
    )
    return folder


def owner_usage(connection: sqlite3.Connection, owner: str) -> Usage:
    """What an owner keeps."""
    row = connection.execute(
        "SELECT COUNT(*) AS files, COALESCE(SUM(kept_bytes), 0) AS bytes FROM documents "
        "WHERE owner = ?",
        (known_key(owner),),
    ).fetchone()
    return Usage(row["files"], row["bytes"])
