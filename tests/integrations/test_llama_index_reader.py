"""LlamaIndex' reader and page nodes: metadata, what models see, folders, whole-document queries."""

from __future__ import annotations

import asyncio
import logging
import pickle
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from llama_index.core import SimpleDirectoryReader, SummaryIndex
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document, MetadataMode
from pydantic import PrivateAttr

from llama_index.llms.pacellm import PaceReader, page_nodes
from pacellm_rag import load_document
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import DocumentError, DocumentLimitError, EncryptedDocumentError


class RecordingLLM(CustomLLM):
    """Keeps its prompts, and has a window in which all samples fit."""

    _prompts: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=200_000, num_output=100)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self._prompts.append(prompt)
        return CompletionResponse(text="An answer.")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def read_folder(folder: Path, **options: Any) -> list[Document]:
    return SimpleDirectoryReader(
        folder, file_extractor={".pdf": PaceReader()}, raise_on_error=True, **options
    ).load_data()


@pytest.fixture
def folder(documents: Path, tmp_path: Path) -> Path:
    """A folder that holds the samples and nothing else."""
    for path in documents.glob("*.pdf"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["annual-report", "equipment-manual", "supplier-contract"])
def test_every_page_of_a_sample_comes_with_its_place(documents: Path, name: str) -> None:
    assert issubclass(PaceReader, BaseReader)
    path = documents / f"{name}.pdf"
    expected = load_document(path)
    pages = PaceReader().load_data(path)
    assert [page.text for page in pages] == [page.text for page in expected.pages]
    assert [page.metadata for page in pages] == [
        {
            "file_name": path.name,
            "file_path": str(path),
            "title": expected.title,
            "page_label": page.label,
            "page_number": page.number,
            "total_pages": len(expected.pages),
            "document_id": expected.id,
        }
        for page in expected.pages
    ]


def test_models_see_title_and_printed_page_number(documents: Path) -> None:
    page = PaceReader().load_data(documents / "annual-report.pdf")[1]
    head = "title: Annual Report 2024"
    assert page.get_metadata_str(MetadataMode.LLM) == f"{head}\npage_label: ii"
    assert page.get_metadata_str(MetadataMode.EMBED) == head


def test_loading_again_gives_the_same_ids_and_hashes(documents: Path) -> None:
    path = documents / "supplier-contract.pdf"
    first, second = PaceReader().load_data(path), PaceReader().load_data(str(path))
    assert [page.id_ for page in first] == [page.id_ for page in second]
    assert [page.hash for page in first] == [page.hash for page in second]
    assert len({uuid.UUID(page.id_) for page in first}) == 4


def test_further_metadata_is_added_and_goes_first(documents: Path) -> None:
    more = {"department": "water", "title": "Contract of the pumps"}
    pages = PaceReader().load_data(documents / "supplier-contract.pdf", extra_info=more)
    for page in pages:
        assert {key: page.metadata[key] for key in more} == more
        assert "department: water" in page.get_metadata_str(MetadataMode.LLM)


def test_a_warning_stands_on_its_page_and_in_the_log(
    half_scanned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="llama_index.llms.pacellm"):
        with_text, without = PaceReader().load_data(half_scanned)
    assert "document_warnings" not in with_text.metadata
    assert without.text == ""
    assert without.metadata["document_warnings"].startswith("Page 2 without text")
    assert "document_warnings" not in without.get_metadata_str(MetadataMode.LLM)
    (record,) = caplog.records
    assert record.name == "llama_index.llms.pacellm.reader"
    assert "half scanned.pdf': Page 2 without text" in record.getMessage()


def test_a_warning_about_the_whole_file_stands_on_every_page(doubtful_text: Path) -> None:
    pages = PaceReader().load_data(doubtful_text)
    assert [page.text for page in pages] == ["Größe: 12 m", "Änderungen vorbehalten."]
    for page in pages:
        assert "not valid UTF-8" in page.metadata["document_warnings"]


def test_a_password_is_given_per_file_or_once(locked: Path) -> None:
    with pytest.raises(EncryptedDocumentError):
        PaceReader().load_data(locked)
    (page,) = PaceReader().load_data(locked, password="open sesame")
    assert page.text == "A secret page."
    (page,) = PaceReader(password="open sesame").load_data(locked)
    assert page.text == "A secret page."


def test_async_loading_equals_loading(documents: Path) -> None:
    path = documents / "equipment-manual.pdf"
    assert asyncio.run(PaceReader().aload_data(path)) == PaceReader().load_data(path)


def test_a_folder_is_read_page_by_page(folder: Path) -> None:
    pages = read_folder(folder)
    assert [(p.metadata["file_name"], p.metadata["page_label"]) for p in pages] == [
        *[("annual-report.pdf", label) for label in ("i", "ii", "1", "2", "3", "4")],
        *[("equipment-manual.pdf", label) for label in "12345"],
        *[("supplier-contract.pdf", label) for label in "1234"],
    ]


