"""The conversations of an owner: turns, titles, which documents they are about.

Knows the database's rows; knows nothing of files, models or the web.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pacellm_rag_ui.disk import new_id
from pacellm_rag_ui.document_rows import one_document
from pacellm_rag_ui.guests import check_guests
from pacellm_rag_ui.owners import known_key, known_owner, register
from pacellm_rag_ui.records import (
    LibraryLimitError,
    NotFoundError,
    Role,
    StoredConversation,
    StoredTurn,
)
from pacellm_rag_ui.removals import Removals
from pacellm_rag_ui.stored_text import json_text, kept_text, kept_title

__all__ = ["ConversationLog"]


class ConversationLog(Removals):
    """The part of `Library` that keeps conversations."""

    def conversations(self, owner: str) -> list[StoredConversation]:
        """An owner's conversations, last updated first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM conversations WHERE owner = ? ORDER BY updated DESC, created DESC",
                (known_key(owner),),
            ).fetchall()
            return [_conversation(connection, row) for row in rows]

    def create_conversation(
        self, owner: str, *, title: str = "", document_ids: Sequence[str] = ()
    ) -> StoredConversation:
        """Begins a conversation.

        Raises:
            NotFoundError: the owner has no document of one of these ids.
            LibraryLimitError: the owner has too many conversations, or there are too many guests.
        """
        conversation_id, now = new_id(), time.time()
        self.sweep_guests(known_owner(owner))
        with self._database.writing() as connection:
            check_guests(connection, owner, 0, self.limits)
            register(connection, owner)
            self._check_count(connection, owner)
            connection.execute(
                "INSERT INTO conversations (id, owner, title, created, updated) "
                "VALUES (?, ?, ?, ?, ?)",
                (conversation_id, owner, kept_title(title), now, now),
            )
            _link(connection, owner, conversation_id, document_ids)
            return _found(connection, owner, conversation_id)

    def conversation(
        self, owner: str, conversation_id: str
    ) -> tuple[StoredConversation, list[StoredTurn]]:
        """A conversation and its turns in order.

        Raises:
            NotFoundError: the owner has no such conversation.
        """
        with self._database.reading() as connection:
            found = _found(connection, owner, conversation_id)
            return found, _turns(connection, found.id)

    def add_turn(
        self,
        owner: str,
        conversation_id: str,
        role: Role,
        text: str,
        *,
        citations: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> StoredTurn:
        """Adds what was said to the end of a conversation.

        Raises:
            NotFoundError: the owner has no such conversation.
            LibraryLimitError: the turn is too large, or the conversation has too many.
            LibraryError: citations or details are no JSON.
        """
        said = kept_text(text)
        cited = json_text([dict(each) for each in citations], "citations")
        more = json_text(dict(details or {}), "details")
        size = sum(len(each.encode()) for each in (said, cited, more))
        if size > self.limits.turn_bytes:
            raise LibraryLimitError(
                f"This has {size:,} bytes; the limit of this server is {self.limits.turn_bytes:,} "
                "for one question or answer. Shorten it."
            )
        turn_id = new_id()
        with self._database.writing() as connection:
            found = _found(connection, owner, conversation_id)
            count: int = connection.execute(
                "SELECT COUNT(*) FROM turns WHERE conversation = ?", (found.id,)
            ).fetchone()[0]
            if count >= self.limits.turns:
                raise LibraryLimitError(
                    f"This conversation has {count} questions and answers, and the limit of this "
                    f"server is {self.limits.turns}. Begin a new chat."
                )
            now = time.time()
            number = connection.execute(
                "INSERT INTO turns (id, conversation, role, text, citations, details, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (turn_id, found.id, role, said, cited, more, now),
            ).lastrowid
            _touch(connection, found.id, now)
            return _turns(connection, found.id, since=number or 0)[0]

    def truncate_conversation(
        self, owner: str, conversation_id: str, turn_id: str
    ) -> list[StoredTurn]:
        """Takes away a turn and all after it, so that it can be said or answered anew.

        Returns:
            What was taken away, in order.

        Raises:
            NotFoundError: the owner has no such conversation, or it has no such turn.
        """
        with self._database.writing() as connection:
            found = _found(connection, owner, conversation_id)
            row = connection.execute(
                "SELECT number FROM turns WHERE conversation = ? AND id = ?",
                (found.id, known_key(turn_id)),
            ).fetchone()
            if row is None:
                raise NotFoundError("There is no such turn in this conversation: reload the page.")
            taken = _turns(connection, found.id, since=row["number"])
            connection.execute(
                "DELETE FROM turns WHERE conversation = ? AND number >= ?",
                (found.id, row["number"]),
            )
            _touch(connection, found.id, time.time())
        self._database.forget_deleted()
        return taken

    def set_conversation_documents(
        self, owner: str, conversation_id: str, document_ids: Sequence[str]
    ) -> StoredConversation:
        """Says anew which documents a conversation is about.

        Raises:
            NotFoundError: the owner has no such conversation, or no document of one of these ids.
        """
        with self._database.writing() as connection:
            found = _found(connection, owner, conversation_id)
            _link(connection, owner, found.id, document_ids)
            return _found(connection, owner, found.id)

    def rename(self, owner: str, conversation_id: str, title: str) -> StoredConversation:
        """Gives a conversation a title of one line; its place in the list stays.

        Raises:
            NotFoundError: the owner has no such conversation.
        """
        with self._database.writing() as connection:
            found = _found(connection, owner, conversation_id)
            connection.execute(
                "UPDATE conversations SET title = ? WHERE id = ?", (kept_title(title), found.id)
            )
            return _found(connection, owner, found.id)

    def delete_conversation(self, owner: str, conversation_id: str) -> None:
        """Removes a conversation and all that was said in it.

        Raises:
            NotFoundError: the owner has no such conversation.
        """
        with self._database.writing() as connection:
            found = _found(connection, owner, conversation_id)
            connection.execute("DELETE FROM conversations WHERE id = ?", (found.id,))
        self._database.forget_deleted()

    def _check_count(self, connection: sqlite3.Connection, owner: str) -> None:
        count: int = connection.execute(
            "SELECT COUNT(*) FROM conversations WHERE owner = ?", (owner,)
        ).fetchone()[0]
        if count >= self.limits.conversations:
            raise LibraryLimitError(
                f"You keep {count} conversations, and the limit of this server is "
                f"{self.limits.conversations}. Delete one first."
            )


def _found(connection: sqlite3.Connection, owner: str, conversation_id: str) -> StoredConversation:
    row = connection.execute(
        "SELECT * FROM conversations WHERE owner = ? AND id = ?",
        (known_key(owner), known_key(conversation_id)),
    ).fetchone()
    if row is None:
        raise NotFoundError(
            "There is no such conversation. It may have been deleted: reload the page."
        )
    return _conversation(connection, row)


def _conversation(connection: sqlite3.Connection, row: sqlite3.Row) -> StoredConversation:
    documents = connection.execute(
        "SELECT document FROM conversation_documents WHERE conversation = ? ORDER BY place",
        (row["id"],),
    )
    return StoredConversation(
        id=row["id"],
        owner=row["owner"],
        title=row["title"],
        created=row["created"],
        updated=row["updated"],
        document_ids=tuple(each["document"] for each in documents),
    )


def _link(
    connection: sqlite3.Connection, owner: str, conversation_id: str, document_ids: Sequence[str]
) -> None:
    wanted = dict.fromkeys(known_key(each) for each in document_ids)
    ids = [one_document(connection, owner, each).id for each in wanted]
    connection.execute(
        "DELETE FROM conversation_documents WHERE conversation = ?", (conversation_id,)
    )
    connection.executemany(
        "INSERT INTO conversation_documents (conversation, document, place) VALUES (?, ?, ?)",
        [(conversation_id, each, place) for place, each in enumerate(ids)],
    )


def _turns(
    connection: sqlite3.Connection, conversation_id: str, since: int = 0
) -> list[StoredTurn]:
    rows = connection.execute(
        "SELECT * FROM turns WHERE conversation = ? AND number >= ? ORDER BY number",
        (conversation_id, since),
    )
    return [
        StoredTurn(
            id=row["id"],
            role=row["role"],
            text=row["text"],
            citations=tuple(json.loads(row["citations"])),
            details=json.loads(row["details"]),
            time=row["time"],
        )
        for row in rows
    ]


def _touch(connection: sqlite3.Connection, conversation_id: str, now: float) -> None:
    connection.execute("UPDATE conversations SET updated = ? WHERE id = ?", (now, conversation_id))
