"""Hostile PDF files: bounded time, bounded memory here, an error or a warning that says why."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import pdf_factory
import pytest
from document_checks import TIGHT_LIMITS, read_or_refuse

from pacellm_rag.documents import load_document_bytes

BOMBS: dict[str, Callable[[], bytes]] = {
    "a gigabyte of blanks": pdf_factory.flate_bomb,
    "a gigabyte packed twice": pdf_factory.double_flate_bomb,
    "a string of 40 MB": pdf_factory.long_string_bomb,
    "a million forms": pdf_factory.form_bomb,
    "a page 50,000 times": pdf_factory.same_page_bomb,
    "a tree that is its own branch": pdf_factory.tree_loop,
    "a tree 3,000 deep": pdf_factory.deep_tree,
    "arrays 100,000 deep": pdf_factory.nested_arrays,
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_costs_bounded_time_and_memory(make: Callable[[], bytes]) -> None:
    data = make()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    document = read_or_refuse(data, "bomb.pdf")
    if document:
        assert len(document.pages) <= TIGHT_LIMITS.pages
        assert sum(len(page.text) for page in document.pages) <= TIGHT_LIMITS.characters
    assert time.monotonic() - start < TIGHT_LIMITS.wall_seconds + 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB


def test_the_good_pages_around_a_bomb_are_read() -> None:
    good = pdf_factory.stream(pdf_factory.HELLO)
    data = pdf_factory.document([good, pdf_factory.flate_content(), good])
    document = load_document_bytes(data, "mixed.pdf", limits=TIGHT_LIMITS)
    assert [page.text for page in document.pages] == ["Hello page", "", "Hello page"]
    assert [(w.kind, w.pages) for w in document.warnings] == [("failed_pages", (2,))]


def test_a_page_tree_cut_at_the_page_limit_says_how_much_there_was() -> None:
    data = pdf_factory.same_page_bomb()
    document = load_document_bytes(data, "many.pdf", limits=TIGHT_LIMITS)
    assert len(document.pages) == 50
    assert "50,000 pages" in document.warnings[0].message
