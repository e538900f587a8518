"""LangChain's loader and blob parser: pages, metadata, warnings, laziness, async."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, Blob
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_pacellm import PaceBlobParser, PacePDFLoader
from pacellm_rag import load_document
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ConfigurationError, DocumentError, EncryptedDocumentError


def test_they_are_what_langchain_expects() -> None:
    assert issubclass(PacePDFLoader, BaseLoader)
    assert issubclass(PaceBlobParser, BaseBlobParser)


@pytest.mark.parametrize("name", ["annual-report", "equipment-manual", "supplier-contract"])
def test_every_page_of_a_sample_comes_with_its_place(documents: Path, name: str) -> None:
    path = documents / f"{name}.pdf"
    expected = load_document(path)
    pages = PacePDFLoader(path).load()
    assert [page.page_content for page in pages] == [page.text for page in expected.pages]
    assert [page.metadata for page in pages] == [
        {
            "source": str(path),
            "title": expected.title,
            "page": page.number - 1,
            "page_number": page.number,
            "page_label": page.label,
            "total_pages": len(expected.pages),
            "document_id": expected.id,
        }
        for page in expected.pages
    ]


def test_labels_are_those_printed_on_the_pages(documents: Path) -> None:
    pages = PacePDFLoader(str(documents / "annual-report.pdf")).load()
    assert [p.metadata["page_label"] for p in pages] == ["i", "ii", "1", "2", "3", "4"]
    assert [p.metadata["page"] for p in pages] == [0, 1, 2, 3, 4, 5]


def test_loading_again_gives_the_same_ids_wherever_the_file_lies(
    documents: Path, tmp_path: Path
) -> None:
    path = documents / "supplier-contract.pdf"
    copy = tmp_path / "copy.pdf"
    copy.write_bytes(path.read_bytes())
    ids = [page.id for page in PacePDFLoader([path, copy]).load()]
    assert ids[:4] == ids[4:]
    assert len(set(ids)) == 4


def test_a_vector_store_that_is_filled_twice_holds_each_page_once(documents: Path) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    for _ in range(2):
        store.add_documents(PacePDFLoader(documents / "supplier-contract.pdf").load())
    assert len(store.store) == 4


def test_a_warning_stands_on_its_page_and_in_the_log(
    half_scanned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="langchain_pacellm"):
        with_text, without = PacePDFLoader(half_scanned).load()
    assert "document_warnings" not in with_text.metadata
    assert without.page_content == ""
    assert without.metadata["document_warnings"].startswith("Page 2 without text")
    (record,) = caplog.records
    assert record.name == "langchain_pacellm.document_loaders"
    assert "half scanned.pdf': Page 2 without text" in record.getMessage()


def test_a_warning_about_the_whole_file_stands_on_every_page(doubtful_text: Path) -> None:
    pages = PacePDFLoader(doubtful_text).load()
    assert [page.page_content for page in pages] == ["Größe: 12 m", "Änderungen vorbehalten."]
    for page in pages:
        assert "not valid UTF-8" in page.metadata["document_warnings"]


def test_limits_are_kept_and_what_they_cost_is_said(documents: Path) -> None:
    limits = DocumentLimits(pages=1)
    (page,) = PacePDFLoader(documents / "annual-report.pdf", limits=limits).load()
    assert page.metadata["total_pages"] == 1
    assert "claims 6 pages" in page.metadata["document_warnings"]
    blob = Blob.from_path(documents / "annual-report.pdf")
    assert PaceBlobParser(limits=limits).parse(blob) == [page]


def test_nothing_is_read_before_the_first_page_is_asked_for(
    documents: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.pdf"
    pages = PacePDFLoader([documents / "supplier-contract.pdf", missing]).lazy_load()
    missing_first = PacePDFLoader(missing).lazy_load()
    missing_blob = PaceBlobParser().lazy_parse(Blob.from_path(missing))
    assert [next(pages).metadata["page_number"] for _ in range(4)] == [1, 2, 3, 4]
    for iterator in (pages, missing_first, missing_blob):
        with pytest.raises(DocumentError, match="no file"):
            next(iterator)


def test_no_files_at_all_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no files to load"):
        PacePDFLoader(tmp_path.glob("*.pdf"))


def test_files_named_by_a_generator_can_be_loaded_twice(documents: Path) -> None:
    loader = PacePDFLoader(documents.glob("*.pdf"))
    assert len(loader.load()) == len(loader.load()) == 15


def test_a_password_opens_the_file_and_its_absence_is_told(locked: Path) -> None:
    with pytest.raises(EncryptedDocumentError):
        PacePDFLoader(locked).load()
    (page,) = PacePDFLoader(locked, password="open sesame").load()
    assert page.page_content == "A secret page."
    assert PaceBlobParser(password="open sesame").parse(Blob.from_path(locked)) == [page]


def test_async_loading_equals_loading(documents: Path) -> None:
    loader = PacePDFLoader(documents / "equipment-manual.pdf")
    assert asyncio.run(loader.aload()) == loader.load()


def test_a_blob_of_a_path_gives_what_the_loader_gives(documents: Path) -> None:
    path = documents / "annual-report.pdf"
    blob = Blob.from_path(path, metadata={"department": "water"})
    pages = PaceBlobParser().parse(blob)
    loaded = PacePDFLoader(path).load()
    assert [page.page_content for page in pages] == [page.page_content for page in loaded]
    for page, other in zip(pages, loaded, strict=True):
        assert page.metadata == {"department": "water", **other.metadata}


def test_a_blob_in_memory_keeps_its_source_and_its_identity(documents: Path) -> None:
    path = documents / "supplier-contract.pdf"
    source = {"source": "https://example.com/contract?download=1"}
    pages = PaceBlobParser().parse(Blob.from_data(path.read_bytes(), metadata=source))
    loaded = PacePDFLoader(path).load()
    assert [page.id for page in pages] == [page.id for page in loaded]
    for page, other in zip(pages, loaded, strict=True):
        assert page.metadata == {**other.metadata, **source}


@pytest.mark.parametrize(
    ("text", "mime_type", "content"),
    [
        ("<html><meta charset='iso-8859-1'><p>Größe", "text/html", "Größe"),
        ("# Größe\n\n12 m", "text/markdown", "# Größe\n\n12 m"),
        ("Größe", None, "Größe"),
    ],
)
def test_text_that_was_decoded_before_is_taken_as_it_is(
    text: str, mime_type: str | None, content: str
) -> None:
    (page,) = PaceBlobParser().parse(Blob.from_data(text, mime_type=mime_type))
    assert page.page_content == content
    assert "document_warnings" not in page.metadata
