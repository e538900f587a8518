"""The text in which needles are hidden, cut to tokens at the borders of sentences.

Built in is the documentation of the Python language that comes with Python itself
(`pydoc_data.topics`): it is on every machine, and its tables, grammars and examples are left out.
Else it is a file or folder of text. Where a text is too short it begins again, and the cut says how
often. Knows no needles and no model but its tokenizer.
"""

from __future__ import annotations

import hashlib
import lzma
import platform
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pacellm_rag.context.sentences import sentence_spans
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import PromptTokenizer

__all__ = ["BUILTIN", "Haystack", "HaystackText"]

BUILTIN = "builtin"

_SEPARATOR = "\x1e"
_SUFFIXES = (".txt", ".txt.xz")
_CHARACTERS = 6  # of a token, about; more are taken where that is too few
_PROSE = re.compile(r"[A-Z].*[.!?:]", re.DOTALL)
_NO_PROSE = re.compile(r"::=|>>>|\.\.\. |[|{}\\]|__{3,}|\[\d+\]|={2,}|-{3,}")
_LETTERS = 0.75  # of what is not a blank
_LEAST_WORDS = 8
_MARKUP = re.compile(r"\*\*?(?=\S)([^*]+?)(?<=\S)\*\*?|[`“”]")


@dataclass(frozen=True)
class HaystackText:
    """A stretch of a haystack.

    Attributes:
        sentences: each with the blank or empty line behind it; together they are the text.
        token_ends: tokens of the text up to the end of each sentence.
        starts: the sentences with which the haystack begins again.
    """

    sentences: tuple[str, ...] = field(repr=False)
    token_ends: tuple[int, ...] = field(repr=False)
    starts: tuple[int, ...] = ()

    def fitting(self, tokens: int) -> int:
        """How many whole sentences have no more than so many tokens."""
        return bisect_right(self.token_ends, tokens)

    def repeats(self, sentences: int) -> int:
        """How often the first so many sentences begin the haystack again."""
        return bisect_left(self.starts, sentences)

    def border(self, sentences: int, depth: float) -> int:
        """The border nearest to a depth in the first so many sentences.

        Args:
            sentences: how many.
            depth: in percent of their tokens.

        Returns:
            The sentence before which it is; `sentences` for the end. Of two equally near, the
            first.
        """
        ends = [0, *self.token_ends[:sentences]]
        target = ends[-1] * depth / 100
        behind = min(bisect_left(ends, target), sentences)
        return min((max(behind - 1, 0), behind), key=lambda i: abs(ends[i] - target))

    def depth_of(self, border: int, sentences: int) -> float:
        """Where a border lies, in percent of the tokens of the first so many sentences."""
        ends = [0, *self.token_ends[:sentences]]
        return 100 * ends[border] / ends[-1] if ends[-1] else 0.0


