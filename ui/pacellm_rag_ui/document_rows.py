"""Rows of documents: found, counted, put in order. Each belongs to one owner.

Knows the database's rows only.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence

from pacellm_rag.documents import Document
from pacellm_rag_ui.owners import known_key
from pacellm_rag_ui.records import NotFoundError, StoredDocument
from pacellm_rag_ui.stored_text import kept_name, kept_text, kept_title

__all__ = ["all_documents", "insert_document", "number_documents", "one_document"]


def all_documents(connection: sqlite3.Connection, owner: str) -> list[StoredDocument]:
    """An owner's documents in their order."""
    rows = connection.execute(
        "SELECT * FROM documents WHERE owner = ? ORDER BY position, added", (known_key(owner),)
    )
    return [_document(row) for row in rows]


def one_document(connection: sqlite3.Connection, owner: str, document_id: str) -> StoredDocument:
    """One document.

    Raises:
        NotFoundError: the owner has no such document.
    """
    row = connection.execute(
        "SELECT * FROM documents WHERE owner = ? AND id = ?",
        (known_key(owner), known_key(document_id)),
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such document. It may have been removed: reload the page.")
    return _document(row)


def insert_document(
    connection: sqlite3.Connection,
    stored: tuple[str, str],
    name: str,
    sizes: tuple[int, int],
    document: Document,
    tokens: int | None,
) -> StoredDocument:
    """Adds a document at the end of its owner's list.

    Args:
        connection: within a transaction.
        stored: its owner and its id.
        name: as the owner gave it.
        sizes: bytes of the file, and of the file and the parsed pages together.
        document: what it was parsed to.
        tokens: of its text.
    """
    owner, document_id = stored
    shown = kept_name(name)
    row = {
        "id": document_id,
        "owner": owner,
        "name": shown,
        "title": kept_title(document.title) or shown,
        "media_type": kept_title(document.media_type),
        "bytes": sizes[0],
        "kept_bytes": sizes[1],
        "pages": len(document.pages),
        "tokens": tokens,
        "warnings": json.dumps([kept_text(each.message) for each in document.warnings]),
        "added": time.time(),
        "position": len(all_documents(connection, owner)),
        "chosen": True,
        "content_id": kept_title(document.id),
    }
    columns, values = ", ".join(row), ", ".join(f":{column}" for column in row)
    connection.execute(f"INSERT INTO documents ({columns}) VALUES ({values})", row)
    connection.execute("DELETE FROM removed_contents WHERE content_id = ?", (row["content_id"],))
    return one_document(connection, owner, document_id)


def number_documents(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Gives documents their positions: 0 to the first, and so on."""
    connection.executemany("UPDATE documents SET position = ? WHERE id = ?", enumerate(ids))


def _document(row: sqlite3.Row) -> StoredDocument:
    first, last = row["first_page"], row["last_page"]
    return StoredDocument(
        id=row["id"],
        owner=row["owner"],
        name=row["name"],
        title=row["title"],
        media_type=row["media_type"],
        bytes=row["bytes"],
        pages=row["pages"],
        tokens=row["tokens"],
        warnings=tuple(json.loads(row["warnings"])),
        added=row["added"],
        position=row["position"],
        chosen=bool(row["chosen"]),
        page_range=None if first is None or last is None else (first, last),
        content_id=row["content_id"],
    )
