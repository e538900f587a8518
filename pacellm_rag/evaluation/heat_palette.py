"""The colours of heat maps: one hue from nothing to everything, and orange to blue around nothing.

Lightness alone tells the steps of each side apart, and orange and blue differ for those who confuse
red and green; so the common kinds of colour blindness lose nothing. Each palette comes for light
and for dark surroundings. Knows numbers from -1 to 1 only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

__all__ = ["LEVELS", "Colour", "Surroundings", "colour_of", "ink_on", "level_of", "luminance"]

LEVELS = 20
"""Steps of a palette on each side of nothing."""

Colour = tuple[int, int, int]
Surroundings = Literal["light", "dark"]

_SCORE: Mapping[Surroundings, tuple[Colour, ...]] = {
    "light": ((240, 246, 244), (112, 187, 177), (9, 84, 79)),
    "dark": ((32, 40, 38), (28, 108, 100), (139, 221, 208)),
}
_BETTER: Mapping[Surroundings, tuple[Colour, ...]] = {
    "light": ((243, 244, 244), (133, 178, 219), (16, 71, 133)),
    "dark": ((35, 41, 40), (44, 98, 158), (159, 204, 250)),
}
_WORSE: Mapping[Surroundings, tuple[Colour, ...]] = {
    "light": ((243, 244, 244), (240, 169, 92), (133, 62, 3)),
    "dark": ((35, 41, 40), (158, 84, 19), (252, 188, 120)),
}


def level_of(share: float) -> int:
    """The step of the palette for -1 to 1; what is not exactly nothing never looks like nothing."""
    level = round(max(-1.0, min(1.0, share)) * LEVELS)
    if level == 0 and abs(share) > 1e-9:
        return int(math.copysign(1, share))
    return level


def colour_of(level: int, surroundings: Surroundings, *, signed: bool) -> Colour:
    """The colour of a step.

    Args:
        level: 0 to `LEVELS`, and from -`LEVELS` on where `signed`.
        surroundings: what the picture stands in.
        signed: whether differences are shown, and not scores.
    """
    stops = (_WORSE if level < 0 else _BETTER if signed else _SCORE)[surroundings]
    place = abs(level) / LEVELS * (len(stops) - 1)
    before = min(int(place), len(stops) - 2)
    share = place - before
    first, second = stops[before], stops[before + 1]
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    parts = (c / 255 for c in colour)
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more: always 4.5 to 1 and above."""
    # Where (1.05 / (l + 0.05)) and ((l + 0.05) / 0.05), their contrasts, are equal.
    return (0, 0, 0) if luminance(colour) > 0.1791 else (255, 255, 255)
