"""How LongBench scores an answer (THUDM/LongBench, `LongBench/metrics.py` and `eval.py`, MIT).

Rules that the numbers depend on, the odd ones included:

* The best accepted answer counts; without any the score is 0. A task's score is the mean over
  its samples, times 100.
* Of answers to trec, triviaqa and samsum only the first line counts, line breaks before it left
  out. All other answers count whole.
* Questions: F1 of the words, without case, punctuation and articles. Two answers without any
  word left do not match.
* Summaries: ROUGE-L of the package `rouge`.
* trec: every class whose name the answer holds is named by it, but for those that are part of the
  right class's name; if the right one is named, the score is 1 by the number of classes named.
  Of two such parts next to each other in the list of classes the second stays: the official loop
  drops elements of the list that it walks.
* Code: of the first line without a backtick, "#" and "//", `fuzz.ratio` of the package
  `fuzzywuzzy`, whole per cents. LongBench's requirements do not list `python-Levenshtein`, and
  without it that is the ratio of `difflib` (Ratcliff and Obershelp); with it, another measure and
  other numbers.

Knows no models and no data files.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence

from pacellm_rag.evaluation.metrics import normalise_answer
from pacellm_rag.evaluation.rouge import rouge_l

__all__ = ["METRICS", "score_answer"]

_FIRST_LINE_ONLY = frozenset({"trec", "triviaqa", "samsum"})
_COMMENT_SIGNS = ("`", "#", "//")

METRICS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "lcc": "code_similarity",
    "repobench-p": "code_similarity",
}
"""The metric of each task."""


def score_answer(
    task: str, answer: str, accepted: Sequence[str], classes: Sequence[str] = ()
) -> float:
    """The score of one answer, 0 to 1.

    Args:
        task: one of `METRICS`.
        answer: the model's words, untouched.
        accepted: the answers that are right.
        classes: of trec: the names of all classes.
    """
    if task in _FIRST_LINE_ONLY:
        answer = answer.lstrip("\n").split("\n")[0]
    if METRICS[task] == "classification":
        return max((_classification(answer, right, classes) for right in accepted), default=0.0)
    compare = _COMPARE[METRICS[task]]
    return max((compare(answer, right) for right in accepted), default=0.0)


def _qa_f1(answer: str, right: str) -> float:
    said, wanted = normalise_answer(answer).split(), normalise_answer(right).split()
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _classification(answer: str, right: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in answer]
    index = 0
    while index < len(named):
        name = named[index]
        if name in right and name != right:
            named.remove(name)
        index += 1  # also then, so that the one behind it is passed over, as officially
    return 1.0 / len(named) if right in named else 0.0


def _code_similarity(answer: str, right: str) -> float:
    lines = answer.lstrip("\n").split("\n")
    line = next((each for each in lines if not any(sign in each for sign in _COMMENT_SIGNS)), "")
    if line == right:  # also where both are empty
        return 1.0
    if not line or not right:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, right).ratio()) / 100


_COMPARE: dict[str, Callable[[str, str], float]] = {
    "qa_f1": _qa_f1,
    "rouge_l": rouge_l,
    "code_similarity": _code_similarity,
}
