"""The suite `packed`: known questions over several documents that are read together.

Pages of a question answering set are packed as documents into contexts, as a user's files would
be, and a few questions asked about each. Some have no answer there: where the data hold none of
those for a page, questions about pages of other contexts are taken, of which no accepted answer
stands in this one. Pages without a title are left out unless asked for: a question about one
nameless table fits the others as well. Knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacellm_rag.context.prompts import INSTRUCTIONS, REMINDER
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.document_questions import (
    ANSWER_TOKENS,
    METRIC,
    DocumentQuestion,
    ask_group,
    check_fits,
    checked_readings,
)
from pacellm_rag.evaluation.metrics import normalise_answer
from pacellm_rag.evaluation.qa_data import (
    Context,
    Question,
    Row,
    draw_contexts,
    file_digest,
    load_rows,
)
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = ["PackedSuite"]

_NAME = "packed"


@dataclass(frozen=True)
class _Asked:
    """A question of one context."""

    question: Question
    source: str
    evidence: tuple[tuple[int, int], ...] = ()
    origin: str = "page"


@dataclass(frozen=True)
class PackedSuite:
    """Multi-document question answering over a file of questions; see `qa_data` for its lines.

    Attributes:
        data: the file.
        contexts: how many contexts.
        pages: fewest and most pages of a context.
        document_pages: most pages of a document, so that a context has several.
        questions: most questions about each.
        unanswerable: share of questions that the context does not answer.
        most_words: pages with more words are left out.
        source: only lines of this source; None for all.
        untitled: take pages without a title too.
        extra_readings: further ways of reading, besides the whole.
        answer_tokens: most tokens of an answer.
        seed: of all that is drawn.

    Raises:
        ConfigurationError: a value is out of range.
    """

    data: Path
    contexts: int = 40
    pages: tuple[int, int] = (8, 12)
    document_pages: int = 3
    questions: int = 12
    unanswerable: float = 0.2
    most_words: int = 300
    source: str | None = None
    untitled: bool = False
    extra_readings: tuple[str, ...] = ()
    answer_tokens: int = ANSWER_TOKENS
    seed: int = 0
    name = _NAME
    metric = METRIC

    def __post_init__(self) -> None:
        least, most = self.pages
        if not 1 <= least <= most:
            raise ConfigurationError(
                f"pages are {least} to {most}; they must be 1 or more, the smaller number first."
            )
        if not 0 <= self.unanswerable <= 1:
            raise ConfigurationError(
                f"unanswerable is {self.unanswerable}; it is a share and must be 0 to 1."
            )
        for name in ("contexts", "document_pages", "questions", "most_words", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        checked_readings(self.extra_readings)

    @property
    def readings(self) -> Sequence[str]:
        """See `Suite.readings`."""
        return checked_readings(self.extra_readings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Suite.settings`."""
        return {
            "data": self.data.name,
            "data_sha256": file_digest(self.data),
            "contexts": self.contexts,
            "pages": list(self.pages),
            "document_pages": self.document_pages,
            "questions": self.questions,
            "unanswerable": self.unanswerable,
            "most_words": self.most_words,
            "source": self.source,
            "untitled": self.untitled,
            "answer_tokens": self.answer_tokens,
            "prompt": [INSTRUCTIONS, REMINDER],
            "seed": self.seed,
        }

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[DocumentQuestion]]:
        """See `Suite.groups`; which samples there are does not depend on the tokenizer."""
        rows = load_rows(
            self.data,
            source=self.source,
            paragraphs=True,
            most_words=self.most_words,
            command=f"eval {_NAME}",
        )
        if not self.untitled:
            rows = [row for row in rows if all(title for title, _ in row.pages)]
            if not rows:
                raise ConfigurationError(
                    f"No page in {self.data} that could be taken has a title. If the questions say "
                    "what they are about, take such pages with --untitled."
                )
        rng = random.Random(self.seed)
        sizes = [rng.randint(*self.pages) for _ in range(self.contexts)]
        used: set[str] = set()
        groups = []
        contexts = draw_contexts(rows, sizes, rng, document_pages=self.document_pages)
        for index, context in enumerate(contexts):
            asked = self._draw_questions(context, rows, used, rng)
            samples = tuple(_sample(index, i, context, each) for i, each in enumerate(asked))
            if samples:
                groups.append(Group(f"{index:03d}", samples))
        check_fits(
            groups, tokenizer, self.answer_tokens, "Lower --page-words or --pages, name a --source"
        )
        return groups

    def answer(
        self,
        model: TextModel,
        group: Group[DocumentQuestion],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """See `Suite.answer`."""
        return ask_group(
            model, group, reading=reading, answer_tokens=self.answer_tokens, cancel=cancel
        )

    def _draw_questions(
        self, context: Context, rows: Sequence[Row], used: set[str], rng: random.Random
    ) -> list[_Asked]:
        """Questions about one context, those without an answer anywhere among them."""
        wanted = round(self.questions * self.unanswerable)
        pool = [
            _Asked(question, placed.row.source, placed.evidence)
            for placed in context.rows
            for question in placed.row.answerable
        ]
        own = [
            _Asked(question, placed.row.source)
            for placed in context.rows
            for question in placed.row.questions
            if not question.answers
        ]
        asked = rng.sample(pool, min(self.questions - wanted, len(pool)))
        if len(asked) < self.questions - wanted:  # fewer of the others too, to keep the share
            wanted = round(len(asked) * self.unanswerable / (1 - self.unanswerable))
        without = rng.sample(own, min(wanted, len(own)))
        without += _from_elsewhere(context, rows, used, wanted - len(without), rng)
        mixed = [*asked, *without]
        rng.shuffle(mixed)
        return mixed


def _from_elsewhere(
    context: Context, rows: Sequence[Row], used: set[str], count: int, rng: random.Random
) -> Iterator[_Asked]:
    """Questions about pages that are not here, none of whose answers stands here; each once."""
    if count <= 0:
        return
    here = " ".join(f"{d.title} {page.text}" for d in context.documents for page in d.pages)
    words = f" {normalise_answer(here)} "
    titles = {document.title for document in context.documents}
    placed = {question.text for each in context.rows for question in each.row.questions}
    # a page with a title: questions about nameless tables are often about any table
    others = [row for row in rows if row.title and row.title not in titles]
    for row in rng.sample(others, len(others)):
        for question in rng.sample(row.answerable, len(row.answerable)):
            answers = [normalise_answer(answer) for answer in question.answers]
            known = question.text in used or question.text in placed
            if known or any(f" {answer} " in words for answer in answers):
                continue
            used.add(question.text)
            yield _Asked(Question(question.text, ()), row.source, origin="elsewhere")
            count -= 1
            break
        if count == 0:
            return


def _sample(group: int, position: int, context: Context, asked: _Asked) -> DocumentQuestion:
    return DocumentQuestion(
        id=f"{group:03d}-{position:02d}",
        task=_NAME,
        question=asked.question.text,
        answers=asked.question.answers,
        documents=context.documents,
        evidence=asked.evidence,
        facts={"source": asked.source, "origin": asked.origin},
    )
