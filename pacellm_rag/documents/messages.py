"""What a parser child and its parent say to each other: length-prefixed JSON.

Knows the wire only. The child is not trusted: the parent bounds every length before it allocates
and checks every type before it uses a value.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import BinaryIO

__all__ = [
    "Done",
    "Failed",
    "Message",
    "Opened",
    "PageText",
    "Request",
    "decode_message",
    "encode_message",
    "read_frame",
    "write_frame",
]

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Request:
    """What the child is to do; the file's bytes follow in a second frame.

    Attributes:
        parser: a name in the worker's table of parsers.
        password: for encrypted files, "" when none is known.
        pages: physical page numbers to read in this order, or None for all.
        max_pages: most pages to read.
        max_page_characters: most characters to send of one page.
        max_characters: most characters to send of all pages together.
        max_unpacked_bytes: largest unpacked size of an archive.
        memory_bytes: address space that the child allows itself.
        cpu_seconds: CPU time that the child allows itself.
    """

    parser: str
    password: str
    pages: tuple[int, ...] | None
    max_pages: int
    max_page_characters: int
    max_characters: int
    max_unpacked_bytes: int
    memory_bytes: int
    cpu_seconds: int


@dataclass(frozen=True)
class Opened:
    """The file could be opened and claims so many pages."""

    pages: int
    title: str


@dataclass(frozen=True)
class PageText:
    """One page.

    Attributes:
        number: physical number, from 1.
        label: the number printed on it, "" where the file names none.
        text: clean text.
        garbled: the raw text was unreadable.
        truncated: the page had more characters than it may.
        error: why the page could not be parsed, or "".
    """

    number: int
    label: str
    text: str
    garbled: bool
    truncated: bool
    error: str


@dataclass(frozen=True)
class Failed:
    """The file could not be parsed, or not to its end.

    Attributes:
        reason: "damaged", "password_needed", "password_wrong", "memory", "cpu", "time", "size",
            "characters", "crash" or "start" (there was no child).
        detail: the parser's own words; they may quote the file.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Done:
    """The child did all it was asked to do."""


Message = Opened | PageText | Failed | Done

_KINDS: dict[str, type[Opened] | type[PageText] | type[Failed] | type[Done]] = {
    kind.__name__: kind for kind in (Opened, PageText, Failed, Done)
}
_FIELD_TYPES: dict[str, type] = {"int": int, "str": str, "bool": bool}


def encode_message(message: Message) -> bytes:
    """The message as one frame's body."""
    body = {"kind": type(message).__name__, **asdict(message)}
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def decode_message(body: bytes) -> Message:
    """The message that a frame's body holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = json.loads(body)
        kind = _KINDS[content.pop("kind")]
        if content.keys() != {field.name for field in fields(kind)}:
            raise ValueError("unexpected fields")
        for field in fields(kind):
            if type(content[field.name]) is not _FIELD_TYPES[str(field.type)]:
                raise ValueError(f"{field.name} has the wrong type")
        return kind(**content)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a message") from error


def write_frame(stream: BinaryIO, body: bytes) -> None:
    """Writes one frame and flushes it."""
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO, longest: int) -> bytes | None:
    """Reads one frame.

    Args:
        stream: a buffered stream: reads are as long as asked for, but for its end.
        longest: most bytes that the body may have.

    Returns:
        The body, or None at the stream's end.

    Raises:
        ValueError: the frame is longer than allowed.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > longest:
        raise ValueError(f"a frame of {length} bytes is longer than {longest}")
    body = stream.read(length)
    return body if len(body) == length else None
