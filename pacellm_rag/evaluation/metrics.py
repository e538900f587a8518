"""Scores of one answer against the accepted ones: exact match and token F1, as SQuAD has them.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016: answers are
compared without case, punctuation, articles and extra blanks; the best accepted answer counts.
Knows nothing of models or documents.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["contains_answer", "exact_match", "normalise_answer", "token_f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and articles, blanks made single."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer equals an accepted one after normalisation, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(a) for a in accepted})


def contains_answer(answer: str, accepted: Sequence[str]) -> float:
    """1 where an accepted answer stands in the answer as whole words, else 0."""
    said = f" {normalise_answer(answer)} "
    return float(any(f" {wanted} " in said for wanted in map(normalise_answer, accepted) if wanted))


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of the answer's words, 0 to 1."""
    return max((_f1(answer, wanted) for wanted in accepted), default=0.0)


def _f1(answer: str, wanted: str) -> float:
    said, gold = normalise_answer(answer).split(), normalise_answer(wanted).split()
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(gold)
    return 2 * precision * recall / (precision + recall)