@dataclass(frozen=True)
class Haystack:
    """A text to hide needles in.

    Attributes:
        path: a file (.txt, .txt.xz), or a folder of such; None for the built-in text. Documents
            within a file may be set apart by the character U+001E.
    """

    path: Path | None = None

    @property
    def name(self) -> str:
        """What it is called; of the built-in text also the version, as it differs with that."""
        if self.path is None:
            return f"{BUILTIN} (pydoc_data.topics of Python {platform.python_version()})"
        return self.path.name

    def digest(self) -> str:
        """SHA-256 of the built-in text or of the files, in hexadecimal digits.

        Raises:
            ConfigurationError: it can not be read.
        """
        digest = hashlib.sha256()
        if self.path is None:
            for text in self._documents():
                digest.update(text.encode("utf-8", "surrogatepass"))
            return digest.hexdigest()
        for path in self._files():
            try:
                with path.open("rb") as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
            except OSError as error:
                raise _unreadable(path, error) from error
        return digest.hexdigest()

    def text(self, tokenizer: PromptTokenizer, tokens: int) -> HaystackText:
        """At least so many tokens of it, from its beginning on.

        Raises:
            ConfigurationError: it can not be read, or holds no sentence.
        """
        characters = _CHARACTERS * tokens
        while True:
            sentences, starts = self._sentences(characters)
            ends = _token_ends(tokenizer, sentences)
            if ends[-1] >= tokens:
                return HaystackText(tuple(sentences), tuple(ends), tuple(starts))
            characters *= 2

    def _sentences(self, characters: int) -> tuple[list[str], list[int]]:
        """Sentences with what is behind them, more than fill so many characters.

        Also the sentences with which the haystack begins again.
        """
        sentences: list[str] = []
        starts: list[int] = []
        length = 0
        while True:
            before = len(sentences)
            for document in self._documents():
                for sentence in _cut(document):
                    sentences.append(sentence)
                    length += len(sentence)
                    if length > characters:
                        return sentences, starts
            if len(sentences) == before:
                raise ConfigurationError(
                    f"The haystack {self.name} holds no sentence. Name a file of running text with "
                    "--haystack."
                )
            starts.append(len(sentences))

    def _documents(self) -> Iterator[str]:
        if self.path is None:
            yield from _builtin()
            return
        for path in self._files():
            try:
                yield from _documents_of(path)
            except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
                raise _unreadable(path, error) from error

    def _files(self) -> list[Path]:
        path = self.path
        if path is None or not path.is_dir():
            return [] if path is None else [path]
        files = sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())
        if not files:
            raise ConfigurationError(
                f"The folder {path} holds no .txt or .txt.xz file; put the haystack there, or name "
                "another with --haystack."
            )
        return files


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The haystack {path} can not be read: {error}. Name a .txt or .txt.xz file, or a folder "
        "of such, with --haystack."
    )


def _documents_of(path: Path) -> Iterator[str]:
    """The documents of a file, read as they are needed: haystacks can be large."""
    with (
        lzma.open(path, "rt", encoding="utf-8")
        if path.suffix == ".xz"
        else path.open(encoding="utf-8")
    ) as file:
        rest = ""
        while piece := file.read(1 << 20):
            *documents, rest = (rest + piece).split(_SEPARATOR)
            yield from documents
        yield rest


def _cut(document: str) -> Iterator[str]:
    """The sentences of a document: one blank behind each, an empty line behind a paragraph."""
    for paragraph in re.split(r"\n[ \t]*\n", document):
        spans = sentence_spans(paragraph)
        for index, (start, end) in enumerate(spans, 1):
            sentence = " ".join(paragraph[start:end].split())
            yield sentence + ("\n\n" if index == len(spans) else " ")


def _token_ends(tokenizer: PromptTokenizer, sentences: list[str]) -> list[int]:
    starts = [start for start, end in tokenizer.encode_text("".join(sentences)).offsets if end]
    ends: list[int] = []
    length = 0
    for sentence in sentences:
        length += len(sentence)
        ends.append(bisect_left(starts, length))
    return ends


def _builtin() -> Iterator[str]:
    """The running text of the topics, in the order of their names, each paragraph once."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigurationError(
            "This Python has no pydoc_data, which is the built-in haystack. Name a text file with "
            "--haystack."
        ) from error
    known: set[str] = set()
    for name in sorted(topics):
        kept = []
        for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
            prose = _prose(paragraph)
            if prose and prose not in known:
                known.add(prose)
                kept.append(prose)
        yield "\n\n".join(kept)


def _prose(paragraph: str) -> str:
    """A paragraph as running text; "" where it is a heading, a table, a grammar or an example."""
    text = " ".join(paragraph.split()).removeprefix("* ")
    text = _MARKUP.sub(r"\1", text)
    words = text.split()
    solid = "".join(words)
    if len(words) < _LEAST_WORDS or not _PROSE.fullmatch(text) or _NO_PROSE.search(text):
        return ""
    letters = sum(character.isalpha() for character in solid)
    return text if letters >= _LETTERS * len(solid) else ""
