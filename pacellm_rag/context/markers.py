"""Page markers, `[D1 p2]` for page 2 of the first document: written, recognised, taken out.

Models write them in variants, which are recognised as well. Knows text only.
"""

from __future__ import annotations

import re

__all__ = ["MarkerFilter", "disarm_markers", "markers_in", "page_marker", "without_markers"]

_NAME = r"D\d{1,4}[, ]\s?p\.?\s?\d{1,6}"
_NAMES = re.compile(r"D(\d{1,4})[, ]\s?p\.?\s?(\d{1,6})")
# `[D1 p2]`, and what models make of it: `[D1, p. 2]`, `[D1 p2, D3 p4]`
_MARKER = rf"\[{_NAME}(?:\s?[,;]\s?{_NAME})*\]"
_BRACKETED = re.compile(_MARKER)
_WITH_BLANKS = re.compile(rf"[ \t]*\(?{_MARKER}\)?")
_BLANK_BEFORE_SIGN = re.compile(r"[ \t]+([.,;:!?])")
_BEGUN = r"(?:\[[Dp\d.,;\s]{0,80})?"
# What may still become a marker, or be a blank before a sign or before the end.
_UNDECIDED = re.compile(rf"(?:\s*\(?{_MARKER}\)?)*\s*\(?{_BEGUN}\Z")


def page_marker(document: int, page_number: int) -> str:
    """The marker of a page: documents count from 0 here and from 1 in the marker."""
    return f"[D{document + 1} p{page_number}]"


def markers_in(text: str) -> list[tuple[int, int]]:
    """The (document number, page number) of every marker in a text, in order, both from 1."""
    return [
        (int(document), int(page))
        for match in _BRACKETED.finditer(text)
        for document, page in _NAMES.findall(match.group())
    ]


def disarm_markers(text: str) -> str:
    """Gives what looks like a marker round brackets; the text keeps its length."""
    return _BRACKETED.sub(lambda match: f"({match.group()[1:-1]})", text)


def without_markers(text: str) -> str:
    """A text without its markers and the blanks that they leave behind."""
    return _BLANK_BEFORE_SIGN.sub(r"\1", _WITH_BLANKS.sub("", text)).strip()


class MarkerFilter:
    """Takes the markers out of a text that arrives in pieces, as `without_markers` would."""

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
        text = _BLANK_BEFORE_SIGN.sub(r"\1", _WITH_BLANKS.sub("", text))
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
