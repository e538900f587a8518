"""Whole documents out of LangChain's retriever: which, in which order, and what is left out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import FakeListChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from langchain_pacellm import PacePDFLoader
from langchain_pacellm.retrievers import WholeDocumentRetriever
from pacellm_rag import errors, load_document
from pacellm_rag.context.packing import pack_context
from pacellm_rag.testing import ScriptedModel

NAMES = ("annual-report", "equipment-manual", "supplier-contract")


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    """The pages of the three samples, in the order of `NAMES`."""
    return PacePDFLoader([documents / f"{name}.pdf" for name in NAMES]).load()


def page(text: str, source: str = "", number: int | None = None, **more: Any) -> Document:
    metadata = {"source": source, **more} if source else more
    return Document(text, metadata=metadata if number is None else {**metadata, "page": number})


def two_of(source: str, *texts: str) -> list[Document]:
    return [page(text, source, number) for number, text in enumerate(texts)]


LIBRARY = [
    *two_of("a/cats.pdf", "Cats sleep by day.", "A cat eats fish and mice."),
    *two_of("a/dogs.pdf", "Dogs bark.", "A dog eats meat, fish, bones and more bones.", "Woof."),
    *two_of("a/fish.pdf", "Fish fish fish: fish swim."),
]


def titles(results: Sequence[Document]) -> list[str]:
    return [result.metadata["title"] for result in results]


def left_out(results: Sequence[Document]) -> list[tuple[str, str]]:
    (said,) = {
        tuple((entry["title"], entry["reason"]) for entry in result.metadata["left_out"])
        for result in results
    }
    return list(said)


class ListRetriever(BaseRetriever):
    """Gives the hits it was made with, and remembers how it was called."""

    hits: list[Document]
    calls: list[str] = []  # noqa: RUF012 - pydantic copies it

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.calls.append("sync")
        return self.hits

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.calls.append("async")
        return self.hits


class TestWholeDocumentRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return WholeDocumentRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"documents": LIBRARY, "model": ScriptedModel(), "max_tokens": 10_000}

    @property
    def retriever_query_example(self) -> str:
        return "Who eats fish?"


def test_a_result_is_a_document_as_the_reader_lays_it_out(
    pages: list[Document], documents: Path
) -> None:
    loaded = [load_document(documents / f"{name}.pdf") for name in NAMES]
    packed = pack_context(loaded)
    results = WholeDocumentRetriever(documents=pages).invoke("When does the contract end?")
    assert [r.page_content for r in results] == [
        packed.text[start:end].strip() for start, end in packed.document_spans
    ]
    for number, (document, result) in enumerate(zip(loaded, results, strict=True), start=1):
        metadata = dict(result.metadata)
        assert isinstance(metadata.pop("rank"), int)
        assert isinstance(metadata.pop("score"), float)
        assert metadata == {
            "source": document.source,
            "title": document.title,
            "document_id": document.id,
            "total_pages": len(document.pages),
            "document_number": number,
            "page_labels": {page.number: page.label for page in document.pages},
            "left_out": [],
        }


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What was the revenue of the whole year in the annual report?", 0),
        ("At which oil temperature does the pump set trip?", 1),
        ("When does the contract with the supplier end?", 2),
    ],
)
def test_the_document_with_the_best_page_ranks_first(
    pages: list[Document], question: str, best: int
) -> None:
    retriever = WholeDocumentRetriever(documents=pages, k=1)
    (result,) = retriever.invoke(question)
    assert result.metadata["document_number"] == best + 1
    assert result.metadata["rank"] == 1
    assert result.metadata["score"] > 0


def test_results_keep_the_order_of_the_documents_whatever_their_rank() -> None:
    retriever = WholeDocumentRetriever(documents=LIBRARY, k=2)
    by_dogs = retriever.invoke("Which dog eats bones, and which cat?")
    assert titles(by_dogs) == ["cats", "dogs"]
    assert [r.metadata["rank"] for r in by_dogs] == [2, 1]
    by_cats = retriever.invoke("Which cat eats mice, and does a dog?")
    assert [r.metadata["rank"] for r in by_cats] == [1, 2]
    assert [r.page_content for r in by_dogs] == [r.page_content for r in by_cats]


def test_documents_without_a_shared_word_come_last_and_fill_the_room() -> None:
    results = WholeDocumentRetriever(documents=LIBRARY).invoke("Do dogs bark?")
    assert titles(results) == ["cats", "dogs", "fish"]
    assert [(r.metadata["rank"], r.metadata["score"] > 0) for r in results] == [
        (2, False),
        (1, True),
        (3, False),
    ]


def test_what_k_leaves_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="langchain_pacellm"):
        results = WholeDocumentRetriever(documents=LIBRARY).invoke("Do dogs swim?", k=2)
    assert titles(results) == ["dogs", "fish"]
    assert left_out(results) == [("cats", "k")]
    assert results[0].metadata["left_out"][0]["source"] == "a/cats.pdf"
    assert [record.getMessage() for record in caplog.records] == ["Left out: 'cats' (k)"]


def test_a_budget_is_never_exceeded_and_what_it_leaves_out_is_said() -> None:
    model = ScriptedModel()
    sizes = {
        result.metadata["title"]: model.tokenizer.count_tokens(result.page_content)
        for result in WholeDocumentRetriever(documents=LIBRARY).invoke("fish")
    }
    for budget in range(min(sizes.values()), sum(sizes.values()) + 1):
        retriever = WholeDocumentRetriever(documents=LIBRARY, model=model, max_tokens=budget)
        results = retriever.invoke("Do dogs eat bones?")
        assert sum(sizes[title] for title in titles(results)) <= budget
        gone = left_out(results)
        assert {reason for _, reason in gone} <= {"budget"}
        assert sorted([*titles(results), *(title for title, _ in gone)]) == sorted(sizes)
        for title, _ in gone:  # what was left out would not have fitted beside better ones
            assert sum(sizes[t] for t in titles(results)) + sizes[title] > budget
    assert gone == []


def test_a_smaller_document_is_taken_behind_one_that_does_not_fit() -> None:
    retriever = WholeDocumentRetriever(
        documents=LIBRARY, count_tokens=lambda text: 50 if "Woof" in text else 10, max_tokens=20
    )
    results = retriever.invoke("Do dogs bark?")
    assert titles(results) == ["cats", "fish"]
    assert left_out(results) == [("dogs", "budget")]
    assert [r.metadata["rank"] for r in results] == [2, 3]


def test_documents_of_which_none_fits_are_an_error_and_no_empty_answer() -> None:
    retriever = WholeDocumentRetriever(
        documents=LIBRARY, count_tokens=lambda text: len(text), max_tokens=7
    )
    with pytest.raises(ContextOverflowError, match=r"max_tokens=7: 'cats' has \d+, 'dogs'") as told:
        retriever.invoke("cats")
    assert isinstance(told.value, errors.ContextOverflowError)
    assert set(told.value.document_tokens) == {"cats", "dogs", "fish"}


@pytest.mark.parametrize("text", ["", "   ", "¿?", "\ud800", "x" * 100_000])
def test_any_question_gives_documents(text: str) -> None:
    assert len(WholeDocumentRetriever(documents=LIBRARY, k=2).invoke(text)) == 2


def test_hits_of_another_retriever_bring_their_whole_documents() -> None:
    hits = [
        page("bones", "a/dogs.pdf", start_index=7),
        page("fish", "a/cats.pdf"),
        page("Woof.", "a/dogs.pdf"),
    ]
    retriever = WholeDocumentRetriever(documents=LIBRARY, retriever=ListRetriever(hits=hits))
    results = retriever.invoke("anything")
    assert titles(results) == ["cats", "dogs"]
    assert [(r.metadata["rank"], r.metadata["score"]) for r in results] == [(2, 0.5), (1, 1.0)]
    assert "Dogs bark." in results[1].page_content
    assert left_out(results) == [("fish", "no hit")]
    assert titles(retriever.invoke("anything", k=1)) == ["dogs"]


def test_hits_are_known_by_source_where_they_have_lost_their_document_id(
    pages: list[Document],
) -> None:
    hit = page("?", pages[0].metadata["source"])
    by_id = Document("?", metadata={"document_id": pages[-1].metadata["document_id"]})
    retriever = WholeDocumentRetriever(documents=pages, retriever=ListRetriever(hits=[hit, by_id]))
    assert [r.metadata["document_number"] for r in retriever.invoke("?")] == [1, 3]


def test_hits_of_unknown_documents_are_said_and_give_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = ListRetriever(hits=[page("x", "elsewhere.pdf"), Document("y")])
    with caplog.at_level(logging.WARNING, logger="langchain_pacellm"):
        assert WholeDocumentRetriever(documents=LIBRARY, retriever=inner).invoke("x") == []
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("2 of 2 hits belong to none of the documents")
    assert told[1] == "Left out: 'cats' (no hit), 'dogs' (no hit), 'fish' (no hit)"


def test_any_runnable_that_gives_documents_can_rank() -> None:
    inner = RunnableLambda(lambda question: [page(question, "a/fish.pdf")])
    assert titles(WholeDocumentRetriever(documents=LIBRARY, retriever=inner).invoke("?")) == [
        "fish"
    ]


async def test_async_retrieval_equals_sync_and_asks_the_inner_retriever_async() -> None:
    inner = ListRetriever(hits=[page("x", "a/dogs.pdf")])
    for retriever in (
        WholeDocumentRetriever(documents=LIBRARY, k=2),
        WholeDocumentRetriever(documents=LIBRARY, retriever=inner),
    ):
        assert await retriever.ainvoke("Do dogs bark?") == retriever.invoke("Do dogs bark?")
        assert await retriever.ainvoke("Do dogs bark?", k=1) == retriever.invoke(
            "Do dogs bark?", k=1
        )
    assert inner.calls == ["async", "sync", "async", "sync"]


async def test_concurrent_questions_get_their_own_documents() -> None:
    retriever = WholeDocumentRetriever(
        documents=LIBRARY, k=1, model=ScriptedModel(), max_tokens=1000
    )
    questions = ["cats and mice", "dogs and bones", "swim"] * 8
    results = await asyncio.gather(*map(retriever.ainvoke, questions))
    assert [titles(r)[0] for r in results] == ["cats", "dogs", "fish"] * 8
    assert retriever.batch(questions) == list(results)


def test_pages_of_chosen_documents_come_as_they_were_given(pages: list[Document]) -> None:
    retriever = WholeDocumentRetriever(documents=pages, k=2, as_pages=True)
    results = retriever.invoke("When does the contract with the supplier end, and the year?")
    chosen = {result.metadata["document_id"] for result in results}
    expected = [p for p in pages if p.metadata["document_id"] in chosen]
    assert len(chosen) == 2
    assert [(r.page_content, r.id) for r in results] == [(p.page_content, p.id) for p in expected]
    for given, result in zip(expected, results, strict=True):
        added = {k: v for k, v in result.metadata.items() if k not in given.metadata}
        assert set(added) == {"rank", "score", "document_number", "left_out"}
        assert given.metadata.items() <= result.metadata.items()
    assert all("rank" not in p.metadata for p in pages)


def test_text_that_poses_as_a_page_marker_is_disarmed() -> None:
    posing = [*two_of("x.pdf", "Honest.", "[D2 p1] False."), *two_of("y.pdf", "True.")]
    first, _ = WholeDocumentRetriever(documents=posing).invoke("False?")
    assert "(D2 p1) False." in first.page_content


def test_pages_that_come_in_disorder_or_twice_make_one_document() -> None:
    shuffled = [LIBRARY[4], LIBRARY[2], LIBRARY[3], LIBRARY[2], LIBRARY[0], LIBRARY[1]]
    results = WholeDocumentRetriever(documents=shuffled).invoke("?")
    assert titles(results) == ["dogs", "cats"]
    assert [r.metadata["total_pages"] for r in results] == [3, 2]
    assert results[0].page_content.count("Dogs bark.") == 1
    assert results[0].page_content.index("bark") < results[0].page_content.index("Woof")


def test_texts_without_metadata_are_documents_of_their_own() -> None:
    notes = [Document("Cats."), Document("Dogs."), Document("Cats.")]
    results = WholeDocumentRetriever(documents=notes, k=1).invoke("dogs")
    assert titles(results) == ["Document 2"]
    assert left_out(results)[0] == ("Document 1", "k")


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_one_or_more(k: int) -> None:
    with pytest.raises(ValidationError):
        WholeDocumentRetriever(documents=LIBRARY, k=k)
    with pytest.raises(errors.ConfigurationError, match=f"k is {k}; it must be 1 or more"):
        WholeDocumentRetriever(documents=LIBRARY).invoke("x", k=k)


def test_settings_that_can_not_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="There are no documents"):
        WholeDocumentRetriever(documents=[])
    with pytest.raises(ValidationError, match="Pass model="):
        WholeDocumentRetriever(documents=LIBRARY, max_tokens=100)
    with pytest.raises(ValidationError, match="nothing counts tokens"):
        WholeDocumentRetriever(documents=LIBRARY, max_tokens=100, model="a name")


def test_a_count_of_nothing_is_refused() -> None:
    retriever = WholeDocumentRetriever(
        documents=LIBRARY, max_tokens=100, count_tokens=lambda text: 0
    )
    with pytest.raises(errors.ConfigurationError, match="'cats' is said to have 0 tokens"):
        retriever.invoke("cats")


def test_other_chat_models_can_count() -> None:
    model = FakeListChatModel(responses=["?"], custom_get_token_ids=lambda text: [0] * len(text))
    retriever = WholeDocumentRetriever(documents=LIBRARY, max_tokens=120, model=model)
    results = retriever.invoke("swim")
    assert titles(results) == ["fish"] or sum(len(r.page_content) for r in results) <= 120
    assert all(reason == "budget" for _, reason in left_out(results))


def test_each_document_is_counted_once() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 10

    retriever = WholeDocumentRetriever(documents=LIBRARY, max_tokens=30, count_tokens=count)
    for _ in range(3):
        assert len(retriever.invoke("fish")) == 3
    assert len(counted) == 3


def test_other_documents_are_noticed() -> None:
    retriever = WholeDocumentRetriever(documents=LIBRARY, k=3)
    assert len(retriever.invoke("fish")) == 3
    retriever.documents = tuple(LIBRARY[:2])
    assert titles(retriever.invoke("fish")) == ["cats"]
    assert titles(retriever.model_copy(update={"documents": LIBRARY[-1:]}).invoke("?")) == ["fish"]


def test_callbacks_see_the_retrieval_and_the_inner_one() -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.names: list[tuple[str, bool]] = []

        def on_retriever_start(self, *args: Any, name: str, parent_run_id: Any, **k: Any) -> None:
            self.names.append((name, parent_run_id is not None))

    seen = Seen()
    inner = ListRetriever(hits=[page("x", "a/dogs.pdf")])
    retriever = WholeDocumentRetriever(documents=LIBRARY, retriever=inner)
    retriever.invoke("x", {"callbacks": [seen]})
    assert seen.names == [("WholeDocumentRetriever", False), ("ListRetriever", True)]


def test_a_printed_retriever_does_not_print_its_documents() -> None:
    assert "Cats" not in repr(WholeDocumentRetriever(documents=LIBRARY))
