"""What the library keeps, as the rest of the page sees it, and the errors it raises.

Knows nothing of files, databases or the web.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pacellm_rag.errors import ConfigurationError, PaceLLMError

__all__ = [
    "LibraryError",
    "LibraryLimitError",
    "LibraryLimits",
    "NotFoundError",
    "Role",
    "StorageError",
    "StoredConversation",
    "StoredDocument",
    "StoredTurn",
    "Usage",
]

Role = Literal["user", "assistant"]


class LibraryError(PaceLLMError):
    """Something could not be kept, found or changed; the message is for the person asking."""


class NotFoundError(LibraryError):
    """There is no such thing, or it is another owner's: the two can not be told apart."""


class LibraryLimitError(LibraryError):
    """It is larger, or one more, than an owner may keep; the message names the limit."""


class StorageError(LibraryError):
    """The disk or the database failed: full, read-only, damaged, or made by a newer version."""


@dataclass(frozen=True)
class LibraryLimits:
    """How much one owner may keep, and how much all guests together.

    Attributes:
        file_bytes: largest file; as `DocumentLimits.file_bytes`, above which none is parsed.
        files: most documents of an owner.
        owner_bytes: most bytes of an owner's files and of their parsed pages together.
        conversations: most conversations of an owner.
        turns: most turns of a conversation.
        turn_bytes: largest turn: its text, citations and details.
        guests: most guests of whom something is kept.
        guest_bytes: most bytes of the documents of all guests together.
        guest_days: how long a guest must have stayed away to give way to others when there are too
            many, or they keep too much. Nobody gives way before.

    Raises:
        ConfigurationError: a limit is not a whole number of 1 or more.
    """

    file_bytes: int = 200_000_000
    files: int = 200
    owner_bytes: int = 2_000_000_000
    conversations: int = 500
    turns: int = 1_000
    turn_bytes: int = 2_000_000
    guests: int = 1_000
    guest_bytes: int = 50_000_000_000
    guest_days: int = 30

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"{each.name} is {value!r}; it must be a whole number, 1 or more."
                )


@dataclass(frozen=True)
class Usage:
    """What an owner keeps.

    Attributes:
        files: documents.
        bytes: of their files and parsed pages.
    """

    files: int
    bytes: int


@dataclass(frozen=True)
class StoredDocument:
    """A document of an owner.

    Attributes:
        id: random; also the name of its file on the server.
        owner: whose it is.
        name: the file's name as its owner gave it, without folders; U+FFFD stands for control
            characters. It may hold characters that change the direction of text.
        title: the document's title, never empty.
        media_type: what the file is, by its content.
        bytes: size of the file.
        pages: pages that were read.
        tokens: of its text, for the model that was loaded when they were counted; None if they
            never were.
        warnings: sentences on what is missing or doubtful.
        added: when, in seconds since 1970.
        position: place in the owner's list, from 0, without gaps.
        chosen: whether the next question reads it.
        page_range: first and last page that questions read; None for all.
        content_id: hash of the content, "sha256:" and 64 digits, as `Document.id`.
    """

    id: str
    owner: str
    name: str
    title: str
    media_type: str
    bytes: int
    pages: int
    tokens: int | None
    warnings: tuple[str, ...]
    added: float
    position: int
    chosen: bool
    page_range: tuple[int, int] | None
    content_id: str


@dataclass(frozen=True)
class StoredTurn:
    """One thing said in a conversation.

    Attributes:
        id: random.
        role: who said it.
        text: what.
        citations: of an answer, as JSON objects.
        details: of an answer, as a JSON object: usage, timings, finish_reason, error, documents
            read.
        time: when, in seconds since 1970.
    """

    id: str
    role: Role
    text: str
    citations: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True)
class StoredConversation:
    """A conversation of an owner, without its turns.

    Attributes:
        id: random.
        owner: whose it is.
        title: "" until it has one.
        created: when, in seconds since 1970.
        updated: when the last turn was added or taken away, or it was renamed.
        document_ids: of the documents it is about, in order; removed documents are left out.
    """

    id: str
    owner: str
    title: str
    created: float
    updated: float
    document_ids: tuple[str, ...]
