"""ROUGE-Lsum of a summary, to the number that the package `rouge_score` gives without stemming.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.2, with the count of
ROUGE-1.5.5: of each reference sentence those words are hits that stand in a longest common
subsequence with any sentence of the candidate, and a word is hit no more often than it occurs in
either text. Sentences are lines; words are runs of a-z and 0-9 of the lower-cased text. Knows
texts only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["rouge_lsum"]

_WORD = re.compile(r"[a-z0-9]+")


def rouge_lsum(answer: str, accepted: Sequence[str]) -> float:
    """F-measure of ROUGE-Lsum, 0 to 1, for the best of some references.

    Args:
        answer: the candidate, one sentence a line.
        accepted: the references.
    """
    candidate = _sentences(answer)
    return max((_f_measure(candidate, _sentences(text)) for text in accepted), default=0.0)


def _sentences(text: str) -> list[list[str]]:
    return [_WORD.findall(line.lower()) for line in text.split("\n") if line]


def _f_measure(candidate: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> float:
    said, wanted = sum(map(len, candidate)), sum(map(len, reference))
    if not said or not wanted:
        return 0.0
    said_left = Counter(word for sentence in candidate for word in sentence)
    wanted_left = Counter(word for sentence in reference for word in sentence)
    hits = 0
    for sentence in reference:
        common: set[int] = set()
        for other in candidate:
            common |= _common_subsequence(sentence, other)
        for place in sorted(common):
            word = sentence[place]
            if said_left[word] > 0 and wanted_left[word] > 0:
                hits += 1
                said_left[word] -= 1
                wanted_left[word] -= 1
    if not hits:
        return 0.0
    precision, recall = hits / said, hits / wanted
    return 2 * precision * recall / (precision + recall)


def _common_subsequence(reference: Sequence[str], candidate: Sequence[str]) -> set[int]:
    """Where in the reference one of the longest common subsequences stands.

    Which one of several of the same length matters to the union, so the way back through the
    table is that of `rouge_score`: up, unless only the left is longer.
    """
    table = [[0] * (len(candidate) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for column, other in enumerate(candidate):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    places: set[int] = set()
    row_at, column_at = len(reference), len(candidate)
    while row_at and column_at:
        if reference[row_at - 1] == candidate[column_at - 1]:
            row_at, column_at = row_at - 1, column_at - 1
            places.add(row_at)
        elif table[row_at][column_at - 1] > table[row_at - 1][column_at]:
            column_at -= 1
        else:
            row_at -= 1
    return places
