"""Content that comes again is parsed once."""

from __future__ import annotations

from typing import Any

import pytest

from pacellm_rag.documents import RememberedDocuments, remembered
from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.errors import DocumentLimitError


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    contents: list[bytes] = []
    load = remembered.load_document_bytes

    def counting(data: bytes, name: str, **options: Any) -> Any:
        contents.append(data)
        return load(data, name, **options)

    monkeypatch.setattr(remembered, "load_document_bytes", counting)
    return contents


def test_the_documents_used_last_are_kept(parsed: list[bytes]) -> None:
    documents = RememberedDocuments(2)
    for content in (b"One.", b"Two.", b"One.", b"Three.", b"One.", b"Two."):
        assert documents.open(content, "note.txt").pages[0].text == content.decode()
    assert parsed == [b"One.", b"Two.", b"Three.", b"Two."]


def test_the_same_content_under_another_name_is_another_document(parsed: list[bytes]) -> None:
    documents = RememberedDocuments(2)
    assert [documents.open(b"One.", name).title for name in ("a.txt", "b.txt")] == ["a", "b"]
    assert len(parsed) == 2


def test_what_can_not_be_read_is_tried_again(parsed: list[bytes]) -> None:
    documents = RememberedDocuments(2, DocumentLimits(file_bytes=3))
    for _ in range(2):
        with pytest.raises(DocumentLimitError):
            documents.open(b"Four", "note.txt")
    assert len(parsed) == 2
