"""Where sentences begin and end on a page.

PDF text breaks lines inside sentences and has none in tables. So a full stop ends a sentence, a
blank line a paragraph, and a line of a table is a sentence of its own; what is still too long is
cut near its middle. Knows nothing of documents or models.
"""

from __future__ import annotations

import re

__all__ = ["sentence_spans"]

_LONGEST = 320  # characters: about the longest quote one reads as one
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|vs|etc|e\.g|i\.e|cf|al|Fig|Figs|Eq|Sec|Art|approx|ca"
    r"|Inc|Ltd|Co|Corp|Jr|Sr|pp?|Vol|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)|\b[A-Z])\.$"
)
_NUMBER = re.compile(r"[^\w\s]*\d[\d.,:/%-]*[^\w\s]*")
_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|\n[ \t]*\n|\n|[。！？]")  # noqa: RUF001


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The [start, end) of each sentence, in order, without the blanks around it.

    Every character that is not blank lies in exactly one span.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if match.group() == "\n":
            if not _is_row(text, match.start()):
                continue
            spans.extend(_cut(text, start, match.start()))
        elif match.group().isspace():
            spans.extend(_cut(text, start, match.start()))
        elif _is_sentence_end(text, start, match.end()):
            spans.extend(_cut(text, start, match.end()))
        else:
            continue
        start = match.end()
    spans.extend(_cut(text, start, len(text)))
    return spans


def _is_row(text: str, line_end: int) -> bool:
    """Whether the line before or behind a line end is a row of a table: a third of it numbers."""
    before = text[text.rfind("\n", 0, line_end) + 1 : line_end]
    behind_end = text.find("\n", line_end + 1)
    behind = text[line_end + 1 : behind_end if behind_end >= 0 else len(text)]
    return any(_mostly_numbers(line.split()) for line in (before, behind))


def _mostly_numbers(words: list[str]) -> bool:
    numbers = sum(_NUMBER.fullmatch(word) is not None for word in words)
    return numbers >= 2 and 3 * numbers >= len(words)


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
