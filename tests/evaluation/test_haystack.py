from __future__ import annotations

import lzma
import re
import sys
from pathlib import Path

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation import haystack as module
from pacellm_rag.evaluation.haystack import Haystack, HaystackText
from pacellm_rag.testing import WordTokenizer

TOKENIZER = WordTokenizer()


def text_of(text: HaystackText) -> str:
    return "".join(text.sentences)


def test_the_built_in_text_is_prose_and_the_same_every_time() -> None:
    text = Haystack().text(TOKENIZER, 20_000)
    assert text == Haystack().text(TOKENIZER, 20_000)
    paragraphs = text_of(text).strip().split("\n\n")
    assert all(re.match(r"[A-Z]", paragraph) for paragraph in paragraphs[:-1])
    assert not re.search(r">>>|::=|^[ \t]", text_of(text), re.MULTILINE)
    assert len(set(paragraphs)) == len(paragraphs)
    letters = sum(c.isalpha() or c.isspace() for c in text_of(text)) / len(text_of(text))
    assert letters > 0.9
    assert text.repeats(len(text.sentences)) == 0


def test_the_built_in_text_names_its_python() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert version in Haystack().name
    assert len(Haystack().digest()) == 64


def test_headings_tables_grammars_and_examples_are_no_prose() -> None:
    prose = module._prose
    assert prose("Assignment\n**********") == ""
    assert (
        prose('assignment_stmt ::= (target_list "=")+ (starred_expression | yield_expression) .')
        == ""
    )
    assert prose(">>> for the sake of it this one says what is here:\n... it is.") == ""
    assert prose("Too few words here.") == ""
    assert prose("This one has words enough, but it never comes to any end") == ""
    assert prose("* It is *here* that the list item, with\n  `marks`, becomes **plain** text.") == (
        "It is here that the list item, with marks, becomes plain text."
    )


def test_the_text_is_cut_to_at_least_the_tokens_and_knows_them_by_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One two three. Four five.\n\nSix seven eight nine.\x1eTen. Eleven twelve.")
    text = Haystack(path).text(TOKENIZER, 15)
    assert text.sentences[:4] == ("One two three. ", "Four five.\n\n", "Six seven eight nine.\n\n",
                                  "Ten. ")  # fmt: skip
    for count, end in enumerate(text.token_ends, 1):
        assert end == TOKENIZER.count_tokens("".join(text.sentences[:count]))
    assert text.token_ends[-1] >= 15
    assert text.fitting(6) == 0
    assert text.fitting(7) == text.fitting(11) == 1
    assert text.fitting(12) == 2


def test_a_text_that_is_too_short_begins_again_and_says_how_often(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One two. Three four.")
    text = Haystack(path).text(TOKENIZER, 200)
    assert text_of(text).startswith("One two. Three four.\n\nOne two. Three four.\n\nOne")
    assert [text.repeats(count) for count in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]


def test_files_may_be_compressed_and_folders_are_read_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_text("Second one here.")
    with lzma.open(tmp_path / "a.txt.xz", "wt") as file:
        file.write("First one here.")
    (tmp_path / "c.md").write_text("Not this.")
    text = Haystack(tmp_path).text(TOKENIZER, 10)
    assert text.sentences[:3] == ("First one here.\n\n", "Second one here.\n\n",
                                  "First one here.\n\n")  # fmt: skip
    before = Haystack(tmp_path).digest()
    (tmp_path / "b.txt").write_text("Another one here.")
    assert Haystack(tmp_path).digest() != before


def test_documents_are_told_apart_however_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a" * ((1 << 20) - 1) + "\x1e" + "B is here.\x1eC is here.")
    assert list(module._documents_of(path))[1:] == ["B is here.", "C is here."]


def test_what_can_not_be_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\x1e\n ")
    (tmp_path / "latin.txt").write_bytes(b"Caf\xe9 is here.")
    (tmp_path / "broken.txt.xz").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    for name in ("blank.txt", "latin.txt", "broken.txt.xz", "empty", "missing.txt"):
        with pytest.raises(ConfigurationError, match="--haystack"):
            Haystack(tmp_path / name).text(TOKENIZER, 10)
    for name in ("empty", "missing.txt"):
        with pytest.raises(ConfigurationError, match="--haystack"):
            Haystack(tmp_path / name).digest()


def test_a_python_without_its_topics_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigurationError, match="--haystack"):
        Haystack().text(TOKENIZER, 10)


def test_a_depth_is_the_nearest_border_of_sentences() -> None:
    text = HaystackText(("a ", "b ", "c ", "d "), (10, 20, 60, 100))
    depths = [0, 4, 5, 6, 15, 16, 40, 41, 79, 81, 100]
    assert [text.border(4, depth) for depth in depths] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [text.border(2, depth) for depth in (0, 49, 100)] == [0, 1, 2]
    assert [text.depth_of(border, 4) for border in range(5)] == [0, 10, 20, 60, 100]
    assert text.border(0, 50) == 0
    assert text.depth_of(0, 0) == 0
