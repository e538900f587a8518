"""Where sentences begin and end on a page.

PDF text breaks lines inside sentences and has none in tables, so a full stop ends a sentence, a
blank line ends a paragraph, and what is still too long (tables, lists) is cut at its lines.
Knows nothing of documents or models.
"""

from __future__ import annotations

import re

__all__ = ["sentence_spans"]

_LONGEST = 320  # characters: about the longest quote one reads as one
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|vs|etc|e\.g|i\.e|cf|al|Fig|Figs|Eq|Sec|Art|approx|ca"
    r"|Inc|Ltd|Co|Corp|Jr|Sr|pp?|Vol|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)|\b[A-Z])\.$"
)
_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|\n[ \t]*\n|[。！？]")  # noqa: RUF001


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The [start, end) of each sentence, in order, without the blanks around it.

    Every character that is not blank lies in exactly one span.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if match.group(0).isspace():
            spans.extend(_cut(text, start, match.start()))
        elif _is_sentence_end(text, start, match.end()):
            spans.extend(_cut(text, start, match.end()))
        else:
            continue
        start = match.end()
    spans.extend(_cut(text, start, len(text)))
    return spans


def _is_sentence_end(text: str, start: int, end: int) -> bool:
    if text[end - 1] == "." and _ABBREVIATION.search(text[max(start, end - 12) : end]):
        return False
    rest = text[end : end + 40].lstrip()
    return not rest[:1].islower()


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A stretch of text as one span, or as several of its lines where it is too long."""
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end -= len(text[start:end]) - len(text[start:end].rstrip())
    if start >= end:
        return []
    if end - start <= _LONGEST:
        return [(start, end)]
    for separator in ("\n", "; ", ", ", " "):
        # near the middle, so that no crumb is left; a little behind it rather than before
        middle = start + (end - start) // 2
        after = text.find(separator, middle, end - 1)
        before = text.rfind(separator, start + 1, middle)
        places = [p + len(separator) for p in (after, before) if p != -1]
        if places:
            at = min(places, key=lambda p: abs(p - middle))
            return _cut(text, start, at) + _cut(text, at, end)
    return [(start, end)]
