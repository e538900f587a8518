"""What banks and experts did, by the pages of the documents.

Either by the pages between two points at which the engine kept its counts, or, once the model was
watched page by page, exactly; where there are more pages than a strip has room for, neighbours of
one document share a cell. Knows pages and counts; knows nothing of how they are drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from pacellm_rag.models.inspection import BankCounts, Inspection, MemoryPoint
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.views import ExpertRow, PageBands, PageSpan

__all__ = ["bands_between", "bands_seen", "experts_seen"]

MOST_CELLS = 120  # of a strip; more would be narrower than can be seen or pointed at
_SLACK = 4  # tokens: a point at the end of a document lies a little before that of its last page


@dataclass(frozen=True)
class _Shares:
    """Tokens, and those above and between the thresholds, of all layers together."""

    tokens: float = 0.0
    high: float = 0.0
    middle: float = 0.0

    @classmethod
    def of(cls, layers: Mapping[int, BankCounts]) -> _Shares:
        counts = layers.values()
        return cls(
            sum(each.tokens for each in counts),
            sum(each.tokens * each.high for each in counts),
            sum(each.tokens * each.middle for each in counts),
        )

    def bands(self, span: PageSpan) -> PageBands:
        """As shares of the tokens, which some there must be."""
        high, middle = self.high / self.tokens, self.middle / self.tokens
        return PageBands(
            span.title, span.first_page, span.last_page, high, middle, max(1 - high - middle, 0.0)
        )


def bands_between(reading: Reading, points: Sequence[MemoryPoint]) -> tuple[PageBands, ...]:
    """Shares of the tokens between points, by the pages that stand there."""
    return tuple(_between(reading, points))


def _between(reading: Reading, points: Sequence[MemoryPoint]) -> Iterator[PageBands]:
    ends = reading.page_ends()
    sums = [(0, _Shares()), *((point.end, _Shares.of(point.layers)) for point in points)]
    for (start, before), (end, now) in pairwise(sums):
        first, last = bisect_right(ends, start + _SLACK), bisect_left(ends, end)
        shares = _Shares(
            now.tokens - before.tokens, now.high - before.high, now.middle - before.middle
        )
        if shares.tokens <= 0:
            continue
        for places in _by_document(reading, range(first, min(last + 1, len(ends)))):
            yield shares.bands(_span(reading, places))


def bands_seen(reading: Reading, seen: Inspection) -> tuple[PageBands, ...]:
    """Shares of the tokens of each page; pages without text have none."""
    shares = [_Shares.of(layers) for layers in seen.banks]
    filled = [place for place, each in enumerate(shares) if each.tokens]
    found = []
    for places in _cells(reading, filled):
        parts = [shares[place] for place in places]
        together = _Shares(
            sum(each.tokens for each in parts),
            sum(each.high for each in parts),
            sum(each.middle for each in parts),
        )
        found.append(together.bands(_span(reading, places)))
    return tuple(found)


def experts_seen(
    reading: Reading, seen: Inspection
) -> tuple[tuple[ExpertRow, ...], tuple[PageSpan, ...]]:
    """The experts that were seen, and the pages that their activity is of."""
    sizes = [end - start for start, end in reading.page_ranges()]
    cells = _cells(reading, [place for place, size in enumerate(sizes) if size])
    rows = tuple(
        ExpertRow(
            report.layer,
            report.expert,
            report.words,
            tuple(
                sum(report.activity[place] * sizes[place] for place in places)
                / sum(sizes[place] for place in places)
                for places in cells
            ),
        )
        for report in seen.experts
    )
    return rows, tuple(_span(reading, places) for places in cells)


def _cells(reading: Reading, places: Sequence[int]) -> list[list[int]]:
    """Pages, by their place in the prompt, in as many cells as a strip has room for."""
    size = max(math.ceil(len(places) / MOST_CELLS), 1)
    return [
        pages[start : start + size]
        for pages in _by_document(reading, places)
        for start in range(0, len(pages), size)
    ]


def _by_document(reading: Reading, places: Sequence[int]) -> list[list[int]]:
    segments = reading.reader.packed.segments
    return [list(each) for _, each in groupby(places, lambda place: segments[place].document)]


def _span(reading: Reading, places: Sequence[int]) -> PageSpan:
    """Pages of one document, in a row."""
    packed = reading.reader.packed
    first, last = (packed.segments[place] for place in (places[0], places[-1]))
    title = packed.documents[first.document].title
    return PageSpan(title, packed.page(first).number, packed.page(last).number)
