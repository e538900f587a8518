"""Scores of InfiniteBench, by the rules of its official scorer.

OpenBMB/InfiniteBench, `src/compute_scores.py` as of commit 88b3daa, MIT licence: the rules are
taken as they are, oddities included, as published numbers rest on them. Where the official script
ends with an error (an integer is wanted and the answer begins with 3.5; a number of thousands of
digits) the score is 0. Where it can only score 0, as the data hold a list and it looks for that
list among the words (keys and values), the list's first entry is taken. Knows answers as text, and
nothing of prompts or models.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from pacellm_rag.evaluation.metrics import normalise_answer
from pacellm_rag.evaluation.rouge_lsum import rouge_lsum

__all__ = ["SCORES", "score_answer"]

_DIGITS = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"  # noqa: RUF001
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE_PUNCTUATION)
_CHOICE_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
_DEBUG_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")


def score_answer(task: str, answer: str, label: Any, *, drops_first: bool = False) -> float:
    """The score of one answer, 0 to 1.

    Args:
        task: full name of the task, such as "longbook_choice_eng".
        answer: the model's words.
        label: what the data accept, as `infinitebench_tasks` reads it or as the official
            predictions' files have it.
        drops_first: whether the first number of an answer to "math_calc" is left out, as it is
            for the prompt set of GPT-4, which repeats the first number of the expression.

    Raises:
        KeyError: there is no such task.
    """
    if task == "math_calc" and drops_first:
        return _math_calc(answer, label, skip=1)
    return float(SCORES[task](answer, label))


def _first(label: Any) -> Any:
    return label[0] if isinstance(label, (list, tuple)) else label


def _words(answer: str, blanked: Iterable[str]) -> list[str]:
    return _blanked(answer, blanked).split()


def _blanked(answer: str, strings: Iterable[str]) -> str:
    for each in strings:
        answer = answer.replace(each, " ")
    return answer


def _first_integer(answer: str, label: Any) -> bool:
    """The first run of digits is the label, to the digit; 0123 is not 123."""
    found = _DIGITS.search(answer)
    return bool(_first(label) == (found[0] if found else ""))


def _key_value(answer: str, label: Any) -> bool:
    """The label is one of the words, most punctuation taken for blanks."""
    return _first(label) in _words(answer, "\n:\"'.,?!{}")


def _dialogue(answer: str, label: Any) -> bool:
    """The first accepted name, written in capitals in the data, is one of the words."""
    return _first(label) in [word.upper() for word in _words(answer, "\n:\"'.,?!{}")]


def _choice(answer: str, label: Sequence[str]) -> bool:
    """The option that the answer chooses is the label, a pair of text and letter.

    Its first character, if it is A to D, decides. Else an answer that is the text is right. Else
    what stands behind the first of the usual phrases decides, phrases in their order; and in the
    end the first word that is A to D, or several of them in a row, such as BC.
    """
    answer = answer.strip()
    if not answer:
        return False
    if answer[0] in "ABCD":
        return answer[0] in label
    if answer in label:
        return True
    answer = _single_blanks(_blanked(answer, "\n\"'.,?!{}"))
    behind = _behind_phrase(answer, _CHOICE_PREFIXES)
    if behind is not None:
        return behind.startswith(tuple(label))
    return next((word in label for word in answer.split() if word in "ABCD"), False)


def _code_debug(answer: str, label: Sequence[str]) -> bool:
    """Either "B." or "B:" opens the answer, or letter or function follow one of the phrases.

    A letter alone, without a dot or colon, does not count.
    """
    function, letter = label[0], label[1]
    answer = answer.strip()
    if answer[:2] in (f"{letter}.", f"{letter}:"):
        return True
    answer = _single_blanks(_blanked(answer, ("\n", *"`'\"-*", "Option", "option")))
    behind = _behind_phrase(answer, _DEBUG_PREFIXES)
    return behind is not None and behind.startswith((letter, function))


def _single_blanks(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _behind_phrase(answer: str, phrases: Sequence[str]) -> str | None:
    """What stands one character behind the first phrase that occurs; None if none does."""
    for phrase in phrases:
        _, found, behind = answer.partition(phrase)
        if found:
            return behind[1:]
    return None


def _code_run(answer: str, label: Any) -> bool:
    """The last word is the label as an integer."""
    words = _words(answer.strip(), "\n.`'\":")
    try:
        return bool(words) and int(words[-1]) == _first(label)
    except ValueError:
        return False


def _math_find(answer: str, label: Any) -> bool:
    """The first number without its sign is the label, and of its kind where that is an integer."""
    wanted = _first(label)
    found = _NUMBER.search(answer)
    if found is None:
        return False
    try:
        return bool((int if isinstance(wanted, int) else float)(found[0]) == wanted)
    except ValueError:
        return False


def _math_calc(answer: str, label: Any, skip: int = 0) -> float:
    """The part of the label that the answer's numbers, without signs, get right from the start."""
    wanted = label[0] if isinstance(label[0], (list, tuple)) else label
    right = 0
    for said, value in zip(_DIGITS.findall(answer)[skip:], wanted, strict=False):
        if (said.lstrip("0") or "0") != str(value):  # as text: Python refuses very long integers
            break
        right += 1
    return right / len(wanted)


def _english_f1(answer: str, label: Sequence[str]) -> float:
    """F1 of words, normalised as SQuAD has it; the best of the accepted answers."""
    said = normalise_answer(answer).split()
    return max((_f1(said, normalise_answer(text).split()) for text in label), default=0.0)


def _chinese_f1(answer: str, label: Sequence[str]) -> float:
    """F1 of characters, without case, blanks and punctuation; the best of the accepted answers."""
    said = _chinese_characters(answer)
    return max((_f1(said, _chinese_characters(text)) for text in label), default=0.0)


def _chinese_characters(text: str) -> str:
    return "".join(text.lower().translate(_NO_PUNCTUATION).split())


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Unlike SQuAD's it is 0 where both are empty."""
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _summary(answer: str, label: Sequence[str]) -> float:
    return rouge_lsum(answer, label)


SCORES: Final[Mapping[str, Callable[[str, Any], float]]] = {
    "passkey": _first_integer,
    "number_string": _first_integer,
    "kv_retrieval": _key_value,
    "longbook_sum_eng": _summary,
    "longbook_choice_eng": _choice,
    "longbook_qa_eng": _english_f1,
    "longbook_qa_chn": _chinese_f1,
    "longdialogue_qa_eng": _dialogue,
    "math_find": _math_find,
    "math_calc": _math_calc,
    "code_run": _code_run,
    "code_debug": _code_debug,
}
"""The rule of each task, by its full name."""
