"""Token ids to clean pieces of text, one token at a time.

Two things make that harder than decoding each token: one character may take several tokens
(byte-level vocabularies), and a stop string may begin in one token and end in a later one.
`TextStream` gives out only text that can no longer change and can no longer become part of a stop
string. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopStrings", "TextStream"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StopStrings:
    """Finds the first of several stop strings to be complete in a text that comes in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Takes the next piece; returns the text that is safe to show."""
        if self.found is not None:
            return ""
        text = self._held + piece
        # the one that is complete first wins, so that the cut into pieces does not matter; of two
        # complete at the same character the longer one
        hits = [(text.find(s) + len(s), text.find(s), s) for s in self._stop if s in text]
        if hits:
            _, at, self.found = min(hits)
            self._held = ""
            return text[:at]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            tail = text[-size:]
            if any(s.startswith(tail) for s in self._stop):
                return size
        return 0

    def flush(self) -> str:
        """The text held back, when nothing more will come."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Decodes a growing list of tokens into pieces that never have to be taken back.

    Args:
        decode: turns token ids into text, special tokens left out.
        stop: strings that end the text; they are never given out, nor is what follows them.

    Attributes:
        text: everything given out so far.
        ends: for each token fed, the number of characters of the answer known after it, held
            back ones included; maps tokens to places in the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = StopStrings(stop)
        self._ids: list[int] = []
        # Text is decoded from `_anchor`, and what stood there at `_emitted` was given out before:
        # some tokenizers drop a leading blank, so single tokens can not be decoded alone.
        self._anchor = 0
        self._emitted = 0
        self._known = 0
        self.text = ""
        self.ends: list[int] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.found is not None

    def feed(self, token_id: int) -> str:
        """Takes the next token; returns the text that has become certain, often ""."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._anchor : self._emitted])
        now = self._decode(self._ids[self._anchor :])
        if now.endswith(_REPLACEMENT) and len(self._ids) - self._emitted < 8:
            self.ends.append(self._known)
            return ""  # the middle of a character: wait for the rest
        self._anchor, self._emitted = self._emitted, len(self._ids)
        return self._give(now[len(before) :], token=True)

    def flush(self) -> str:
        """Returns what was held back, at the end of the answer."""
        before = self._decode(self._ids[self._anchor : self._emitted])
        now = self._decode(self._ids[self._anchor :])
        self._anchor = self._emitted = len(self._ids)
        piece = self._give(now[len(before) :], token=False)
        if not self.stopped:
            rest = self._stops.flush()
            self.text += rest
            piece += rest
        return piece

    def _give(self, new: str, *, token: bool) -> str:
        self._known += len(new)
        if token:
            self.ends.append(self._known)
        piece = self._stops.feed(new)
        self.text += piece
        return piece
