"""Plain text and Markdown: encodings, pages, titles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacellm_rag.documents import DocumentLimits, load_document_bytes, text_document
from pacellm_rag.documents.cleaning import clean_text
from pacellm_rag.documents.text import PAGE_CHARACTERS, split_long_text, text_to_pages
from pacellm_rag.errors import DocumentError


def visible(text: str) -> str:
    return "".join(text.split())


@settings(deadline=None)
@given(
    st.text(st.sampled_from("aé.!?。 \n\u0301"), max_size=400).map(clean_text),
    st.integers(min_value=1, max_value=50),
)
def test_splitting_keeps_every_visible_character_in_order(text: str, size: int) -> None:
    pages = split_long_text(text, size)
    assert visible("".join(pages)) == visible(text)
    assert all(len(page) <= size + size // 4 + 1 for page in pages)
    assert pages == [""] or all(pages)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=30), min_size=1, max_size=6))
def test_form_feeds_separate_pages_and_empty_pages_keep_their_number(sheets: list[str]) -> None:
    pages = text_to_pages("\f".join([*sheets, "end"]))
    assert pages == [*(clean_text(sheet) for sheet in sheets), "end"]


def test_a_page_ends_between_paragraphs_where_it_can() -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 150 for n in range(20)]
    pages = split_long_text(clean_text("\n\n".join(paragraphs)))
    assert all(page.startswith("Paragraph") for page in pages)
    assert all(len(page) > PAGE_CHARACTERS // 2 for page in pages[:-1])


def test_a_page_ends_between_sentences_where_there_are_no_lines() -> None:
    pages = split_long_text("This is a sentence of some words. " * 400)
    assert all(page.startswith("This") and page.endswith(".") for page in pages)


def test_a_chinese_text_is_cut_between_sentences() -> None:
    pages = split_long_text("这是一个句子。" * 2_000)
    assert all(page.startswith("这") and page.endswith("。") for page in pages)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_encodings_are_read_without_a_warning(encoding: str) -> None:
    document = load_document_bytes("Füße: 5 €".encode(encoding), "a.txt")
    assert document.pages[0].text == "Füße: 5 €"
    assert document.warnings == ()


def test_another_encoding_is_guessed_and_said() -> None:
    document = load_document_bytes("Füße: 5 €".encode("cp1252"), "a.txt")
    assert document.pages[0].text == "Füße: 5 €"
    assert [w.kind for w in document.warnings] == ["encoding"]


def test_a_markdown_file_is_called_by_its_first_heading() -> None:
    document = load_document_bytes(b"intro\n\n# The *plan* #\n\ntext\n", "notes.md")
    assert document.title == "The *plan*"
    assert document.media_type == "text/markdown"


def test_a_text_file_is_called_by_its_name() -> None:
    assert load_document_bytes(b"# not a title", "C:\\temp\\my notes.txt").title == "my notes"


def test_pages_are_numbered_and_labelled_from_one() -> None:
    document = text_document("a\fb\fc", "Letters")
    assert [(p.number, p.label, p.text) for p in document.pages] == [
        (1, "1", "a"),
        (2, "2", "b"),
        (3, "3", "c"),
    ]
    assert document.title == "Letters"


def test_a_text_has_the_id_of_a_file_with_the_same_content() -> None:
    assert text_document("same").id == load_document_bytes(b"same", "a.txt").id


def test_a_text_beyond_the_character_limit_is_cut_and_said() -> None:
    document = text_document("word " * 100, limits=DocumentLimits(characters=50))
    assert len(document.pages[0].text) <= 50
    assert "500" in document.warnings[0].message
    assert document.warnings[0].kind == "truncated"


def test_a_blank_text_is_refused() -> None:
    with pytest.raises(DocumentError, match="blank"):
        text_document(" \n\t")


def test_a_blank_page_is_named() -> None:
    document = text_document("a\f\fc")
    assert document.pages_without_text == (2,)
    assert [(w.kind, w.pages) for w in document.warnings] == [("no_text", (2,))]
