"""Finding a quotation on a page, whatever line breaks, hyphens and ligatures have done to it.

Both sides are reduced to letters and digits (NFKD, so without accents; case folded), with a map
back to characters.
Knows nothing of documents or models.
"""

from __future__ import annotations

import unicodedata

__all__ = ["find_quote", "reduce_text"]


def reduce_text(text: str) -> tuple[str, list[int]]:
    """Letters and digits of a text, folded, and for each the index of its character in `text`."""
    kept: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text):
        for folded in unicodedata.normalize("NFKD", character).casefold():
            if folded.isalnum():
                kept.append(folded)
                places.append(index)
    return "".join(kept), places


def find_quote(quote: str, text: str) -> tuple[int, int] | None:
    """The first place of a quotation in a text.

    Returns:
        [start, end) characters of `text`, or None where it does not stand there. A quotation
        without letters or digits stands nowhere.
    """
    wanted, _ = reduce_text(quote)
    if not wanted:
        return None
    reduced, places = reduce_text(text)
    at = reduced.find(wanted)
    if at < 0:
        return None
    return places[at], places[at + len(wanted) - 1] + 1
