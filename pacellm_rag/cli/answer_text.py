"""An answer's words as they come, without the page markers that the model writes between them.

Sources are shown below an answer, with titles. Given out piece by piece, the text is what
`CitationResolver.resolve` makes of the whole answer.
"""

from __future__ import annotations

import re

from pacellm_rag.context.packing import MARKER

__all__ = ["MarkerFilter"]

_MARKER = re.compile(rf"[ \t]*\(?{MARKER.pattern}\)?")
_BLANK_BEFORE_SIGN = re.compile(r"[ \t]+([.,;:!?])")
_MARKER_BEGUN = r"(?:\[(?:D(?:\d{1,4}(?: (?:p(?:\d{1,6})?)?)?)?)?)?"
# What may still become a marker, or be a blank before a sign or before the end.
_UNDECIDED = re.compile(rf"(?:\s*\(?{MARKER.pattern}\)?)*\s*\(?{_MARKER_BEGUN}\Z")


class MarkerFilter:
    """Takes the markers out of a text that arrives in pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def feed(self, piece: str) -> str:
        """Takes the next piece; returns the text that can be shown."""
        self._held += piece
        undecided = _UNDECIDED.search(self._held)
        cut = undecided.start() if undecided else len(self._held)
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._give(ready)

    def flush(self) -> str:
        """The text held back, at the end of the answer."""
        held, self._held = self._held, ""
        return self._give(held).rstrip()

    def _give(self, text: str) -> str:
        text = _BLANK_BEFORE_SIGN.sub(r"\1", _MARKER.sub("", text))
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
