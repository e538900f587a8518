"""Training examples: packed documents, and conversations about them.

Every example is drawn from a seed and its number alone, so a stopped training goes on with the
same ones. Documents are packed by the product's own code, and answers are as terse as the product
wants them; what the documents do not hold is answered by its one sentence for that. Knows the data
set's lines; knows nothing of tokens or tensors.
"""

from __future__ import annotations

import json
import lzma
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page
from training.made_up import made_up_facts

__all__ = ["Example", "Library", "Turn", "draw_example"]

CHARACTERS_PER_TOKEN = 4.3
LONGEST_ANSWER = 120  # characters
# What a context is mostly made of, and how often.
KINDS = {
    "squad": 0.66,
    "table": 0.09,
    "report": 0.06,
    "contract": 0.06,
    "story": 0.05,
    "hops": 0.08,
}
UNANSWERABLE = 0.22  # share of the conversations
FOLLOW_UPS = 0.12  # share of the conversations that go on
MADE_UP = 0.35  # share of the contexts that hold made-up facts
_ROW_KINDS = {
    "wikitablequestions_extractive": "table",
    "tatqa_spans": "report",
    "cuad_window": "contract",
    "fairytaleqa_extractive": "story",
    "timeqa_human": "story",
    "2wikimultihop_subset": "hops",
    "hotpotqa_subset": "hops",
    "musique_subset": "hops",
}


@dataclass(frozen=True)
class Turn:
    """A question and the answer to learn.

    Attributes:
        question: the user's words.
        answer: the model's.
        asked: whether it is put as the product puts questions; else the words are sent as they are.
    """

    question: str
    answer: str
    asked: bool = True


@dataclass(frozen=True)
class Example:
    """Documents and conversations about them, each on its own."""

    documents: tuple[Document, ...]
    conversations: tuple[tuple[Turn, ...], ...]


@dataclass(frozen=True)
class Row:
    """A text with its questions, or a set of paragraphs of different articles with one."""

    title: str
    text: str
    turns: tuple[Turn, ...]
    paragraphs: tuple[tuple[str, str], ...] = ()


@dataclass
class Library:
    """The data set, by what it is good for.

    Attributes:
        articles: SQuAD's paragraphs by article.
        unanswerable: by paragraph, questions that it does not answer.
        rows: of the other kinds.
        haystack: pages of text that nothing is asked about.
    """

    articles: list[list[Row]] = field(default_factory=list)
    unanswerable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    haystack: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Library:
        """Reads `qa_train.jsonl.xz` and `haystack.txt.xz`."""
        library = cls()
        articles: dict[str, list[Row]] = defaultdict(list)
        with lzma.open(folder / "qa_train.jsonl.xz", "rt", encoding="utf-8") as lines:
            for line in lines:
                values = json.loads(line)
                source, text = values["source"], values.get("context") or ""
                if source == "squad1_unanswerable_synth":
                    library.unanswerable[text] += [q for q, _ in values["questions"]]
                    continue
                turns = tuple(
                    Turn(question.strip(), answers[0].strip() if answers else NOT_ANSWERED)
                    for question, answers in values["questions"]
                    if question.strip() and (not answers or 0 < len(answers[0]) <= LONGEST_ANSWER)
                )
                paragraphs = tuple((t, p) for t, p, _ in values.get("paragraphs", ()))
                row = Row(values.get("title") or "", text, turns, paragraphs)
                if source == "squad1":
                    articles[row.title].append(row)
                elif source in _ROW_KINDS and turns and len(text) < 30_000:
                    library.rows[_ROW_KINDS[source]].append(row)
        library.articles = [rows for rows in articles.values() if len(rows) > 3]
        with lzma.open(folder / "haystack.txt.xz", "rt", encoding="utf-8") as file:
            text = file.read(12_000_000)
        library.haystack = [
            page
            for document in text.split("\x1e")
            for page in _pages(document.strip())
            if len(page) > 400
        ]
        return library


def _pages(text: str) -> Iterator[str]:
    """Pages of about 1,500 characters, cut between lines or words."""
    while text:
        cut = len(text) if len(text) < 1800 else max(text.rfind(" ", 0, 1500), 1)
        yield text[:cut].strip()
        text = text[cut:].strip()


