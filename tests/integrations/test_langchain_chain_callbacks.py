"""What the whole-document chain tells callbacks, graphs and those who ask what it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_doubles import (
    ANSWER,
    QUESTION,
    SAID,
    SMALL,
    Recorder,
    load_sample_pages,
)
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from langchain_pacellm.chains import WholeDocumentChain, create_whole_document_chain
from pacellm_rag.testing import ScriptedModel


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    return load_sample_pages(documents)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel([SAID], context_window=20_000)


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_callbacks_see_a_chain_and_a_chat_model_in_it(model: ScriptedModel, way: str) -> None:
    chain, seen, usage = (
        create_whole_document_chain(model, SMALL),
        Recorder(),
        UsageMetadataCallbackHandler(),
    )
    config: Any = {"callbacks": [seen, usage], "run_name": "asking", "tags": ["mine"]}
    if way == "invoke":
        result: Any = chain.invoke(QUESTION, config)
    elif way == "stream":
        chunks: list[Any] = list(chain.stream(QUESTION, config))
        result = sum(chunks[1:], chunks[0])
    elif way == "ainvoke":
        result = await chain.ainvoke(QUESTION, config)
    else:
        chunks = [chunk async for chunk in chain.astream(QUESTION, config)]
        result = sum(chunks[1:], chunks[0])
    assert seen.events == ["chain start asking", "model start", "model end", "chain end"]
    assert "".join(seen.tokens) == ANSWER
    assert len(seen.tokens) > 5
    assert seen.ended["chain"] == result
    (messages,), told = seen.started["model"]
    assert [m.type for m in messages] == ["system", "human"]
    assert "Hallen has 4 pumps." in messages[0].content
    assert told["parent_run_id"] == seen.started["chain"][1]["run_id"]
    assert told["tags"] == ["mine"]
    message = seen.ended["model"]
    assert message.text == ANSWER
    assert message.usage_metadata == result["usage"]
    assert usage.usage_metadata == {"scripted": result["usage"]}


async def test_events_stream_the_words_of_chain_and_model(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    events = [event async for event in chain.astream_events(QUESTION, version="v2")]
    by_chain = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream"]
    by_model = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(chunk["answer"] for chunk in by_chain) == ANSWER
    assert "".join(chunk.text for chunk in by_model) == ANSWER
    assert events[-1]["event"] == "on_chain_end"
    assert events[-1]["data"]["output"]["citations"] == by_chain[-1]["citations"]


def test_a_graph_streams_the_words_of_the_chain(model: ScriptedModel) -> None:
    from langgraph.graph import END, START, MessagesState, StateGraph

    chain = create_whole_document_chain(model, SMALL)

    def ask(state: MessagesState) -> dict[str, Any]:
        *history, question = state["messages"]
        result = chain.invoke({"question": question.text, "chat_history": history})
        return {"messages": [AIMessage(result["answer"])]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    turns = [("human", "Hello"), ("ai", "Good day."), ("human", QUESTION)]
    streamed = [
        chunk.text
        for chunk, metadata in graph.compile().stream({"messages": turns}, stream_mode="messages")
        if type(chunk).__name__ == "AIMessageChunk" and metadata["langgraph_node"] == "ask"
    ]
    assert len(streamed) > 5
    assert "".join(streamed) == ANSWER


def test_inputs_and_outputs_are_described(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    taken = chain.get_input_jsonschema()
    text, structured = taken["anyOf"]
    assert text == {"type": "string"}
    question = taken["$defs"][structured["$ref"].rpartition("/")[2]]
    assert set(question["properties"]) == {"question", "input", "chat_history"}
    given = json.dumps(chain.get_output_jsonschema())
    assert all(f'"{key}"' in given for key in chain.invoke("?"))
    assert chain.get_name() == "WholeDocumentChain"
    assert create_whole_document_chain(model, SMALL, name="contracts").get_name() == "contracts"
    assert isinstance(chain, WholeDocumentChain)


def test_the_chain_works_inside_of_others(model: ScriptedModel) -> None:
    chain = create_whole_document_chain(model, SMALL)
    shout = RunnableLambda(lambda result: result["answer"].upper())
    assert (chain | shout).batch([QUESTION, QUESTION]) == [ANSWER.upper()] * 2
    retried = chain.with_retry(stop_after_attempt=2).with_fallbacks([chain])
    assert retried.invoke(QUESTION)["answer"] == ANSWER


def test_an_agents_turns_can_be_the_history(model: ScriptedModel) -> None:
    call = {"name": "look", "args": {"at": "pumps"}, "id": "1"}
    turns = [
        HumanMessage("Look."),
        AIMessage("", tool_calls=[call]),
        ToolMessage("Four.", tool_call_id="1"),
        AIMessage("Four."),
    ]
    seen = Recorder()
    create_whole_document_chain(model, SMALL).invoke(
        {"input": "Sure?", "chat_history": turns}, {"callbacks": [seen]}
    )
    ((messages,), _) = seen.started["model"]
    assert [m.type for m in messages] == ["system", "human", "ai", "tool", "ai", "human"]
    assert messages[2].tool_calls[0]["args"] == {"at": "pumps"}
    assert messages[3].tool_call_id == "1"


def test_an_iterator_of_pages_is_read_whole(model: ScriptedModel) -> None:
    def lazily() -> Iterator[Document]:
        yield from SMALL

    chain = create_whole_document_chain(model, lazily())
    assert chain.invoke("?")["receipt"]["documents"] == 2
    assert chain.invoke("?")["receipt"]["documents"] == 2
