"""Which pages an answer rests on, and the sentence there that bears it out (being written)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Citation:
    """A page that an answer rests on.

    Attributes:
        document: index of the document in the reader, from 0.
        title: its title.
        page: physical page number, from 1.
        label: the number printed on the page.
        quote: the sentence of the page that best bears the answer out.
        verified: whether the quote stands on that page.
        score: how strongly the answer rests on the page, 0 to 1; the citations' sum is at most 1.
        source: what named the page: the "model" itself, its "attention", or "both".
    """

    document: int
    title: str
    page: int
    label: str
    quote: str
    verified: bool
    score: float
    source: Literal["model", "attention", "both"]
