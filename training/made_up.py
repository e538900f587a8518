"""Facts that nobody can know, with questions: codes, dates, sums and lists of keys and values.

A model that answers them has read them. Knows nothing of documents.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["MadeUp", "made_up_facts"]

_SYLLABLES = (
    "ba be bor cal dan del dor el fen gar hal il jor kel lan mar mir nor ol pel quin ran sal tam "
    "tor ul van wen yor zan"
).split()
_THINGS = (
    "project valve pump sensor contract ship station archive laboratory warehouse bridge turbine"
).split()
_MONTHS = (
    "January February March April May June July August September October November December".split()
)
_CITIES = "Hamburg Lyon Porto Turin Gdansk Bergen Utrecht Malaga Tampere Aarhus Ghent Brno".split()


@dataclass(frozen=True)
class MadeUp:
    """Made-up facts.

    Attributes:
        sentences: to be hidden in a text.
        title: of the page.
        page: a list of keys and values; "" without one.
        asked: questions and answers.
        absent: questions of the same look that nothing answers.
    """

    sentences: tuple[str, ...]
    title: str
    page: str
    asked: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]


def made_up_facts(rng: random.Random) -> MadeUp:
    """Some sentences with facts, or a page of keys and values."""
    if rng.random() < 0.35:
        return _list_of_keys(rng)
    sentences, asked, absent = [], [], []
    for _ in range(rng.randint(1, 4)):
        sentence, question, answer = _fact(rng)
        sentences.append(sentence)
        asked.append((question, answer))
    absent.append(_fact(rng)[1])
    return MadeUp(tuple(sentences), "", "", tuple(asked), tuple(absent))


def _name(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize()


def _fact(rng: random.Random) -> tuple[str, str, str]:
    """A sentence, a question about it, its answer."""
    name, thing, other = _name(rng), rng.choice(_THINGS), _name(rng)
    number = str(rng.randint(1000, 9_999_999))
    day = f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1950, 2030)}"
    money = f"{rng.randint(2, 990)},{rng.randint(0, 999):03d} euros"
    city = rng.choice(_CITIES)
    return rng.choice(
        [
            (
                f"The access code of the {thing} {name} is {number}.",
                f"What is the access code of the {thing} {name}?",
                number,
            ),
            (
                f"One of the special magic numbers for {name} is: {number}.",
                f"What is the special magic number for {name}?",
                number,
            ),
            (
                f"{name} {other} inspected the {thing} on {day}.",
                f"When did {name} {other} inspect the {thing}?",
                day,
            ),
            (
                f"The {thing} was inspected by {name} {other}, who came from {city}.",
                f"Where did {name} {other} come from?",
                city,
            ),
            (
                f"For the {thing} {name} the sum of {money} was paid.",
                f"How much was paid for the {thing} {name}?",
                money,
            ),
            (
                f"The {thing} in {city} is called {name}.",
                f"What is the {thing} in {city} called?",
                name,
            ),
        ]
    )


def _list_of_keys(rng: random.Random) -> MadeUp:
    keys = sorted({f"{_name(rng)}-{rng.randint(10, 99)}" for _ in range(rng.randint(8, 30))})
    values = {key: str(rng.randint(100_000, 999_999)) for key in keys}
    lines = rng.sample(keys, len(keys))
    page = "\n".join(f"{key}: {values[key]}" for key in lines)
    asked = [(f"What is the value of {key}?", values[key]) for key in rng.sample(keys, 4)]
    absent = f"What is the value of {_name(rng)}-{rng.randint(100, 999)}?"
    return MadeUp((), "Register", page, tuple(asked), (absent,))
