"""Lengths and depths as people write them on a command line: `1k..8k:8`, `0:100:11`, `1k,4k`.

A length is in tokens, and k is 1,024 of them, as context windows are counted. A depth is in
percent of the text: 0 is its beginning, 100 its end. Knows nothing of what is put there.
"""

from __future__ import annotations

import math
import re

from pacellm_rag.errors import ConfigurationError

__all__ = ["parse_depths", "parse_lengths"]

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([km]?)", re.ASCII)
_UNIT = {"": 1, "k": 1024, "m": 1024**2}
_LENGTH_FORMS = "write lengths such as 4k, 1k,2k,4k or 1k..8k:8 (from..to:how many; 1k is 1,024)"
_DEPTH_FORMS = "write depths in percent such as 50, 0,50,100 or 0:100:11 (from:to:how many)"


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths in tokens, ascending.

    Args:
        text: one length, several with commas between them, or from..to:count for `count` evenly
            spaced ones, both ends included and fractions rounded.

    Raises:
        ConfigurationError: it is none of these, or a length is named twice.
    """
    what = f"The lengths {text!r}"
    if ".." in text:
        ends, colon, count = text.partition(":")
        first, _, last = ends.partition("..")
        if not colon:
            raise ConfigurationError(
                f"{what} do not say how many; {_LENGTH_FORMS}, or {text}:4 here."
            )
        steps = _spaced(
            _tokens(first, what), _tokens(last, what), _count(count, what, _LENGTH_FORMS), what
        )
        lengths = [_half_up(step) for step in steps]
    else:
        lengths = [_tokens(part, what) for part in text.split(",")]
    if len(set(lengths)) < len(lengths):
        raise ConfigurationError(f"{what} name a length twice; {_LENGTH_FORMS}.")
    return tuple(sorted(lengths))


def parse_depths(text: str) -> tuple[float, ...]:
    """Depths in percent, ascending.

    Args:
        text: one depth, several with commas between them, or from:to:count for `count` evenly
            spaced ones, both ends included.

    Raises:
        ConfigurationError: it is none of these, a depth is named twice, or is not of 0 to 100.
    """
    what = f"The depths {text!r}"
    parts = text.split(":")
    if len(parts) == 3:
        first, last = _percent(parts[0], what), _percent(parts[1], what)
        depths = _spaced(first, last, _count(parts[2], what, _DEPTH_FORMS), what)
    elif len(parts) == 1:
        depths = [_percent(part, what) for part in text.split(",")]
    else:
        raise ConfigurationError(f"{what} can not be read; {_DEPTH_FORMS}.")
    if len(set(depths)) < len(depths):
        raise ConfigurationError(f"{what} name a depth twice; {_DEPTH_FORMS}.")
    return tuple(sorted(depths))


def _tokens(text: str, what: str) -> int:
    match = _LENGTH.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigurationError(f"{what} can not be read at {text.strip()!r}; {_LENGTH_FORMS}.")
    tokens = _half_up(float(match[1]) * _UNIT[match[2]])
    if tokens < 1:
        raise ConfigurationError(f"{what} hold {text.strip()!r}; a length is 1 token or more.")
    return tokens


def _percent(text: str, what: str) -> float:
    try:
        depth = float(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{what} can not be read at {text.strip()!r}; {_DEPTH_FORMS}."
        ) from error
    if not 0 <= depth <= 100:
        raise ConfigurationError(f"{what} hold {text.strip()}; a depth is of 0 to 100 percent.")
    return depth


def _count(text: str, what: str, forms: str) -> int:
    stripped = text.strip()
    if not (stripped.isascii() and stripped.isdigit() and int(stripped) >= 2):
        raise ConfigurationError(
            f"{what} ask for {stripped!r} steps; a range has 2 or more; {forms}."
        )
    return int(stripped)


def _spaced(first: float, last: float, count: int, what: str) -> list[float]:
    if not first < last:
        raise ConfigurationError(f"{what} end before they have begun; the larger one comes last.")
    return [(first * (count - 1 - i) + last * i) / (count - 1) for i in range(count)]


def _half_up(value: float) -> int:
    """Rounded so that equal steps stay equal; `round` goes to even."""
    return math.floor(value + 0.5)
