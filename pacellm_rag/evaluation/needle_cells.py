"""A text with needles in it, in pages, and how much of a text a prompt has room for.

Knows no prompt and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from pacellm_rag.documents.types import Document, Page
from pacellm_rag.evaluation.haystack import HaystackText
from pacellm_rag.evaluation.needles import Needles

__all__ = ["NeedleSample", "most_sentences"]

_PAGE_WORDS = 400
_TITLE = "Collected pages"


@dataclass(frozen=True)
class NeedleSample:
    """One cell: needles in a text of one length, at one depth.

    Attributes:
        id: unique within the suite.
        length: tokens asked for, prompt and answer together.
        depth: percent asked for.
        trial: which of the cells of this length and depth.
        needles: what is hidden.
        borders: for each hidden sentence, the sentence of the text before which it stands.
        text: the haystack; longer than what is used of it.
        sentences: how many of its sentences are used.
    """

    id: str
    length: int
    depth: float
    trial: int
    needles: Needles
    borders: tuple[int, ...]
    text: HaystackText = field(repr=False)
    sentences: int

    @cached_property
    def pages(self) -> tuple[str, ...]:
        """The text with its needles, in pages; where pages end does not depend on the needles."""
        pages: list[str] = []
        page: list[str] = []
        words = 0
        for index in range(self.sentences):
            page += self._hidden_at(index)
            page.append(self.text.sentences[index])
            words += len(page[-1].split())
            if words >= _PAGE_WORDS and index + 1 < self.sentences:
                pages.append("".join(page).strip())
                page, words = [], 0
        page += self._hidden_at(self.sentences)
        return (*pages, "".join(page).strip())

    def _hidden_at(self, border: int) -> list[str]:
        pairs = zip(self.borders, self.needles.sentences, strict=True)
        return [f"{sentence} " for place, sentence in pairs if place == border]

    @property
    def document(self) -> Document:
        """The text as a document."""
        pages = tuple(Page(i, str(i), text) for i, text in enumerate(self.pages, 1))
        return Document(f"needle {self.id}", _TITLE, pages)

    @property
    def evidence(self) -> tuple[int, ...]:
        """Numbers of the pages that hold a needle of the answer."""
        wanted = [self.needles.sentences[index] for index in self.needles.wanted]
        return tuple(
            number
            for number, text in enumerate(self.pages, 1)
            if any(sentence in text for sentence in wanted)
        )


def most_sentences(text: HaystackText, room: int, tokens_of: Callable[[int], int]) -> int:
    """Most sentences with which a prompt fits; 0 where not even one does.

    Prompts are rendered a few times only: how many tokens sentences add is known but for page
    markers, and the search goes on from what the last prompt lacked or had too much.

    Args:
        text: the haystack.
        room: most tokens of the prompt.
        tokens_of: tokens of the prompt with the first so many sentences.
    """
    fits, too_many = 0, len(text.sentences) + 1
    guess = text.fitting(room)
    while fits + 1 < too_many:
        guess = min(max(guess, fits + 1), too_many - 1)
        left = room - tokens_of(guess)
        if left >= 0:
            fits = guess
        else:
            too_many = guess
        guess = text.fitting(text.token_ends[guess - 1] + left)
    return fits
