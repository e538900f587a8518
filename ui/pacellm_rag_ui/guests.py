"""Room for guests: who nobody knows, and who may never come back.

A guest is whoever has the cookie. When no cookie of theirs can be good any more, what they kept is
removed. When there are too many guests, or they keep too much, those who have stayed away longest
give way, but none who was here within `guest_days`; if that is not enough, nothing more is taken
from guests. Knows the database's rows only.
"""

from __future__ import annotations

import sqlite3
import time

from pacellm_rag_ui.identity import GUEST_SECONDS, is_guest
from pacellm_rag_ui.records import LibraryLimitError, LibraryLimits

__all__ = ["check_guests", "leaving_guests"]

_DAY = 24 * 3600.0


def leaving_guests(
    connection: sqlite3.Connection, owner: str, size: int, limits: LibraryLimits
) -> list[str]:
    """The guests that must go before an owner may keep something new, oldest first.

    Args:
        connection: to read with.
        owner: who is to keep it; "" for nobody.
        size: how many bytes.
        limits: of all guests together.
    """
    rows = connection.execute(
        "SELECT owner, used, (SELECT COALESCE(SUM(kept_bytes), 0) FROM documents "
        "WHERE documents.owner = owners.owner) AS bytes FROM owners ORDER BY used"
    ).fetchall()
    guests = [row for row in rows if is_guest(row["owner"])]
    now, comes = time.time(), is_guest(owner)
    count = len(guests) + (comes and all(row["owner"] != owner for row in guests))
    total = sum(row["bytes"] for row in guests) + (size if comes else 0)
    leaving = []
    for row in guests:
        away = now - row["used"]
        crowded = comes and (count > limits.guests or total > limits.guest_bytes)
        old = away > GUEST_SECONDS or (crowded and away > limits.guest_days * _DAY)
        if row["owner"] != owner and old:
            leaving.append(str(row["owner"]))
            count, total = count - 1, total - row["bytes"]
    return leaving


def check_guests(
    connection: sqlite3.Connection, owner: str, size: int, limits: LibraryLimits
) -> None:
    """Refuses what is too much of all guests together.

    Args:
        connection: of the transaction that keeps it.
        owner: who is to keep it, known already or not.
        size: how many bytes.
        limits: of all guests together.

    Raises:
        LibraryLimitError: it is too much.
    """
    if not is_guest(owner):
        return
    row = connection.execute(
        "SELECT COUNT(*) AS others FROM owners WHERE owner GLOB 'guest:*' AND owner != ?", (owner,)
    ).fetchone()
    if row["others"] >= limits.guests:
        raise LibraryLimitError(
            f"This server keeps things of {row['others']:,} guests, and the limit is "
            f"{limits.guests:,}. Come back when one of them has deleted theirs, or has stayed away "
            f"for {limits.guest_days:,} days. Who runs the server can raise --max-guests, or give "
            "people accounts with --auth."
        )
    kept: int = connection.execute(
        "SELECT COALESCE(SUM(kept_bytes), 0) FROM documents WHERE owner GLOB 'guest:*'"
    ).fetchone()[0]
    if size and kept + size > limits.guest_bytes:
        raise LibraryLimitError(
            f"With this file the documents of all guests of this server would take "
            f"{kept + size:,} bytes, and the limit is {limits.guest_bytes:,} bytes. Remove "
            "documents that you do not need. Who runs the server can raise --guest-gb."
        )
