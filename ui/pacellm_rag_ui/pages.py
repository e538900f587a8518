"""Images of PDF pages with a quotation marked. SIGNATURES FIRST; the bodies follow (H2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pacellm_rag.errors import PaceLLMError

Trouble = Literal["no_file", "no_page", "damaged", "password", "time", "memory", "crash", "busy"]


class PageImageError(PaceLLMError):
    """.trouble: for routes: no_file and no_page are 404, busy is 503, the rest 422."""

    trouble: Trouble


@dataclass(frozen=True)
class PageImage:
    webp: bytes
    width: int
    height: int
    marked: bool  # the quotation was found and is marked
    pages: int  # pages of the file


class PageImages:
    """What the server keeps one of: an LRU of images, few processes at a time, one spare warm.

    Safe to call from any thread; blocks (call it with run_in_threadpool).
    """

    def __init__(self, *, processes: int = 2, cache_bytes: int = 64 * 1024**2) -> None: ...

    def render(
        self, path: Path, number: int, *, quote: str = "", width: int = 1000, password: str = ""
    ) -> PageImage:
        """width is clamped to 100..2000. Raises PageImageError."""
        raise NotImplementedError

    def forget(self, path: Path) -> None:
        """Drops the images of a file that is removed."""

    def close(self) -> None:
        """Ends the spare process."""


def render_page(path: Path, number: int, *, quote: str = "", width: int = 1000) -> PageImage:
    """Without cache and spare: one process for one image."""
    raise NotImplementedError
