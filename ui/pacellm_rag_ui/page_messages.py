"""What a page process and its parent say to each other, and how much a page may cost.

Knows the wire only. The process is not trusted: the parent checks every value that it says.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import cast, get_args

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.page_errors import Trouble

__all__ = [
    "LARGEST_IMAGE",
    "LONGEST_HEADER",
    "LONGEST_REQUEST",
    "Drawn",
    "PageRequest",
    "RenderLimits",
    "Undrawn",
    "decode_reply",
    "encode_reply",
]

LONGEST_REQUEST = 256 * 1024
LONGEST_HEADER = 4 * 1024
LARGEST_IMAGE = 32 * 1024**2
_LEAST_MEMORY = 128 * 1024**2  # Python, pdfium and Pillow take 50 MB of address space


@dataclass(frozen=True)
class RenderLimits:
    """What the image of one page may cost.

    Attributes:
        file_bytes: largest file, as for reading it.
        pixels: most pixels of an image; larger ones get narrower than asked for.
        characters: most characters of a page in which the quotation is looked for.
        memory_bytes: address space of the process; the file lies in it as well. A scanned page at
            600 dpi needs 300 MB. Not enforced on Windows.
        cpu_seconds: CPU time of the process; ordinary pages take 0.1. Not enforced on Windows.
        wall_seconds: longest wait for one image once its turn has come.

    Raises:
        ConfigurationError: a limit is too small to draw anything.
    """

    file_bytes: int = 200_000_000
    pixels: int = 16_000_000
    characters: int = 200_000
    memory_bytes: int = 1024**3
    cpu_seconds: int = 10
    wall_seconds: float = 15.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = {"memory_bytes": _LEAST_MEMORY, "wall_seconds": 0.1}.get(field.name, 1)
            if isinstance(value, bool) or not least <= value < float("inf"):
                raise ConfigurationError(
                    f"{field.name} is {value!r}; it must be a number, {least} or more."
                )


@dataclass(frozen=True)
class PageRequest:
    """One page to draw; the file's bytes follow in a second frame.

    Attributes:
        number: physical page number, from 1.
        quote: what to mark.
        width: of the image, in pixels.
        password: of an encrypted file, "" when none is known.
    """

    number: int
    quote: str
    width: int
    password: str


@dataclass(frozen=True)
class Drawn:
    """The page was drawn; its image follows in a second frame."""

    width: int
    height: int
    marked: bool
    pages: int


@dataclass(frozen=True)
class Undrawn:
    """The page was not drawn.

    Attributes:
        trouble: why.
        pages: of the file, 0 where it could not be opened.
    """

    trouble: Trouble
    pages: int = 0


def encode_reply(reply: Drawn | Undrawn) -> bytes:
    """The reply as one frame's body."""
    return json.dumps(asdict(reply)).encode()


def decode_reply(body: bytes) -> Drawn | Undrawn:
    """The reply that a frame's body holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = json.loads(body)
    except RecursionError as error:
        raise ValueError("not a reply") from error
    if not isinstance(content, dict):
        raise ValueError("not a reply")
    kinds = {name: type(value) for name, value in content.items()}
    if kinds == {"width": int, "height": int, "marked": bool, "pages": int}:
        return Drawn(**content)
    if kinds == {"trouble": str, "pages": int} and content["trouble"] in get_args(Trouble):
        return Undrawn(cast(Trouble, content["trouble"]), content["pages"])
    raise ValueError("not a reply")
