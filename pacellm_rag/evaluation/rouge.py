"""ROUGE-L as the PyPI package `rouge` 1.0.1 computes it, which LongBench scores summaries with.

Its numbers are its own, and other packages give others. What it does (`rouge/rouge.py` and
`rouge/rouge_score.py`, Apache-2.0):

* Sentences end at every full stop, those of numbers included; case and punctuation stay. Blanks
  are made single, and what holds nothing but blanks is a sentence of one empty word.
* Of every sentence of the reference, the words that it has in common with any sentence of the
  answer, in order (longest common subsequence), are put into one set. So are the words of the
  reference and those of the answer: a word counts once, however often it is said.
* With h words in common, precision p = h / words of the answer, recall r = h / words of the
  reference, and the score is f = 2 p r / (p + r + 1e-8).

One thing is not repeated here: the package walks back through a subsequence by recursion, and
Python stops that for two sentences of about a thousand words together, which LongBench then counts
as 0. Here they are scored. Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["rouge_l"]


def rouge_l(answer: str, reference: str) -> float:
    """The f score, 0 to just below 1; 0 where there is nothing to compare.

    Args:
        answer: the words to score.
        reference: what it should say.
    """
    said, wanted = _sentences(answer), _sentences(reference)
    if not said or not wanted:
        return 0.0
    shared: set[str] = set()
    for reference_words in wanted:
        for words in said:
            shared |= _common_words(reference_words, words)
    precision = len(shared) / len(_distinct(said))
    recall = len(shared) / len(_distinct(wanted))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence; a blank one has the empty word."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _distinct(sentences: Iterable[Sequence[str]]) -> set[str]:
    return {word for sentence in sentences for word in sentence}


def _common_words(one: Sequence[str], two: Sequence[str]) -> set[str]:
    """The words of a longest common subsequence.

    There may be several of that length with other words. Which of them is taken counts: walking
    back, a word is left off `two` unless leaving one off `one` keeps more.
    """
    # lengths[i][j]: length of the longest common subsequence of one[:i] and two[:j]
    lengths = [[0] * (len(two) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for j, other in enumerate(two):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    words: set[str] = set()
    i, j = len(one), len(two)
    while i and j:
        if one[i - 1] == two[j - 1]:
            words.add(one[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
