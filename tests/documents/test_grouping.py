"""Loose pages become whole documents again."""

from __future__ import annotations

from pacellm_rag.documents import LoosePage, documents_from_pages


def test_pages_come_in_the_order_of_their_numbers_and_documents_as_they_came() -> None:
    pages = [
        LoosePage("b", "two", "Title B", "b.pdf", 2, "ii"),
        LoosePage("a", "only", number=1),
        LoosePage("b", "one", "Title B", "b.pdf", 1, "i"),
    ]
    first, second = documents_from_pages(pages)
    assert (first.title, first.source) == ("Title B", "b.pdf")
    assert [(p.number, p.label, p.text) for p in first.pages] == [(1, "i", "one"), (2, "ii", "two")]
    assert (second.title, second.pages[0].label) == ("a", "1")


def test_pieces_of_one_page_become_one_page() -> None:
    (document,) = documents_from_pages(
        [LoosePage("a", "x", number=3), LoosePage("a", "y", number=3, label="iii")]
    )
    assert [(p.number, p.text) for p in document.pages] == [(3, "x\ny")]


def test_pages_without_numbers_are_numbered_as_they_come() -> None:
    (document,) = documents_from_pages([LoosePage("a", "x", number=7), LoosePage("a", "y")])
    assert [p.number for p in document.pages] == [1, 2]


def test_the_id_is_the_files_hash_where_it_is_known_and_the_contents_otherwise() -> None:
    key = "sha256:" + "0" * 64
    (known,) = documents_from_pages([LoosePage(key, "x")])
    one, two = (documents_from_pages([LoosePage(name, "x")])[0] for name in ("a", "b"))
    (other,) = documents_from_pages([LoosePage("a", "y")])
    assert known.id == key
    assert one.id == two.id != other.id
    assert documents_from_pages([]) == ()
