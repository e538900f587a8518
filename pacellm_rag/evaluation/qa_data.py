"""Pages with questions and answers from a file, and contexts packed from them.

Used to measure (`packed`) and to choose settings (`pacellm-rag calibrate`). A line of the file is
one object: `context`, a page, or `paragraphs`, several of `[title, text, is_supporting]`; its
`title`; its `source`; and `questions`, each `[question, [answer, ...]]`, without answers where the
page does not hold one. Knows no model and no scores.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError

__all__ = ["Context", "Placed", "Question", "Row", "draw_contexts", "file_digest", "load_rows"]

_MOST_PARAGRAPHS = 4


@dataclass(frozen=True)
class Question:
    """A question and the answers that are accepted; none where the row does not answer it."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the data.

    Attributes:
        source: the data set that it is from.
        title: of the page; "" where it has none.
        pages: (title, text); one, or the paragraphs of a question over several documents.
        evidence: indices of the pages that the answers are taken from.
        questions: at least one of them has an answer.
    """

    source: str
    title: str
    pages: tuple[tuple[str, str], ...]
    evidence: tuple[int, ...]
    questions: tuple[Question, ...]

    @property
    def answerable(self) -> tuple[Question, ...]:
        """The questions with an answer."""
        return tuple(question for question in self.questions if question.answers)


@dataclass(frozen=True)
class Placed:
    """A row in a context, and the (document index, page number) of its evidence."""

    row: Row
    evidence: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Context:
    """Documents to be read together, and the rows that they are made of, in their order."""

    documents: tuple[Document, ...]
    rows: tuple[Placed, ...]


def load_rows(
    path: Path,
    *,
    source: str | None = None,
    paragraphs: bool = False,
    most_words: int | None = None,
    command: str = "calibrate",
) -> list[Row]:
    """The lines with answerable questions.

    Args:
        path: .jsonl or .jsonl.xz.
        source: only lines of this source.
        paragraphs: take lines of several documents too. The paragraphs that support the answer
            are kept, and of the others so many that there are four.
        most_words: leave out lines with a longer page.
        command: whose help describes the format.

    Raises:
        ConfigurationError: the file can not be read, or holds none.
    """
    rows: list[Row] = []
    try:
        with (
            lzma.open(path, "rt", encoding="utf-8")
            if path.suffix == ".xz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"line {number} of {path}"
                    rows += _rows_of(line, source, paragraphs, place, command)
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The data in {path} can not be read: {error}.") from error
    if most_words is not None:
        rows = [r for r in rows if all(len(text.split()) <= most_words for _, text in r.pages)]
    if not rows:
        of = "" if source is None else f" of the source {source!r}"
        up_to = "" if most_words is None else f" of up to {most_words:,} words"
        raise ConfigurationError(f"{path} holds no page{of}{up_to} with a question and its answer.")
    return rows


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    Raises:
        ConfigurationError: it can not be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise ConfigurationError(f"The data in {path} can not be read: {error}.") from error
    return digest.hexdigest()


def _rows_of(
    line: str, source: str | None, paragraphs: bool, place: str, command: str
) -> Iterator[Row]:
    try:
        values = json.loads(line)
        if source is not None and values.get("source") != source:
            return
        questions = tuple(_questions_of(values["questions"]))
        title = str(values.get("title") or "")
        pages, evidence = _pages_of(values, title, paragraphs)
        origin = str(values.get("source") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The data at {place} is not as needed ({type(error).__name__}: {error}); see "
            f"pacellm-rag {command} --help."
        ) from error
    if pages and any(question.answers for question in questions):
        yield Row(origin, title, pages, evidence, questions)


def _questions_of(values: Any) -> Iterator[Question]:
    for text, answers in values:
        wanted = tuple(str(answer) for answer in answers)
        if str(text).strip() and (not wanted or wanted[0].strip()):
            yield Question(str(text), wanted)


def _pages_of(
    values: Any, title: str, paragraphs: bool
) -> tuple[tuple[tuple[str, str], ...], tuple[int, ...]]:
    """The pages of a line, and which of them are the evidence."""
    context = str(values.get("context") or "")
    if context or not paragraphs:
        return ((title, context),) if context else (), (0,)
    whole = [
        (str(name), str(text), bool(used)) for name, text, used in values.get("paragraphs", ())
    ]
    whole = [(name, text, used) for name, text, used in whole if text.strip()]
    room = max(_MOST_PARAGRAPHS - sum(used for *_, used in whole), 0)
    others = [i for i, (*_, used) in enumerate(whole) if not used][:room]
    kept = [part for i, part in enumerate(whole) if part[2] or i in others]
    supporting = tuple(i for i, (*_, used) in enumerate(kept) if used)
    return tuple((name, text) for name, text, _ in kept), supporting


def draw_contexts(
    rows: Sequence[Row],
    sizes: Sequence[int],
    rng: random.Random,
    *,
    document_pages: int | None = None,
) -> list[Context]:
    """Packs pages of the same title as documents.

    No row is in two contexts, and no title either as long as there are others. A row of several
    documents stays together: where there is little room it loses documents that are no evidence,
    and else it waits for the next context.

    Args:
        rows: what to draw from.
        sizes: pages of each context. Where what is left does not add up to that, the smallest of
            the sizes is enough.
        rng: only shuffles the titles.
        document_pages: most pages of one document; None for as many as a context has.

    Raises:
        ConfigurationError: the rows do not fill the contexts.
    """
    total, needed = sum(len(row.pages) for row in rows), sum(sizes)
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    if needed > total:
        raise ConfigurationError(
            f"The data hold {total} pages with answers; {len(sizes)} contexts of {each} need "
            f"{needed}. Lower --contexts or --pages."
        )
    left = _parts(rows, document_pages or max(sizes), rng)
    contexts: list[Context] = []
    for size in sizes:
        parts = _fill(left, size, min(sizes))
        if parts is None:
            raise ConfigurationError(
                f"The pages of the data fill {len(contexts)} contexts of {each}, not {len(sizes)}. "
                "Lower --contexts or --pages."
            )
        contexts.append(_context(parts))
    return contexts


def _parts(rows: Sequence[Row], most: int, rng: random.Random) -> deque[list[Row]]:
    """What may stand together: rows of one title, or one row of several documents."""
    by_title: dict[str, list[Row]] = {}
    for index, row in enumerate(rows):
        alone = not row.title or len(row.pages) > 1
        by_title.setdefault(f"\n{index}" if alone else row.title, []).append(row)
    articles = list(by_title.values())
    rng.shuffle(articles)
    # the first pages of every article, then the next of those that have more
    queue: deque[list[Row]] = deque()
    for start in range(0, max(map(len, articles)), most):
        queue += [article[start : start + most] for article in articles if article[start:]]
    return queue


def _fill(left: deque[list[Row]], size: int, least: int) -> list[list[Row]] | None:
    """The next parts that make a context, taken out of `left`; None where they do not suffice."""
    chosen: list[list[Row]] = []
    waiting: list[list[Row]] = []
    titles: set[str] = set()
    room = size
    while room > 0 and left:
        part = left.popleft()
        if _is_bundle(part):
            row = _with_pages(part[0], room)
            if row is None or titles & {title for title, _ in row.pages}:
                waiting.append(part)
                continue
            chosen.append([row])
        else:
            chosen.append(part[:room])
            if part[room:]:
                left.append(part[room:])  # behind all others, which are of other titles
        pages = [page for row in chosen[-1] for page in row.pages]
        titles |= {title for title, _ in pages}
        room -= len(pages)
    left.extendleft(reversed(waiting))
    return chosen if size - room >= least else None


def _is_bundle(part: Sequence[Row]) -> bool:
    return len(part[0].pages) > 1


def _with_pages(row: Row, most: int) -> Row | None:
    """A row of several documents with no more than `most` of them, its evidence among them."""
    if len(row.pages) <= most:
        return row
    others = [i for i in range(len(row.pages)) if i not in row.evidence]
    kept = sorted([*row.evidence, *others[: max(most - len(row.evidence), 0)]])
    if not 1 < len(kept) <= most:
        return None
    evidence = tuple(kept.index(i) for i in row.evidence)
    return replace(row, pages=tuple(row.pages[i] for i in kept), evidence=evidence)


def _context(parts: Sequence[Sequence[Row]]) -> Context:
    documents: list[Document] = []
    placed: list[Placed] = []
    for part in parts:
        first = len(documents)
        if _is_bundle(part):
            row = part[0]
            documents += [_document(title, [text]) for title, text in row.pages]
            placed.append(Placed(row, tuple((first + index, 1) for index in row.evidence)))
            continue
        title = part[0].pages[0][0]
        documents.append(_document(title, [row.pages[0][1] for row in part]))
        placed += [Placed(row, ((first, number),)) for number, row in enumerate(part, 1)]
    return Context(tuple(documents), tuple(placed))


def _document(title: str, texts: Sequence[str]) -> Document:
    name = title or "Untitled"
    return Document(name, name, tuple(Page(i, str(i), text) for i, text in enumerate(texts, 1)))
