"""The suite `mydocs`: the user's own documents and questions.

A line of the questions is one object: `question`; `answers`, accepted ones, none where the
documents do not hold one; and, if citations are to be scored, `page` (and `document`, a file's name
or a document's title, where there are several), or `evidence`, a list of such. `id` and `kind` are
kept for the tables. Knows no model and no file but the questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pacellm_rag.context.prompts import INSTRUCTIONS, REMINDER
from pacellm_rag.documents.types import Document
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.document_questions import (
    ANSWER_TOKENS,
    METRIC,
    DocumentQuestion,
    ask_group,
    check_fits,
    checked_readings,
)
from pacellm_rag.evaluation.qa_data import file_digest
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = ["MyDocsSuite"]

_NAME = "mydocs"


@dataclass(frozen=True)
class MyDocsSuite:
    """Questions about documents, all of which are read together.

    Attributes:
        data: the questions, .jsonl.
        documents: what they are about.
        per_reading: questions asked on one reading of the documents. They are the groups of a run:
            the unit of its intervals, and what is done again after it was killed.
        extra_readings: further ways of reading, besides the whole.
        answer_tokens: most tokens of an answer.

    Raises:
        ConfigurationError: a value is out of range, or there is no document.
    """

    data: Path
    documents: tuple[Document, ...] = field(repr=False)
    per_reading: int = 5
    extra_readings: tuple[str, ...] = ()
    answer_tokens: int = ANSWER_TOKENS
    name = _NAME
    metric = METRIC

    def __post_init__(self) -> None:
        if not self.documents:
            raise ConfigurationError("There is no document to ask about; name some with --files.")
        if min(self.per_reading, self.answer_tokens) < 1:
            raise ConfigurationError(
                f"per_reading is {self.per_reading} and answer_tokens {self.answer_tokens}; each "
                "must be 1 or more."
            )
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
            "documents": [[document.title, document.id] for document in self.documents],
            "per_reading": self.per_reading,
            "answer_tokens": self.answer_tokens,
            "prompt": [INSTRUCTIONS, REMINDER],
        }

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[DocumentQuestion]]:
        """See `Suite.groups`."""
        questions = self._questions()
        starts = range(0, len(questions), self.per_reading)
        groups = [
            Group(f"{start // self.per_reading:03d}", questions[start : start + self.per_reading])
            for start in starts
        ]
        longest = max(questions, key=lambda q: tokenizer.count_tokens(q.question))
        check_fits([Group("of all documents", (longest,))], tokenizer, self.answer_tokens,
                   "Leave out documents, or choose a model with a larger window")  # fmt: skip
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

    def _questions(self) -> tuple[DocumentQuestion, ...]:
        """The questions of the file.

        Raises:
            ConfigurationError: it can not be read, holds none, or one that is not as needed.
        """
        try:
            lines = self.data.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"The questions in {self.data} can not be read: {error}."
            ) from error
        found: dict[str, DocumentQuestion] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"line {number} of {self.data}"
            question = _question_of(line, number, self.documents, place)
            if question.id in found:
                raise ConfigurationError(
                    f"The id {question.id!r} at {place} was there before; give each its own."
                )
            found[question.id] = question
        if not found:
            raise ConfigurationError(
                f"{self.data} holds no question; see pacellm-rag eval {_NAME} --help."
            )
        return tuple(found.values())


def _question_of(
    line: str, number: int, documents: tuple[Document, ...], place: str
) -> DocumentQuestion:
    try:
        values = json.loads(line)
        question, answers = values["question"], values["answers"]
        if not isinstance(question, str) or not question.strip():
            raise ValueError("the question is empty")
        if not isinstance(answers, list) or not all(str(answer).strip() for answer in answers):
            raise ValueError("answers must be a list of texts; [] where there is none")
        evidence = _evidence_of(values, documents)
    except ConfigurationError as error:
        raise ConfigurationError(f"At {place}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The question at {place} is not as needed ({type(error).__name__}: {error}); see "
            f"pacellm-rag eval {_NAME} --help."
        ) from error
    kind = values.get("kind")
    return DocumentQuestion(
        id=str(values.get("id", f"{number:03d}")),
        task=_NAME,
        question=question,
        answers=tuple(str(answer) for answer in answers),
        documents=documents,
        evidence=evidence,
        facts={} if kind is None else {"kind": str(kind)},
    )


def _evidence_of(
    values: Mapping[str, Any], documents: Sequence[Document]
) -> tuple[tuple[int, int], ...]:
    """The (document index, page number) of the pages that hold the answer."""
    named = list(values.get("evidence") or ())
    if values.get("page") is not None:
        named.append({"document": values.get("document"), "page": values["page"]})
    return tuple(dict.fromkeys(_place_of(each, documents) for each in named))


def _place_of(named: Mapping[str, Any], documents: Sequence[Document]) -> tuple[int, int]:
    index = _index_of(named.get("document"), documents)
    page = named["page"]
    numbers = {page.number for page in documents[index].pages}
    if isinstance(page, bool) or page not in numbers:
        raise ConfigurationError(
            f"{documents[index].title} has no page {page!r}; its pages are {min(numbers)} to "
            f"{max(numbers)}."
        )
    return index, int(page)


def _index_of(name: Any, documents: Sequence[Document]) -> int:
    """Which document a name means: its file, its file without suffix, or its title."""
    if name is None and len(documents) == 1:
        return 0
    files = [PurePath(document.source).name for document in documents]
    ways = (
        files,
        [PurePath(file).stem for file in files],
        [document.title for document in documents],
    )
    for names in ways:
        if names.count(str(name)) == 1:
            return names.index(str(name))
    known = ", ".join(
        file or document.title for file, document in zip(files, documents, strict=True)
    )
    what = "a page without its document" if name is None else f"the document {name!r}"
    raise ConfigurationError(
        f"{what} is named, which is not one of those read: {known}. Name one by its file or title."
    )
