"""BM25 over the pages or sentences of the documents at hand.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the
idf of Lucene, which is never negative. Kept here in forty lines because its texts are a dozen
pages that change with every set of documents. Knows nothing of models.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

__all__ = ["BM25", "words_of"]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+", re.UNICODE)
_K1, _B = 1.2, 0.75
# Words that say nothing about where an answer stands.
_COMMON = frozenset(
    "a an and are as at be been but by can did do does for from had has have he her his how i if "
    "in is it its may more no nor not of on or our she so such than that the their them then "
    "there these they this those to was we were what when where which who whom whose why will "
    "with would you your".split()
)


def words_of(text: str) -> list[str]:
    """Content words and numbers, case folded, without a plural or possessive s."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = [word for word in _WORD.findall(folded) if word not in _COMMON]
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words]


class BM25:
    """Scores of texts for a query."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._counts = [Counter(words_of(text)) for text in texts]
        self._lengths = [sum(counts.values()) for counts in self._counts]
        self._mean = sum(self._lengths) / max(len(texts), 1) or 1.0
        containing = Counter(word for counts in self._counts for word in counts)
        total = len(texts)
        self._idf = {
            word: math.log(1 + (total - n + 0.5) / (n + 0.5)) for word, n in containing.items()
        }

    def scores(self, query: Sequence[str]) -> list[float]:
        """One score per text, 0 where it shares no word with the query (words from `words_of`)."""
        result = []
        for counts, length in zip(self._counts, self._lengths, strict=True):
            norm = _K1 * (1 - _B + _B * length / self._mean)
            result.append(
                sum(
                    self._idf[word] * counts[word] * (_K1 + 1) / (counts[word] + norm)
                    for word in query
                    if word in counts
                )
            )
        return result
