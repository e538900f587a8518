"""The one error of showing a page, and what a route should answer for it.

Knows nothing of PDF or of processes.
"""

from __future__ import annotations

from typing import Literal

from pacellm_rag.errors import PaceLLMError

__all__ = ["PageImageError", "Trouble"]

Trouble = Literal[
    "no_file", "no_page", "size", "damaged", "password", "time", "memory", "crash", "start", "busy"
]
_STATUS: dict[Trouble, int] = {"no_file": 404, "no_page": 404, "busy": 503, "start": 503}


class PageImageError(PaceLLMError):
    """A page can not be shown; the message is for people and names no path.

    Attributes:
        trouble: what went wrong, as a word for programs.
    """

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble: Trouble = trouble

    @property
    def status(self) -> int:
        """The HTTP status that fits: 404, 503 for "later", or 422 for what can not be drawn."""
        return _STATUS.get(self.trouble, 422)
