"""The tables of the library, and how those of older versions become those of this one.

Knows SQL and nothing of what calls it.
"""

from __future__ import annotations

import sqlite3

from pacellm_rag_ui.records import StorageError

__all__ = ["MIGRATIONS", "migrate"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        """CREATE TABLE owners (
            owner TEXT PRIMARY KEY,
            folder TEXT NOT NULL UNIQUE,
            created REAL NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE documents (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL REFERENCES owners ON DELETE CASCADE,
            name TEXT NOT NULL,
            title TEXT NOT NULL,
            media_type TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            kept_bytes INTEGER NOT NULL,
            pages INTEGER NOT NULL,
            tokens INTEGER,
            warnings TEXT NOT NULL,
            added REAL NOT NULL,
            position INTEGER NOT NULL,
            chosen INTEGER NOT NULL,
            first_page INTEGER,
            last_page INTEGER,
            content_id TEXT NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX documents_of_owner ON documents (owner, position)",
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL REFERENCES owners ON DELETE CASCADE,
            title TEXT NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX conversations_of_owner ON conversations (owner, updated)",
        """CREATE TABLE conversation_documents (
            conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
            document TEXT NOT NULL REFERENCES documents ON DELETE CASCADE,
            place INTEGER NOT NULL,
            PRIMARY KEY (conversation, document)
        ) WITHOUT ROWID""",
        "CREATE INDEX conversations_of_document ON conversation_documents (document)",
        """CREATE TABLE turns (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
            role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
            text TEXT NOT NULL,
            citations TEXT NOT NULL,
            details TEXT NOT NULL,
            time REAL NOT NULL
        )""",
        "CREATE INDEX turns_of_conversation ON turns (conversation, number)",
    ),
    (
        "ALTER TABLE owners ADD COLUMN used REAL NOT NULL DEFAULT 0",
        "UPDATE owners SET used = strftime('%s', 'now')",
        "CREATE TABLE removed_contents (content_id TEXT PRIMARY KEY, removed REAL NOT NULL) "
        "WITHOUT ROWID",
        "CREATE INDEX documents_of_content ON documents (content_id)",
    ),
)
"""Statements that lead from each `user_version` to the next; the first from an empty database.

Released steps are never changed; a new version appends one.
"""


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the tables up to this version, all steps or none.

    Raises:
        StorageError: a newer version made them.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StorageError(
                f"The library has format {version}; this version of pacellm-rag knows formats up "
                f"to {len(MIGRATIONS)}. Update pacellm-rag, or name another data folder."
            )
        for step in MIGRATIONS[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
