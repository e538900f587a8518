"""Clean text: what every format's raw text goes through before anybody sees it.

Knows characters, not formats. Cleaning joins words that were broken at line ends and removes what
a reader can not see (controls, bidirectional overrides, zero-width characters, Unicode tags: the
places where text is hidden from people and shown to models). It composes to NFC but does not fold
compatibility characters: x² and x2 stay different. Cleaning twice equals cleaning once.
"""

from __future__ import annotations

import functools
import re
import unicodedata

__all__ = ["clean_line", "clean_text"]

_LIGATURES = {
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0xFB03: "ffi",
    0xFB04: "ffl",
    0xFB05: "st",
    0xFB06: "st",
}
# Symbol and Wingdings glyphs keep their font's own code points in files written by Word.
_SYMBOL_FONT = {0xF0B7: "•", 0xF0A7: "▪", 0xF0D8: "➢", 0xF0FC: "✓", 0xF0E0: "→", 0xF0E8: "→"}
_BLANKS = [0x09, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]
_LINE_ENDS = {0x0B: "\n", 0x0C: "\n", 0x0D: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n\n"}
_INVISIBLE = [
    *range(0x00, 0x09),
    *range(0x0E, 0x20),
    *range(0x7F, 0x85),
    *range(0x86, 0xA0),
    0x061C,  # Arabic letter mark
    0x180E,  # Mongolian vowel separator
    0x200B,  # zero-width space
    *range(0x200E, 0x2010),  # directional marks
    *range(0x202A, 0x202F),  # directional embeddings and overrides
    *range(0x2060, 0x2070),  # word joiner, invisible operators, directional isolates
    0xFEFF,  # byte order mark
    *range(0xFFF9, 0xFFFC),  # interlinear annotations
    0xFFFF,
    *range(0xE0000, 0xE0080),  # tags
    *range(0xE0100, 0xE01F0),  # variation selectors that can carry hidden bytes
]
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(_INVISIBLE),
    **dict.fromkeys(_BLANKS, " "),
    **_LINE_ENDS,
    **_LIGATURES,
    **_SYMBOL_FONT,
}

_SURROGATE = re.compile("[\ud800-\udfff]")
# Scripts whose letters change shape at a joiner: Arabic and its neighbours, the Indic ones,
# Myanmar, Khmer, Mongolian.
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefe"
_IDLE_JOINER = re.compile(f"(?<![{_JOINING}])[\u200c\u200d]+|[\u200c\u200d]+(?![{_JOINING}])")
_JOINER_RUN = re.compile("([\u200c\u200d])[\u200c\u200d]+")
# pdfium writes U+FFFE for a hyphen that ends a line, and leaves the line end out.
_SOFT_HYPHEN = re.compile(r"[\u00ad\ufffe]+(?: *\n *(?=[^\W\d_]))?")
_LINE_END_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010] *\n *(?=[^\W\d_])")
_BLANKS_INSIDE = re.compile(r"(?<=[^ \n])  +(?=[^ \n])")
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean_text(text: str, *, keep_indentation: bool = False) -> str:
    r"""Cleans the text of one page.

    Args:
        text: raw text as a parser gives it.
        keep_indentation: keep the blanks at the start of lines, which carry meaning in plain text
            and Markdown and none in a PDF.

    Returns:
        Text whose lines end in "\n", whose paragraphs are at most one empty line apart, and that
        starts and ends with neither line end nor (unless indented) blank.
    """
    if not text.isascii():
        text = _repair_surrogates(text)
    text = text.replace("\r\n", "\n").translate(_TABLE)
    if not text.isascii():
        text = _SOFT_HYPHEN.sub("", text)
        text = _JOINER_RUN.sub(r"\1", text)
        text = _IDLE_JOINER.sub("", text)
        text = _compose(text)
    text = _LINE_END_HYPHEN.sub(_join, text)
    # A regular expression for blanks at line ends takes time in the square of their number.
    strip = str.rstrip if keep_indentation else str.strip
    text = "\n".join([strip(line, " ") for line in text.split("\n")])
    text = _BLANKS_INSIDE.sub(" ", text)
    text = _EMPTY_LINES.sub("\n\n", text).strip("\n")
    return text if keep_indentation else text.strip(" \n")


def clean_line(text: str, longest: int = 200) -> str:
    """Cleans text that must fit on one line: a title, a label, a file name in a message."""
    line = " ".join(clean_text(text[: 4 * longest]).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def _join(match: re.Match[str]) -> str:
    """Drops a hyphen between two lower-case letters, where it only broke the line."""
    before = match.string[match.start() - 1]
    after = match.string[match.end() : match.end() + 1]
    return "" if before.islower() and after.islower() else match.group()


def _repair_surrogates(text: str) -> str:
    """Makes characters of surrogate pairs, and U+FFFD of what has no partner."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _compose(text: str) -> str:
    """Normalises to NFC, in time that grows with the text's length only."""
    if unicodedata.is_normalized("NFC", text):
        return text
    text = unicodedata.normalize("NFC", _long_mark_runs().sub(r"\1", text))
    return _long_mark_runs().sub(r"\1", text)  # composing can also take a mark apart


@functools.cache
def _long_mark_runs() -> re.Pattern[str]:
    """More combining marks in a row than any language writes: sorting them takes too long."""
    marks = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(c))
    return re.compile(f"([{marks}]{{30}})[{marks}]+")
