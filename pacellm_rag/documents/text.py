"""Plain text and Markdown: bytes to text, text to pages.

Knows encodings and where a long text may be cut. Text has no pages of its own, so it gets pages of
about 3,000 characters (a printed page), numbered from 1, for citations to point to.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from pacellm_rag.documents.cleaning import clean_line, clean_text
from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.parsed import ParsedDocument, page_warning
from pacellm_rag.documents.types import DocumentWarning, Page

__all__ = ["parse_text", "parse_text_file", "split_long_text", "text_to_pages"]

PAGE_CHARACTERS = 3_000

# The UTF-32 marks come first: the little-endian one starts with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FALLBACK = "cp1252"
_HEADING = re.compile(r"^# +(.+)$", re.MULTILINE)
_WIDE_STOPS = "\u3002\uff01\uff1f"  # Chinese and Japanese sentences end without a blank
# Where a text may be cut, best first; each match ends where the next page begins.
_BORDERS = (
    re.compile(r"\n\n+"),
    re.compile(r"\n"),
    re.compile(f"[.!?…{_WIDE_STOPS}][\"'”\u2019»)\\]]*(?:\\s+|(?<=[{_WIDE_STOPS}]))"),
    re.compile(r"\s+"),
)


def parse_text_file(data: bytes, limits: DocumentLimits, *, markdown: bool) -> ParsedDocument:
    """Reads a plain text or Markdown file."""
    text, warnings = _decode(data)
    title = None
    if markdown and (heading := _HEADING.search(text[: 4 * PAGE_CHARACTERS])):
        title = clean_line(heading.group(1).rstrip("# "))
    parsed = parse_text(text, limits)
    return ParsedDocument(title, parsed.pages, (*warnings, *parsed.warnings))


def parse_text(text: str, limits: DocumentLimits) -> ParsedDocument:
    """Makes pages of a text."""
    warnings: tuple[DocumentWarning, ...] = ()
    if len(text) > limits.characters:
        warnings = (
            DocumentWarning(
                "truncated",
                f"The text has {len(text):,} characters; those after the first "
                f"{limits.characters:,} were not read (limit: characters).",
            ),
        )
        text = text[: limits.characters]
    pages = tuple(
        Page(number, str(number), page)
        for number, page in enumerate(text_to_pages(text, keep_indentation=True), start=1)
    )
    blank = page_warning("no_text", [page.number for page in pages if not page.text], "blank.")
    return ParsedDocument(None, pages, (*warnings, *blank))


def text_to_pages(
    text: str,
    *,
    keep_indentation: bool = False,
    page_characters: int = PAGE_CHARACTERS,
) -> list[str]:
    """Cuts a text at its form feeds, or where it has none, into pages of about equal length.

    Pages between form feeds that hold more than two pages' text are cut as well. Empty pages
    between form feeds are kept, so that the numbers stay those of the original.
    """
    sheets = [
        clean_text(sheet, keep_indentation=keep_indentation)
        for sheet in text.removesuffix("\n").removesuffix("\f").split("\f")
    ]
    longest = 2 * page_characters if len(sheets) > 1 else page_characters
    pages: list[str] = []
    for sheet in sheets:
        pages += split_long_text(sheet, page_characters) if len(sheet) > longest else [sheet]
    return pages


def split_long_text(text: str, page_characters: int = PAGE_CHARACTERS) -> list[str]:
    """Cuts a clean text between paragraphs, or else lines, sentences, words, or characters.

    Every page but the last holds between half and one and a quarter times `page_characters`,
    before white space at its ends is removed. No other character is lost.
    """
    pages = []
    start = 0
    longest = page_characters + page_characters // 4
    while len(text) - start > longest:
        end = _border(text, start + max(page_characters // 2, 1), start + max(longest, 1))
        pages.append(text[start:end].rstrip().lstrip("\n"))
        start = end
    pages.append(text[start:].rstrip().lstrip("\n"))
    return [page for page in pages if page.strip()] or [""]


def _border(text: str, first: int, last: int) -> int:
    """The end of the last best border in [first, last]."""
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(text, first, last)]
        if ends:
            return ends[-1]
    while last - 1 > first and unicodedata.combining(text[last]):
        last -= 1
    return last


def _decode(data: bytes) -> tuple[str, tuple[DocumentWarning, ...]]:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding), ()
    except UnicodeDecodeError:
        fallback = _FALLBACK if encoding == "utf-8" else encoding
    text = data.decode(fallback, "replace")
    return text, (
        DocumentWarning(
            "encoding",
            f"The text is not valid {encoding.upper()}; it was read as {fallback}. Where letters "
            "look wrong, save the file as UTF-8.",
        ),
    )
