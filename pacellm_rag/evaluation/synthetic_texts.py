"""The texts of passkey, number string and key-value retrieval, from a seed and a number of fillers.

Sentences as in OpenBMB/InfiniteBench, `data/construct_synthetic_dataset.py`, MIT licence; keys and
values are random UUIDs, as in Liu et al., "Lost in the Middle", 2023. Knows nothing of tokens,
prompts or models.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from pacellm_rag.evaluation.infinitebench_tasks import Row

__all__ = ["RECIPES", "make_row"]

_NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)


def make_row(task: str, fillers: int, depth: float, seed: str) -> Row:
    """The text and question of a sample.

    Args:
        task: full name of the task.
        fillers: lines or pairs beside the wanted one.
        depth: where that stands, in percent.
        seed: equal seeds give equal digits, keys and values, and more fillers only add some.
    """
    return RECIPES[task](fillers, round(fillers * depth / 100), random.Random(seed))


def _passkey(fillers: int, before: int, rng: random.Random) -> Row:
    key = "".join(rng.choices("0123456789", k=5))
    line = f"The pass key is {key}. Remember it. {key} is the pass key.\n"
    return Row(_hide(line, fillers, before), "What is the pass key?", (), key)


def _number_string(fillers: int, before: int, rng: random.Random) -> Row:
    """Ten digits, of which five are repetitions: copying them exactly is the difficulty."""
    digits = rng.choices("0123456789", k=5)
    while len(digits) < 10:
        place = rng.randrange(len(digits))
        digits.insert(place, digits[place])
    key = "".join(digits)
    line = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n"
    return Row(_hide(line, fillers, before), "What is the sequence of digits?", (), key)


def _hide(line: str, fillers: int, before: int) -> str:
    return _NOISE * before + line + _NOISE * (fillers - before)


def _kv_retrieval(fillers: int, before: int, rng: random.Random) -> Row:
    key, value = _uuid(rng), _uuid(rng)
    pairs = [(_uuid(rng), _uuid(rng)) for _ in range(fillers)]
    pairs.insert(before, (key, value))
    text = ", ".join(f'"{one}": "{other}"' for one, other in pairs)
    question = f'\nKey: "{key}"\nThe value associated with the specified key is: '
    return Row(f"JSON data:\n{{{text}}}", question, (), value)


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


RECIPES: Final[Mapping[str, Callable[[int, int, random.Random], Row]]] = {
    "passkey": _passkey,
    "number_string": _number_string,
    "kv_retrieval": _kv_retrieval,
}
"""How each text is made, by the full name of its task."""
