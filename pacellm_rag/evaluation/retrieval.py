"""Reading less than the whole: the usual ways, to measure reading everything against.

`bm25:4` gives the model the four chunks of about 200 words that share most with the question, as a
retriever does. `window:1024` gives it the last 1,024 tokens of the documents, as a tool does that
cuts a prompt from its front to fit a small window. Both lay out what is left exactly as a whole
reading, with titles, page numbers and markers. Knows documents and a tokenizer, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pacellm_rag.context.lexical import BM25, words_of
from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.sentences import sentence_spans
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.types import WHOLE
from pacellm_rag.protocols import PromptTokenizer

__all__ = ["ChunkIndex", "Part", "Reading", "last_tokens", "parse_reading", "whole"]

BM25_CHUNKS, WINDOW = "bm25", "window"
_CHUNK_WORDS = 200


@dataclass(frozen=True)
class Reading:
    """A way of giving documents to a model.

    Attributes:
        name: as people write it: "whole", "bm25:4", "window:1024".
        kind: what stands before the colon.
        amount: chunks or tokens; 0 for the whole.
    """

    name: str
    kind: str
    amount: int = 0


@dataclass(frozen=True)
class Part:
    """What a model is given of some documents.

    Attributes:
        documents: the documents as they are given: pages keep their numbers.
        origins: for each its index among all the documents.
        tokens_left_out: tokens cut off to fit; 0 where nothing was, or was chosen instead.
    """

    documents: tuple[Document, ...]
    origins: tuple[int, ...]
    tokens_left_out: int = 0


def parse_reading(name: str) -> Reading:
    """A way of reading by its name.

    Raises:
        ConfigurationError: there is none of this name.
    """
    kind, colon, amount = name.strip().partition(":")
    if kind == WHOLE and not colon:
        return Reading(WHOLE, WHOLE)
    if kind in (BM25_CHUNKS, WINDOW) and amount.isascii() and amount.isdigit() and int(amount):
        return Reading(f"{kind}:{int(amount)}", kind, int(amount))
    raise ConfigurationError(
        f"There is no way of reading {name!r}. Known are: {WHOLE}, bm25:N (the N best chunks, such "
        "as bm25:4) and window:N (the last N tokens, such as window:1024)."
    )


def whole(documents: Sequence[Document]) -> Part:
    """Everything."""
    return Part(tuple(documents), tuple(range(len(documents))))


@dataclass(frozen=True)
class _Chunk:
    """[start, end) characters of a page, by the indices of document and page."""

    document: int
    page: int
    start: int
    end: int


class ChunkIndex:
    """Documents cut into chunks of sentences, none across two pages, to be searched by BM25.

    The title of its document is searched with each chunk, since pages often do not name what they
    are about.
    """

    def __init__(self, documents: Sequence[Document], *, words: int = _CHUNK_WORDS) -> None:
        self._documents = tuple(documents)
        self._chunks = [
            _Chunk(d, p, start, end)
            for d, document in enumerate(documents)
            for p, page in enumerate(document.pages)
            for start, end in _chunks_of(page.text, words)
        ]
        self._bm25 = BM25([f"{documents[c.document].title} {self._text(c)}" for c in self._chunks])

    def best(self, question: str, count: int) -> Part:
        """The `count` chunks with the best scores, in the order in which they are written.

        Of equals the earlier goes first. Chunks that stand apart on their page are set apart by an
        empty line.
        """
        if not self._chunks:
            return whole(self._documents)
        scores = self._bm25.scores(words_of(question))
        ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        chosen = [self._chunks[i] for i in sorted(ranked[:count])]
        texts: dict[tuple[int, int], str] = {}
        last: _Chunk | None = None
        for chunk in chosen:
            place = (chunk.document, chunk.page)
            if last is not None and place == (last.document, last.page):
                page = self._documents[chunk.document].pages[chunk.page].text
                between = page[last.end : chunk.start]
                texts[place] += (between if not between.strip() else "\n\n") + self._text(chunk)
            else:
                texts[place] = self._text(chunk)
            last = chunk
        return _part(self._documents, texts)

    def _text(self, chunk: _Chunk) -> str:
        return self._documents[chunk.document].pages[chunk.page].text[chunk.start : chunk.end]


def _chunks_of(text: str, words: int) -> list[tuple[int, int]]:
    """[start, end) of stretches of sentences with `words` words or a few more.

    A rest of less than half of that goes to the stretch before it.
    """
    stretches: list[tuple[int, int]] = []
    open_: list[tuple[int, int]] = []
    count = 0
    for begin, end in sentence_spans(text):
        open_.append((begin, end))
        count += len(text[begin:end].split())
        if count >= words:
            stretches.append((open_[0][0], end))
            open_, count = [], 0
    if open_:
        joins = bool(stretches) and 2 * count < words
        start = stretches.pop()[0] if joins else open_[0][0]
        stretches.append((start, open_[-1][1]))
    return stretches


def last_tokens(documents: Sequence[Document], tokenizer: PromptTokenizer, tokens: int) -> Part:
    """The last tokens of the documents, as they are laid out; the beginning is cut off.

    Counted are headings and page markers too. The page in which the cut lies keeps its marker, and
    its document its title, which adds a few tokens.
    """
    packed = pack_context(documents)
    text = packed.text.rstrip()
    offsets = tokenizer.encode_text(text).offsets
    if len(offsets) <= tokens:
        return whole(documents)
    cut = next((start for start, end in offsets[-tokens:] if end > start), len(text))
    texts = {
        (s.document, s.page): packed.text[max(s.start, cut) : s.end]
        for s in packed.segments
        if s.end > cut
    }
    if not texts:  # the cut lies behind the text of the last page, which has none
        texts = {(packed.segments[-1].document, packed.segments[-1].page): ""}
    return replace(_part(packed.documents, texts), tokens_left_out=len(offsets) - tokens)


def _part(documents: Sequence[Document], texts: dict[tuple[int, int], str]) -> Part:
    """The documents with only these pages, each with this text."""
    kept: list[Document] = []
    origins: list[int] = []
    for index, document in enumerate(documents):
        pages = tuple(
            Page(page.number, page.label, texts[index, number])
            for number, page in enumerate(document.pages)
            if (index, number) in texts
        )
        if pages:
            kept.append(replace(document, pages=pages))
            origins.append(index)
    return Part(tuple(kept), tuple(origins))