def draw_example(library: Library, seed: int, number: int, tokens: int, most: int) -> Example:
    """Example `number` of a training.

    Args:
        library: the data.
        seed: of the training.
        number: which example.
        tokens: about how many the documents are to have.
        most: conversations.
    """
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    room = int(tokens * CHARACTERS_PER_TOKEN)
    documents: list[tuple[str, list[str]]] = []  # title, pages
    asked: list[Turn] = []
    absent: list[str] = []
    if kind != "squad":
        room -= _add_rows(library, kind, room, rng, documents, asked)
    _add_articles(library, room, rng, documents, asked, absent)
    rng.shuffle(documents)
    if rng.random() < MADE_UP:
        facts = made_up_facts(rng)
        asked += [Turn(question, answer) for question, answer in facts.asked]
        absent += facts.absent
        for sentence in facts.sentences:
            _hide(sentence, rng.choice(documents)[1], rng)
        if facts.page:
            documents.insert(rng.randrange(len(documents) + 1), (facts.title, [facts.page]))
    whole = "\n".join(page for _, pages in documents for page in pages)
    rng.shuffle(asked)
    known = [t for t in asked if t.answer == NOT_ANSWERED or t.answer in whole or kind == "hops"]
    strange = [q for q in absent if q.strip()]
    rng.shuffle(strange)
    unanswered = [Turn(q, NOT_ANSWERED) for q in strange[: round(most * UNANSWERABLE)]]
    turns = known[: most - len(unanswered)] + unanswered
    rng.shuffle(turns)
    made = tuple(
        Document(
            id=f"sha256:{index:064x}",
            title=title or f"document-{index + 1}",
            pages=tuple(Page(n, str(n), text) for n, text in enumerate(pages, 1)),
        )
        for index, (title, pages) in enumerate(documents)
    )
    return Example(made, tuple(_conversations(turns, rng)))


def _conversations(turns: Sequence[Turn], rng: random.Random) -> Iterator[tuple[Turn, ...]]:
    left = list(turns)
    while left:
        length = rng.choice((2, 3)) if rng.random() < FOLLOW_UPS else 1
        yield tuple(left[:length])
        left = left[length:]


def _add_rows(
    library: Library,
    kind: str,
    room: int,
    rng: random.Random,
    documents: list[tuple[str, list[str]]],
    asked: list[Turn],
) -> int:
    """Adds texts of a kind, up to about three quarters of the room; returns what they took."""
    taken = 0
    for _ in range(12):
        row = rng.choice(library.rows[kind])
        size = len(row.text) + sum(len(text) for _, text in row.paragraphs)
        if taken + size > room * 0.75 and (taken or size > room * 1.6):
            continue
        if row.paragraphs:
            documents += [(title, [text]) for title, text in row.paragraphs]
        else:
            documents.append((row.title, list(_pages(row.text))))
        asked += row.turns
        taken += size
        if taken > room * 0.5:
            break
    return taken


def _add_articles(
    library: Library,
    room: int,
    rng: random.Random,
    documents: list[tuple[str, list[str]]],
    asked: list[Turn],
    absent: list[str],
) -> None:
    """Fills the room with articles, and long room with pages that nothing is asked about too."""
    parts = max(1, min(rng.randint(1, 4), room // 700))
    hay = rng.random() * 0.7 if room > 6000 else 0.0
    others: list[Turn] = []
    pages: list[str] = []
    for _ in range(parts):
        article = rng.choice(library.articles)
        share, taken, pages = room * (1 - hay) / parts, 0, []
        start = rng.randrange(len(article))
        rows = article[start:] + article[:start]
        used = 0
        for row in rows:
            if taken and taken + len(row.text) > share:
                break
            if pages and rng.random() < 0.4:
                pages[-1] = f"{pages[-1]}\n\n{row.text}"
            else:
                pages.append(row.text)
            taken += len(row.text)
            used += 1
            asked += row.turns
            absent += library.unanswerable.get(row.text, [])
        others += [turn for row in rows[used : used + 6] for turn in row.turns[:2]]
        documents.append((article[0].title.replace("_", " "), pages))
    while hay and sum(len(p) for _, ps in documents for p in ps) < room:
        start = rng.randrange(len(library.haystack))
        documents.append(("", library.haystack[start : start + rng.randint(1, 4)]))
    whole = "\n".join(page for _, pages in documents for page in pages)
    absent += [turn.question for turn in others if turn.answer not in whole]
    stranger = rng.choice(rng.choice(library.articles))
    absent += [turn.question for turn in stranger.turns[:2] if turn.answer not in whole]


def _hide(sentence: str, pages: list[str], rng: random.Random) -> None:
    """Puts a sentence between two sentences of a page."""
    index = rng.randrange(len(pages))
    text = pages[index]
    borders = [0, *(i + 2 for i in range(len(text) - 2) if text[i : i + 2] == ". "), len(text)]
    place = rng.choice(borders)
    pages[index] = f"{text[:place].rstrip()} {sentence} {text[place:].lstrip()}".strip()
