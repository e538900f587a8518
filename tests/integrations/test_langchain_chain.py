"""The whole-document chain: what it takes, what it answers, and the options it heeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chain_doubles import (
    ANSWER,
    NAMES,
    QUESTION,
    SAID,
    SMALL,
    load_sample_pages,
    load_text,
)
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_pacellm import ChatPaceLLM
from langchain_pacellm.chains import create_whole_document_chain
from pacellm_rag import DocumentReader, Message, errors, load_document
from pacellm_rag.testing import ScriptedModel


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    return load_sample_pages(documents)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel([SAID], context_window=20_000)


def test_an_answer_comes_with_checked_citations_pages_and_a_receipt(
    model: ScriptedModel, pages: list[Document]
) -> None:
    result = create_whole_document_chain(model, pages).invoke(QUESTION)
    assert result["question"] == QUESTION
    assert result["answer"] == ANSWER
    assert result["finish_reason"] == "stop"
    first, page = result["citations"][0], pages[-1]
    assert first == {
        "title": page.metadata["title"],
        "source": page.metadata["source"],
        "document_id": page.metadata["document_id"],
        "page": 4,
        "page_label": "4",
        "quote": first["quote"],
        "verified": True,
        "score": first["score"],
    }
    assert "Gideon Ashby" in first["quote"]
    assert " ".join(first["quote"].split()) in " ".join(page.page_content.split())
    assert result["context"][0] == page
    places = [(c["document_id"], c["page"]) for c in result["citations"]]
    assert places == [
        (p.metadata["document_id"], p.metadata["page_number"]) for p in result["context"]
    ]
    receipt = result["receipt"]
    assert (receipt["documents"], receipt["pages"], receipt["tokens_reused"]) == (3, 15, 0)
    assert receipt["pages_without_text"] == receipt["warnings"] == []
    usage = result["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"] == {
        "cache_read": 0,
        "cache_creation": usage["input_tokens"],
    }
    assert receipt["tokens"] < usage["input_tokens"] < receipt["tokens"] + 40


def test_citations_and_words_are_the_readers_own(
    model: ScriptedModel, pages: list[Document], documents: Path
) -> None:
    loaded = [load_document(documents / f"{name}.pdf") for name in NAMES]
    expected = DocumentReader(model, loaded).ask(QUESTION)
    result = create_whole_document_chain(model, pages).invoke(QUESTION)
    assert result["answer"] == expected.text
    assert [(c["page"], c["quote"], c["score"], c["verified"]) for c in result["citations"]] == [
        (c.page, c.quote, c.score, c.verified) for c in expected.citations
    ]
    assert model.prompts[0] == model.prompts[1]


def test_pages_documents_and_paths_can_be_mixed(
    model: ScriptedModel, pages: list[Document], documents: Path
) -> None:
    report = [p for p in pages if p.metadata["source"].endswith("annual-report.pdf")]
    manual = load_document(documents / "equipment-manual.pdf")
    contract = documents / "supplier-contract.pdf"
    mixed = [*report[:1], manual, contract, *report[1:], contract]
    result = create_whole_document_chain(model, mixed).invoke(QUESTION)
    assert create_whole_document_chain(model, pages).invoke(QUESTION)["answer"] == ANSWER
    assert model.prompts[0] == model.prompts[1]
    assert result["context"][0].metadata == {
        "source": str(contract),
        "title": pages[-1].metadata["title"],
        "total_pages": 4,
        "document_id": pages[-1].metadata["document_id"],
        "page": 3,
        "page_number": 4,
        "page_label": "4",
    }


def test_one_document_needs_no_list(model: ScriptedModel, documents: Path) -> None:
    path = documents / "supplier-contract.pdf"
    for one in (str(path), path, load_document(path)):
        result = create_whole_document_chain(model, one).invoke(QUESTION)
        assert result["receipt"]["documents"] == 1
        assert result["receipt"]["pages"] == 4


def test_pages_keep_the_metadata_they_came_with(model: ScriptedModel) -> None:
    told = {"source": "s.txt", "page": 6, "title": "Ashby", "department": "water", "page_label": ""}
    page = Document("Gideon Ashby represents the Supplier.", metadata=told, id="an id")
    result = create_whole_document_chain(model, [page]).invoke(QUESTION)
    assert [c["page"] for c in result["citations"]] == [7]
    (context,) = result["context"]
    assert context.id == "an id"
    assert context.metadata["department"] == "water"
    assert (context.metadata["page_number"], context.metadata["page_label"]) == (7, "7")


def test_pieces_of_a_page_are_put_together(model: ScriptedModel) -> None:
    place = {"source": "s.txt", "page": 1}
    halves = [
        Document(text, metadata={**place, "start_index": at}, id=str(at))
        for at, text in enumerate(("Gideon Ashby represents", "the Supplier."))
    ]
    (context,) = create_whole_document_chain(model, halves).invoke(QUESTION)["context"]
    assert context.page_content == "Gideon Ashby represents\nthe Supplier."
    assert context.id is None


def test_pages_without_text_and_warnings_are_told(model: ScriptedModel, half_scanned: Path) -> None:
    receipt = create_whole_document_chain(model, half_scanned).invoke("?")["receipt"]
    assert receipt["pages"] == 1
    assert receipt["pages_without_text"] == [("half scanned", 2)]
    assert "Page 2 without text" in receipt["warnings"][0]


def test_a_question_may_be_a_dict_under_either_name(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    results = [
        chain.invoke(given)
        for given in (
            QUESTION,
            {"question": QUESTION},
            {"input": QUESTION, "context": ["of somebody else"]},
            {"question": QUESTION, "chat_history": []},
        )
    ]
    assert {r["question"] for r in results} == {QUESTION}
    assert len(set(model.prompts)) == 1


def test_earlier_turns_go_before_the_question(model: ScriptedModel) -> None:
    turns = [
        HumanMessage("How many pumps has Hallen?"),
        AIMessage([{"type": "text", "text": "Four."}]),
    ]
    chain = create_whole_document_chain(model, SMALL)
    chain.invoke({"input": "And Norrock?", "chat_history": turns})
    history = [Message("user", "How many pumps has Hallen?"), Message("assistant", "Four.")]
    texts = [load_text(page) for page in SMALL]
    DocumentReader(model, texts).ask("And Norrock?", history=history)
    assert model.prompts[0] == model.prompts[1]
    chain.invoke({"input": "And Norrock?", "chat_history": [("human", "Hi"), ("ai", "Hello")]})
    assert model.prompts[2] != model.prompts[1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "The question is empty"),
        ("  \n", "The question is empty"),
        ({}, "it takes a question as a str"),
        ({"query": "x"}, "a dict with 'query'; it takes a question"),
        ({"question": ["x"]}, "it takes a question as a str"),
        (7, "The chain got 7; it takes"),
        ({"input": "x", "chat_history": [SystemMessage("Be kind.")]}, "has a system message"),
        (
            {"input": "x", "chat_history": [HumanMessage([{"type": "image", "url": "u"}])]},
            "'image', which can not be read",
        ),
    ],
)
def test_what_is_no_question_is_refused(model: ScriptedModel, given: Any, told: str) -> None:
    chain = create_whole_document_chain(model, SMALL)
    with pytest.raises(errors.ConfigurationError, match=told):
        chain.invoke(given)
    with pytest.raises(errors.ConfigurationError, match=told):
        list(chain.stream(given))
    assert model.prefills == []


def test_citing_can_be_left_out(model: ScriptedModel, pages: list[Document]) -> None:
    result = create_whole_document_chain(model, pages, cite=False).invoke(QUESTION)
    assert (result["answer"], result["citations"], result["context"]) == (ANSWER, [], [])


def test_options_come_from_the_chat_model_the_chain_and_the_call(model: ScriptedModel) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=5)
    chain = create_whole_document_chain(chat, SMALL)
    assert chain.invoke(QUESTION)["usage"]["output_tokens"] == 5
    assert chain.invoke(QUESTION)["finish_reason"] == "length"
    assert chain.bind(max_tokens=3).invoke(QUESTION)["usage"]["output_tokens"] == 3
    assert chain.invoke(QUESTION, max_tokens=2)["answer"] == "The Supplier"
    assert next(iter(chain.stream(QUESTION, max_tokens=1)))["answer"] == "The"
    shorter = create_whole_document_chain(chat, SMALL, max_tokens=4)
    assert shorter.invoke(QUESTION)["usage"]["output_tokens"] == 4


def test_options_reach_the_model() -> None:
    seen: list[Any] = []

    class Model(ScriptedModel):
        def stream(self, token_ids: Any, options: Any, **kwargs: Any) -> Any:
            seen.append(options)
            return super().stream(token_ids, options, **kwargs)

    chat = ChatPaceLLM(engine=Model(), temperature=0.5, seed=3, stop=["END"], top_p=0.9, top_k=7)
    create_whole_document_chain(chat, SMALL, seed=4).invoke("?", stop="X")
    assert (seen[0].temperature, seen[0].top_p, seen[0].top_k) == (0.5, 0.9, 7)
    assert (seen[0].seed, seen[0].stop) == (4, ("X",))


def test_options_that_can_not_work_are_refused(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    with pytest.raises(errors.ConfigurationError, match="no option max_token; there are max_tok"):
        chain.invoke(QUESTION, max_token=3)
    with pytest.raises(errors.ConfigurationError, match="temperature is -1"):
        chain.invoke(QUESTION, temperature=-1)
    with pytest.raises(errors.ConfigurationError, match="max_new_tokens is 0"):
        create_whole_document_chain(model, SMALL, max_tokens=0)
    with pytest.raises(errors.ConfigurationError, match="There are no documents"):
        create_whole_document_chain(model, [])
    with pytest.raises(errors.ConfigurationError, match="Document 2 is a int"):
        create_whole_document_chain(model, [*SMALL[:1], 3]).invoke("?")  # type: ignore[list-item]


def test_other_chat_models_and_bound_ones_are_refused(model: ScriptedModel) -> None:
    fake = FakeListChatModel(responses=["?"])
    with pytest.raises(errors.ConfigurationError, match="model is a FakeListChatModel"):
        create_whole_document_chain(fake, SMALL)
    bound: Any = ChatPaceLLM(engine=model).bind(stop=["x"])
    with pytest.raises(errors.ConfigurationError, match="with nothing bound to it"):
        create_whole_document_chain(bound, SMALL)
