"""Needles: sentences about things that do not exist, to be found again in a long text.

Names, words and numbers are made up from a seed, so that no model can know them from its training,
and no two draws share one. Three kinds, after Kamradt's test and RULER (Hsieh et al., "RULER:
What's the Real Context Size of Your Long-Context Language Models?", 2024): `single`, one sentence
with three things to find; `multikey`, four such sentences about four places, one of which is asked
for; `multivalue`, four sentences about one place, all of which are asked for. Knows no text to
hide them in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pacellm_rag.errors import ConfigurationError

__all__ = ["KINDS", "NeedleKind", "NeedleMaker", "Needles", "keyword_recall"]

NeedleKind = Literal["single", "multikey", "multivalue"]
KINDS: tuple[NeedleKind, ...] = get_args(NeedleKind)

_MANY = 4  # as RULER has for keys and for values
_ONSETS = "b br c d dr f g gr h j k kr l m n p pr r s st t tr v w z".split()
_VOWELS = "a e i o u ai ea ou".split()
_ENDS = "l m n r s t nd rk sk th".split()


@dataclass(frozen=True)
class Needles:
    """What is hidden for one question.

    Attributes:
        sentences: to hide; the first is at the depth asked for.
        wanted: those among them, by index, that hold the answer.
        question: what is asked.
        keywords: what a right answer names.
    """

    sentences: tuple[str, ...]
    wanted: tuple[int, ...]
    question: str
    keywords: tuple[str, ...]


class NeedleMaker:
    """Makes needles; never the same name, word or number twice.

    Args:
        kind: one of `KINDS`.
        taken: words that must not be used, since the text has them.

    Raises:
        ConfigurationError: there is no such kind.
    """

    def __init__(self, kind: str, taken: Sequence[str] = ()) -> None:
        if kind not in KINDS:
            raise ConfigurationError(
                f"There are no needles of the kind {kind!r}. Known are: {', '.join(KINDS)}."
            )
        self._kind = kind
        self._taken = {word.casefold() for word in taken}

    def make(self, rng: random.Random) -> Needles:
        """The next needles."""
        if self._kind == "multivalue":
            place = self._name(rng)
            numbers = [self._number(rng) for _ in range(_MANY)]
            return Needles(
                tuple(f"One number on the seal of {place} is {number}." for number in numbers),
                tuple(range(_MANY)),
                f"Which {_MANY} numbers are on the seal of {place}?",
                tuple(numbers),
            )
        count = _MANY if self._kind == "multikey" else 1
        facts = [
            (self._name(rng), (self._word(rng), self._name(rng), self._number(rng)))
            for _ in range(count)
        ]
        place, keywords = facts[0]
        return Needles(
            tuple(
                f"The seal of {where} shows the word {word}, the name {name} and the number "
                f"{number}."
                for where, (word, name, number) in facts
            ),
            (0,),
            f"Which word, which name and which number does the seal of {place} show?",
            keywords,
        )

    def _name(self, rng: random.Random) -> str:
        return self._word(rng).capitalize()

    def _word(self, rng: random.Random) -> str:
        while True:
            parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 3)))]
            word = "".join(parts) + rng.choice(_ENDS)
            if self._take(word):
                return word

    def _number(self, rng: random.Random) -> str:
        while True:
            number = str(rng.randrange(100_000, 1_000_000))
            if self._take(number):
                return number

    def _take(self, word: str) -> bool:
        if word in self._taken:
            return False
        self._taken.add(word)
        return True


def keyword_recall(answer: str, keywords: Sequence[str]) -> float:
    """Share of the keywords that stand in an answer as whole words, whatever their case.

    Numbers may have commas or blanks between their thousands.
    """
    said = re.sub(r"(?<=\d)[, \u00a0\u202f](?=\d{3}(?!\d))", "", answer.casefold())
    found = [
        re.search(rf"(?<!\w){re.escape(keyword.casefold())}(?!\w)", said) is not None
        for keyword in keywords
    ]
    return sum(found) / len(found) if found else 0.0
