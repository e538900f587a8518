"""Which pages an answer rests on, and the sentence there that bears it out.

Three signs are put together for every statement of the answer:

* the page markers that the model wrote itself, unknown ones dropped;
* attribution by reading: the attention of the model's retrieval heads, while it wrote the
  statement, summed over the sentences of each page;
* the words that question, statement and page share (BM25).

The page with the most evidence is cited with its best sentence, and the quotation is looked up on
the page before it is called verified. How the signs were weighed: docs/results/citations.md.
Knows nothing of models or tensors.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pacellm_rag.context.lexical import BM25, words_of
from pacellm_rag.context.markers import markers_in, without_markers
from pacellm_rag.context.matching import find_quote, reduce_text
from pacellm_rag.context.packing import PackedContext, Segment
from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.context.sentences import sentence_spans

__all__ = ["Citation", "CitationResolver", "Evidence", "Resolved", "Weights"]

Source = Literal["model", "attention", "words"]

_QUOTED = re.compile(r"[\"“]([^\"“”]{16,400})[\"”]")
_MOST_CITATIONS = 4
_ALSO = 0.75  # a further page is cited when it has this share of the best page's evidence


@dataclass(frozen=True)
class Citation:
    """A page that an answer rests on.

    Attributes:
        document: index of the document in the reader, from 0.
        title: its title.
        page: physical page number, from 1.
        label: the number printed on the page.
        quote: the sentence of the page that best bears the answer out, or words that the answer
            itself puts in quotation marks.
        verified: whether the quote stands on that page.
        score: share of the evidence that points to this page, 0 to 1.
        source: what pointed to the page first: the "model" by its marker, its "attention", or
            the "words" shared.
    """

    document: int
    title: str
    page: int
    label: str
    quote: str
    verified: bool
    score: float
    source: Source


@dataclass(frozen=True)
class Evidence:
    """What the model tells of how an answer came about.

    Attributes:
        token_ends: for each generated token, the characters of the answer known after it.
        attention: for each generated token and each of `CitationResolver.sentence_spans`, the
            attention on it; None where the model can not tell.
    """

    token_ends: Sequence[int] = ()
    attention: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Weights:
    """How much each sign counts; each is a share over all pages before it is weighed.

    Attributes:
        attention: of the retrieval heads on the page while the statement was written.
        question: words that the page shares with the question; divided by the number of
            statements in the answer, since a long answer goes beyond its question.
        statement: words that the page shares with the statement.
        sentence: words that the page's best sentence shares with question and statement.
        marker: the model named the page itself.
    """

    attention: float = 0.5
    question: float = 1.0
    statement: float = 0.5
    sentence: float = 0.5
    marker: float = 1.0


@dataclass(frozen=True)
class Resolved:
    """An answer without its markers, and its citations."""

    text: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True)
class _Sentence:
    page: int  # index into the packed context's segments
    start: int
    end: int


class CitationResolver:
    """Finds the sources of answers over one set of packed documents."""

    def __init__(self, packed: PackedContext, weights: Weights | None = None) -> None:
        self._packed = packed
        self._weights = weights or Weights()
        self._sentences = [
            _Sentence(index, segment.start + start, segment.start + end)
            for index, segment in enumerate(packed.segments)
            for start, end in sentence_spans(packed.text[segment.start : segment.end])
        ]
        self._page_words = BM25([packed.text[s.start : s.end] for s in packed.segments])
        self._sentence_words = BM25([packed.text[s.start : s.end] for s in self._sentences])

    @property
    def sentence_spans(self) -> list[tuple[int, int]]:
        """[start, end) characters of the packed text, for every sentence of every page."""
        return [(sentence.start, sentence.end) for sentence in self._sentences]

    def resolve(
        self, question: str, answer: str, evidence: Evidence, *, cite: bool = True
    ) -> Resolved:
        """Takes the markers out of an answer and finds the pages that it rests on.

        Args:
            question: what was asked.
            answer: the model's words, markers included.
            evidence: what the model tells about them.
            cite: False leaves the citations out.
        """
        text = without_markers(answer)
        if not cite or not reduce_text(text)[0] or _declines(text):
            return Resolved(text, ())
        found: dict[int, Citation] = {}
        statements = _statements(answer)
        for start, end in statements:
            attention = self._sentence_attention(start, end, evidence)
            for page, citation in self._cite_statement(
                question, answer[start:end], attention, len(statements)
            ):
                known = found.get(page)
                if known is None or citation.score > known.score:
                    found[page] = citation
        ordered = list(found.values())[:_MOST_CITATIONS]
        return Resolved(text, tuple(self._with_quotations(text, ordered)))

    def _cite_statement(
        self, question: str, statement: str, attention: Sequence[float], statements: int
    ) -> list[tuple[int, Citation]]:
        named = self._named_pages(statement)
        asked, said = words_of(question), words_of(without_markers(statement))
        read = _shares(self._by_page(attention))
        by_sentence = self._sentence_words.scores([*asked, *said])
        weights = self._weights
        signs = [
            (weights.attention, read),
            (weights.question / statements, _shares(self._page_words.scores(asked))),
            (weights.statement, _shares(self._page_words.scores(said))),
            (weights.sentence, _shares(self._by_page(by_sentence, max))),
            (weights.marker, _shares([float(page in named) for page in range(len(read))])),
        ]
        total = sum(weight for weight, shares in signs if any(shares))
        if not total:
            return []
        scores = [
            sum(weight * shares[page] for weight, shares in signs) / total
            for page in range(len(read))
        ]
        best = max(scores)
        pages = [page for page, score in enumerate(scores) if score >= _ALSO * best]
        query = [*asked, *said, *said]
        return [
            (page, self._citation(page, scores[page], named, read, attention, query))
            for page in sorted(pages, key=lambda page: -scores[page])
        ]

    def _citation(
        self,
        page: int,
        score: float,
        named: Sequence[int],
        read: Sequence[float],
        attention: Sequence[float],
        query: Sequence[str],
    ) -> Citation:
        source: Source = "words"
        if page in named:
            source = "model"
        elif read[page] >= max(read) > 0:
            source = "attention"
        segment = self._packed.segments[page]
        return self._build(segment, self._best_sentence(page, attention, query), score, source)

    def _build(self, segment: Segment, quote: str, score: float, source: Source) -> Citation:
        page = self._packed.page(segment)
        return Citation(
            document=segment.document,
            title=self._packed.documents[segment.document].title,
            page=page.number,
            label=page.label,
            quote=quote,
            verified=find_quote(quote, page.text) is not None,
            score=round(score, 4),
            source=source,
        )

    def _best_sentence(self, page: int, attention: Sequence[float], query: Sequence[str]) -> str:
        own = [i for i, sentence in enumerate(self._sentences) if sentence.page == page]
        if not own:
            return ""
        words = self._sentence_words.scores(query)
        read, shared = _shares([attention[i] for i in own]), _shares([words[i] for i in own])
        weights = self._weights
        best = max(
            range(len(own)),
            key=lambda i: weights.attention * read[i] + weights.sentence * shared[i],
        )
        sentence = self._sentences[own[best]]
        return " ".join(self._packed.text[sentence.start : sentence.end].split())

    def _sentence_attention(self, start: int, end: int, evidence: Evidence) -> list[float]:
        """Attention on each sentence while characters [start, end) of the answer were written."""
        total = [0.0] * len(self._sentences)
        if evidence.attention is None:
            return total
        before = 0
        for after, row in zip(evidence.token_ends, evidence.attention, strict=False):
            if after > start and before < end:
                for index, value in enumerate(row):
                    total[index] += value
            before = after
        return total

    def _by_page(
        self, per_sentence: Sequence[float], join: Callable[[float, float], float] = operator.add
    ) -> list[float]:
        joined = [0.0] * len(self._packed.segments)
        for sentence, value in zip(self._sentences, per_sentence, strict=True):
            joined[sentence.page] = join(joined[sentence.page], value)
        return joined

    def _named_pages(self, statement: str) -> list[int]:
        pages = []
        for document, page in markers_in(statement):
            segment = self._packed.find_marker(document, page)
            if segment is not None:
                pages.append(self._packed.segments.index(segment))
        return list(dict.fromkeys(pages))

    def _with_quotations(self, text: str, citations: list[Citation]) -> list[Citation]:
        """Checks what the answer puts in quotation marks against the pages."""
        result = citations
        for match in _QUOTED.finditer(text):
            quote = match.group(1).strip()
            if len(reduce_text(quote)[0]) < 12:
                continue
            result = self._check_quotation(quote, result)
        return result

    def _check_quotation(self, quote: str, citations: list[Citation]) -> list[Citation]:
        cited = {(citation.document, citation.page) for citation in citations}
        places = [
            segment
            for segment in self._packed.segments
            if find_quote(quote, self._packed.page(segment).text) is not None
        ]
        places.sort(key=lambda s: (s.document, self._packed.page(s).number) not in cited)
        if not places:
            if not citations:
                return citations
            first = citations[0]
            segment = next(
                s
                for s in self._packed.segments
                if (s.document, self._packed.page(s).number) == (first.document, first.page)
            )
            return [*citations, self._build(segment, quote, 0.0, first.source)]
        new = self._build(places[0], quote, 0.0, "words")
        for index, citation in enumerate(citations):
            if (citation.document, citation.page) == (new.document, new.page):
                kept = self._build(places[0], quote, citation.score, citation.source)
                return [*citations[:index], kept, *citations[index + 1 :]]
        return [*citations, new]


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values] if total > 0 else [0.0] * len(values)


def _declines(text: str) -> bool:
    return reduce_text(text)[0].startswith(reduce_text(NOT_ANSWERED)[0])


def _statements(answer: str) -> list[tuple[int, int]]:
    """The answer's sentences; a marker behind a full stop belongs to the sentence before it."""
    spans: list[tuple[int, int]] = []
    for start, end in sentence_spans(answer):
        bare = without_markers(answer[start:end])
        if spans and not words_of(bare):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
