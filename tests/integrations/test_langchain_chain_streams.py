"""The whole-document chain in pieces: they add up, they can be stopped, and errors arrive."""

from __future__ import annotations

import asyncio
import threading
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from chain_doubles import (
    ANSWER,
    QUESTION,
    SAID,
    SMALL,
    BrokenModel,
    Recorder,
    WaitingModel,
    load_sample_pages,
)
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from langchain_core.runnables import RunnablePassthrough

from langchain_pacellm.chains import create_whole_document_chain
from pacellm_rag import errors
from pacellm_rag.testing import ScriptedModel


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    return load_sample_pages(documents)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel([SAID], context_window=20_000)


def test_chunks_add_up_to_what_invoke_gives(model: ScriptedModel, pages: list[Document]) -> None:
    chain = create_whole_document_chain(model, pages)
    whole = chain.invoke(QUESTION)
    chunks: list[Any] = list(chain.stream(QUESTION))
    assert len(chunks) > 5
    assert all(set(chunk) == {"answer"} for chunk in chunks[:-1])
    total = sum(chunks[1:], chunks[0])
    assert total["answer"] == "".join(chunk["answer"] for chunk in chunks) == ANSWER
    assert "[D" not in "".join(chunk["answer"] for chunk in chunks)
    assert {k: v for k, v in total.items() if k != "usage"} == {
        k: v for k, v in whole.items() if k != "usage"
    }


async def test_async_gives_what_sync_gives(model: ScriptedModel, pages: list[Document]) -> None:
    chain = create_whole_document_chain(model, pages)
    chain.invoke(QUESTION)
    whole = chain.invoke(QUESTION)
    assert await chain.ainvoke(QUESTION) == whole
    chunks: list[Any] = [chunk async for chunk in chain.astream(QUESTION)]
    assert sum(chunks[1:], chunks[0]) == whole
    assert [c["answer"] for c in chunks] == [c["answer"] for c in chain.stream(QUESTION)]


def test_an_empty_answer_is_an_answer(pages: list[Document]) -> None:
    chain = create_whole_document_chain(ScriptedModel([""], context_window=20_000), pages)
    result = chain.invoke(QUESTION)
    assert (result["answer"], result["citations"]) == ("", [])
    (only,) = chain.stream(QUESTION)
    assert only["answer"] == ""


def test_the_words_of_a_stream_can_be_picked(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    before: Any = {"question": RunnablePassthrough()}
    pieces = list((before | chain.pick("answer")).stream(QUESTION))
    assert len(pieces) > 5
    assert "".join(pieces) == ANSWER
    assert (chain | itemgetter("answer")).invoke(QUESTION) == ANSWER


@pytest.mark.parametrize("read", [0, 1, 3])
def test_closing_a_stream_stops_the_model(model: ScriptedModel, read: int) -> None:
    stream = create_whole_document_chain(model, SMALL).stream(QUESTION)
    for _ in range(read):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [(g.closed, g.finish_reason) for g in model.generations] == [(True, "closed")] * (
        read > 0
    )
    assert list(stream) == []


def test_an_error_of_the_caller_stops_the_model(model: ScriptedModel) -> None:
    stream = create_whole_document_chain(model, SMALL).stream(QUESTION)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("x"))  # type: ignore[attr-defined]
    assert model.generations[0].finish_reason == "closed"


async def test_closing_an_async_stream_stops_the_model(model: ScriptedModel) -> None:
    stream: Any = create_whole_document_chain(model, SMALL).astream(QUESTION)
    await anext(stream)
    await stream.aclose()
    assert (model.generations[0].closed, model.generations[0].finish_reason) == (True, "closed")


async def test_closing_what_the_chain_is_part_of_stops_the_model(model: ScriptedModel) -> None:
    words = create_whole_document_chain(model, SMALL).pick("answer")
    stream = words.stream(QUESTION)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.generations[0].closed
    later: Any = words.astream(QUESTION)
    await anext(later)
    await later.aclose()
    for _ in range(500):  # the event loop closes what LangChain drops
        if model.generations[1].closed:
            return
        await asyncio.sleep(0.01)
    pytest.fail("The model went on.")


@pytest.mark.parametrize("way", ["ainvoke", "astream"])
async def test_cancelling_the_task_stops_the_model(way: str) -> None:
    model = WaitingModel([SAID])
    chain, came = create_whole_document_chain(model, SMALL), asyncio.Event()
    seen = Recorder()

    async def ask() -> None:
        config: Any = {"callbacks": [seen]}
        if way == "ainvoke":
            await chain.ainvoke(QUESTION, config)
        async for _ in chain.astream(QUESTION, config):
            came.set()

    task = asyncio.create_task(ask())
    while not model.generations or model.generations[0].completion_tokens < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.generations[0].finish_reason == "closed"
    assert came.is_set() == (way == "astream")
    assert "model error CancelledError" in seen.events
    assert "chain error CancelledError" in seen.events


async def test_cancelling_while_documents_are_read_stops_the_reading() -> None:
    begun, over = threading.Event(), threading.Event()

    class Reading(ScriptedModel):
        def prefill(self, *args: Any, cancel: Any, **kwargs: Any) -> Any:
            begun.set()
            while not cancel.is_set():
                pass
            over.set()
            return super().prefill(*args, cancel=cancel, **kwargs)

    model = Reading()
    task = asyncio.create_task(create_whole_document_chain(model, SMALL).ainvoke(QUESTION))
    assert await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(over.wait, 10)
    assert model.prefills == []
    assert model.generations == []


def test_what_does_not_fit_is_langchains_overflow_error(pages: list[Document]) -> None:
    model = ScriptedModel(context_window=1_000)
    with pytest.raises(ContextOverflowError, match="takes 1,000 tokens; this question") as told:
        create_whole_document_chain(model, pages).invoke(QUESTION)
    assert isinstance(told.value, errors.ContextOverflowError)
    assert len(told.value.document_tokens) == 3
    assert model.prefills == []


async def test_an_error_in_mid_stream_reaches_the_caller_as_langchains() -> None:
    model = BrokenModel([SAID])
    chain, seen = create_whole_document_chain(model, SMALL), Recorder()
    config: Any = {"callbacks": [seen]}
    got: list[str] = []

    def sync() -> None:
        got.extend(chunk["answer"] for chunk in chain.stream(QUESTION, config))

    async def asynchronous() -> None:
        async for chunk in chain.astream(QUESTION, config):
            got.append(chunk["answer"])

    with pytest.raises(ModelTimeoutError, match="longer than 5 seconds"):
        sync()
    with pytest.raises(ModelTimeoutError, match="longer than 5 seconds"):
        await asynchronous()
    with pytest.raises(ModelTimeoutError):
        chain.invoke(QUESTION, config)
    with pytest.raises(ModelTimeoutError):
        await chain.ainvoke(QUESTION, config)
    assert "".join(got) == "The Supplier" * 2
    assert all(generation.closed for generation in model.generations)
    assert seen.events == [
        "chain start WholeDocumentChain",
        "model start",
        "model error PaceTimeoutError",
        "chain error PaceTimeoutError",
    ] * len(model.generations)


def test_a_batch_may_give_errors_back(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    good, bad = chain.batch([QUESTION, ""], return_exceptions=True)
    assert good["answer"] == ANSWER
    assert isinstance(bad, errors.ConfigurationError)