def test_a_model_sees_the_same_whichever_way_a_file_was_loaded(folder: Path) -> None:
    direct = PaceReader().load_data(folder / "annual-report.pdf")
    by_folder = read_folder(folder)[: len(direct)]
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert [p.get_content(mode) for p in direct] == [p.get_content(mode) for p in by_folder]
    assert [p.id_ for p in direct] == [p.id_ for p in by_folder]


def test_a_folder_names_the_file_that_can_not_be_read(folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n")
    with pytest.raises(Exception, match="Error loading file") as caught:
        read_folder(folder)
    assert isinstance(caught.value.__cause__, DocumentError)
    assert "broken.pdf" in str(caught.value.__cause__)


def test_the_reader_can_be_sent_to_other_processes(locked: Path) -> None:
    reader = pickle.loads(pickle.dumps(PaceReader(password="open sesame")))
    assert [page.text for page in reader.load_data(locked)] == ["A secret page."]


def test_a_file_of_another_file_system_is_read_from_there(documents: Path) -> None:
    path = documents / "supplier-contract.pdf"
    remote = MemoryFileSystem()
    remote.pipe_file("/reports/contract.pdf", path.read_bytes())
    pages = SimpleDirectoryReader(
        "/reports", fs=remote, file_extractor={".pdf": PaceReader()}, raise_on_error=True
    ).load_data()
    assert [p.text for p in pages] == [p.text for p in PaceReader().load_data(path)]
    with pytest.raises(DocumentError, match="can not be opened"):
        PaceReader().load_data("/reports/missing.pdf", fs=remote)
    small = PaceReader(limits=DocumentLimits(file_bytes=100))
    with pytest.raises(DocumentLimitError, match="the limit is"):
        small.load_data("/reports/contract.pdf", fs=remote)


def test_page_nodes_reach_the_model_whole_in_one_prompt(folder: Path) -> None:
    pages = read_folder(folder)
    llm = RecordingLLM()
    engine = SummaryIndex(nodes=page_nodes(pages)).as_query_engine(llm=llm)
    response = engine.query("When does the contract end?")
    (prompt,) = llm._prompts
    for page in pages:
        assert page.get_content(MetadataMode.LLM) in prompt
    cited = [(n.metadata["file_name"], n.metadata["page_label"]) for n in response.source_nodes]
    assert cited == [(p.metadata["file_name"], p.metadata["page_label"]) for p in pages]


def test_page_nodes_keep_what_the_documents_say_about_themselves(documents: Path) -> None:
    pages = PaceReader().load_data(documents / "annual-report.pdf")
    for page, node in zip(pages, page_nodes(pages), strict=True):
        assert (node.id_, node.text, node.metadata) == (page.id_, page.text, page.metadata)
        for mode in MetadataMode:
            assert node.get_content(mode) == page.get_content(mode)


def test_pages_know_their_file_and_their_neighbours(folder: Path) -> None:
    nodes = page_nodes(read_folder(folder))
    assert [node.ref_doc_id for node in nodes] == [n.metadata["document_id"] for n in nodes]
    for number, node in enumerate(nodes):
        first = node.metadata["page_number"] == 1
        last = node.metadata["page_number"] == node.metadata["total_pages"]
        before, after = node.prev_node, node.next_node
        assert (before.node_id if before else "") == ("" if first else nodes[number - 1].id_)
        assert (after.node_id if after else "") == ("" if last else nodes[number + 1].id_)


def test_a_document_is_removed_from_an_index_with_all_its_pages(folder: Path) -> None:
    nodes = page_nodes(read_folder(folder))
    index = SummaryIndex(nodes=nodes)
    # delete_from_docstore=True leaves a page behind in llama-index-core 0.14.25, which shortens
    # the list of nodes that it is going through.
    index.delete_ref_doc(nodes[0].metadata["document_id"])
    assert index.index_struct.nodes == [node.id_ for node in nodes[6:]]


def test_a_file_that_lies_in_two_places_is_indexed_once(folder: Path) -> None:
    shutil.copy(folder / "annual-report.pdf", folder / "copy.pdf")
    pages = read_folder(folder)
    assert len(pages) == 21
    assert len(page_nodes(pages)) == 15


def test_documents_of_other_readers_stay_whole_too() -> None:
    notes = [Document(text="First note.", id_="a"), Document(text="Second note.", id_="b")]
    nodes = page_nodes(notes)
    assert [(n.id_, n.text, n.ref_doc_id) for n in nodes] == [
        ("a", "First note.", "a"),
        ("b", "Second note.", "b"),
    ]
    assert [n.next_node for n in nodes] == [None, None]
