"""Where a quotation stands in a text that another program took from the same page.

Quotations come from one PDF library and are looked up in the characters of another, or in an older
reading. Most are found letter by letter, once both sides are reduced to letters and digits. Where
the two disagree on a few characters (formulas, the order of columns, a word that the model changed)
the runs they share are taken, if they lie together and make up most of the quotation.
Knows text only. Linear in the length of both, whatever they hold.
"""

from __future__ import annotations

from pacellm_rag.context.matching import reduce_text

__all__ = ["find_places"]

_SHORTEST_RUN = 10  # letters and digits, about two words: shorter ones are shared by chance
_LEAST_SHARED = 0.6  # of the quotation's letters and digits
_GAP = 8  # between two runs that are marked as one
_CHOICES = 8  # places looked at for one run; a page of one letter has thousands
_LONGEST_QUOTE = 4_000


def find_places(quote: str, text: str) -> list[tuple[int, int]]:
    """The characters of a text that a quotation was taken from.

    Args:
        quote: the quotation; characters beyond the first 4,000 are not looked for.
        text: where it should stand.

    Returns:
        [start, end) spans of `text` in order, without overlap: one where the whole quotation
        stands there, several where it does in part, none where it does not.
    """
    wanted, _ = reduce_text(quote[:_LONGEST_QUOTE])
    if not wanted:
        return []
    reduced, places = reduce_text(text)
    whole = _whole(wanted, reduced, places, text)
    runs = [whole] if whole else _runs(wanted, reduced)
    return [(places[start], places[end - 1] + 1) for start, end in runs]


def _whole(wanted: str, reduced: str, places: list[int], text: str) -> tuple[int, int] | None:
    """The first occurrence that begins and ends with a word, else the first one."""
    first = at = reduced.find(wanted)
    while at >= 0:
        start, end = places[at], places[at + len(wanted) - 1] + 1
        within = (start > 0 and text[start - 1].isalnum()) or text[end : end + 1].isalnum()
        if not within:
            return at, at + len(wanted)
        at = reduced.find(wanted, at + len(wanted))
    return (first, first + len(wanted)) if first >= 0 else None


def _runs(wanted: str, reduced: str) -> list[tuple[int, int]]:
    """The runs that a quotation shares with the part of the text that shares most with it."""
    seeds = {wanted[at : at + _SHORTEST_RUN] for at in range(len(wanted) - _SHORTEST_RUN + 1)}
    hits = [
        at
        for at in range(len(reduced) - _SHORTEST_RUN + 1)
        if reduced[at : at + _SHORTEST_RUN] in seeds
    ]
    if not hits:
        return []
    low, high = _densest(hits, 2 * len(wanted) + 100)
    where: dict[str, list[int]] = {}
    for at in hits:
        if low <= at <= high:
            where.setdefault(reduced[at : at + _SHORTEST_RUN], []).append(at)
    found, shared, at = [], 0, 0
    while at <= len(wanted) - _SHORTEST_RUN:
        choices = where.get(wanted[at : at + _SHORTEST_RUN], [])[:_CHOICES]
        lengths = [_common(wanted, at, reduced, choice) for choice in choices]
        longest = max(lengths, default=0)
        if longest:
            begin = choices[lengths.index(longest)]
            found.append((begin, begin + longest))
            shared += longest
        at += longest or 1
    return _joined(sorted(found)) if shared >= _LEAST_SHARED * len(wanted) else []


def _densest(hits: list[int], width: int) -> tuple[int, int]:
    """The first and last of the most hits that lie within a width."""
    best, best_count, first = (hits[0], hits[0]), 0, 0
    for last, at in enumerate(hits):
        while at - hits[first] > width:
            first += 1
        if last - first + 1 > best_count:
            best, best_count = (hits[first], at), last - first + 1
    return best


def _common(one: str, at: int, other: str, begin: int) -> int:
    length = 0
    most = min(len(one) - at, len(other) - begin)
    while length < most and one[at + length] == other[begin + length]:
        length += 1
    return length


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined = [runs[0]]
    for start, end in runs[1:]:
        before, until = joined[-1]
        if start - until <= _GAP:
            joined[-1] = (before, max(until, end))
        else:
            joined.append((start, end))
    return joined
