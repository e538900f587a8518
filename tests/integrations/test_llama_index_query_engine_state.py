"""What the engines do to a model: documents are read once, answers do not depend on each other."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.schema import TextNode

from llama_index.llms.pacellm.chat_engine import WholeDocumentChatEngine
from llama_index.llms.pacellm.query_engine import WholeDocumentQueryEngine
from pacellm_rag.protocols import GenerationOptions

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

Tiny = Callable[..., "PaceModel"]

NODES = [
    TextNode(
        text=f"This is page {page} of the {title}. " + f"The {title} says {page * 37}. " * 8,
        metadata={"document_id": title, "title": title, "page_number": page},
        id_=f"{title} {page}",
    )
    for title in ("report", "contract")
    for page in (1, 2, 3)
]
SHORT = GenerationOptions(max_new_tokens=24)
LONG = GenerationOptions(max_new_tokens=600)
QUESTIONS = ("Who signed?", "What was it about?", "When?", "Which page says 111?")


class CountingModel:
    """Counts the forward passes of a module."""

    def __init__(self, model: PaceModel) -> None:
        self.forwards = 0
        model.module.base_model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1


def settle(model: PaceModel) -> None:
    """Waits until nobody is in the engine any more."""
    deadline = time.monotonic() + 10
    while not model.engine.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.engine.idle


def engine(model: PaceModel, **options: Any) -> WholeDocumentQueryEngine:
    return WholeDocumentQueryEngine(model, NODES, **{"options": SHORT, **options})


def told(response: Any) -> tuple[str, list[tuple[str, float | None]], Any]:
    """All of a response that must not depend on what happened before or beside it."""
    sources = [(source.node_id, source.score) for source in response.source_nodes]
    return str(response), sources, response.metadata["citations"]


def test_the_second_question_reads_only_itself(tiny: Tiny) -> None:
    asked = engine(tiny())
    first = asked.query(QUESTIONS[0]).metadata or {}
    assert first["receipt"]["tokens_reused"] == 0
    shared = first["receipt"]["tokens"]
    second = (asked.query(QUESTIONS[1]).metadata or {})["usage"]
    assert second["tokens_reused"] >= 0.95 * shared
    assert second["tokens_read"] < 200 < shared


def test_engines_over_the_same_documents_share_what_was_read(tiny: Tiny) -> None:
    model = tiny()
    engine(model).query(QUESTIONS[0])
    again = (engine(model).query(QUESTIONS[1]).metadata or {})["receipt"]
    assert again["tokens_reused"] >= 0.95 * again["tokens"]
    chat = WholeDocumentChatEngine(model, NODES, options=SHORT).chat(QUESTIONS[2])
    receipt = (chat.metadata or {})["receipt"]
    assert receipt["tokens_reused"] >= 0.95 * receipt["tokens"]
    chosen = (engine(model).select("report").query(QUESTIONS[0]).metadata or {})["receipt"]
    assert chosen["documents"] == 1
    assert chosen["tokens_reused"] >= 0.95 * chosen["tokens"]


def test_follow_ups_do_not_read_the_documents_again(tiny: Tiny) -> None:
    chat = WholeDocumentChatEngine(tiny(), NODES, options=SHORT)
    answers = [chat.chat(question).metadata or {} for question in QUESTIONS[:3]]
    prompts = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert prompts == sorted(set(prompts))
    for answer in answers:
        assert answer["usage"]["tokens_reused"] >= 0.95 * answer["receipt"]["tokens"]


def test_an_answer_is_the_same_whatever_was_asked_before(tiny: Tiny) -> None:
    asked = engine(tiny())
    first = told(asked.query(QUESTIONS[0]))
    other = told(asked.query(QUESTIONS[1]))
    assert told(asked.query(QUESTIONS[0])) == first != other


async def test_queries_asked_at_once_are_answered_as_one_after_the_other(tiny: Tiny) -> None:
    asked = engine(tiny())
    expected = [told(asked.query(question)) for question in QUESTIONS]
    together = engine(tiny())
    responses = await asyncio.gather(*(together.aquery(question) for question in QUESTIONS))
    assert list(map(told, responses)) == expected
    threaded = engine(tiny())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(threaded.query, QUESTIONS))
    assert list(map(told, results)) == expected
    for response in (*responses, *results):
        assert (response.metadata or {})["receipt"]["tokens"] > 500


async def test_a_stream_gives_what_a_query_gives(tiny: Tiny) -> None:
    model = tiny()
    expected = told(engine(model).query(QUESTIONS[0]))
    streamed: Any = engine(model, streaming=True).query(QUESTIONS[0])
    assert told(streamed.get_response()) == expected
    later: Any = await engine(model, streaming=True).aquery(QUESTIONS[0])
    assert told(await later.get_response()) == expected


async def test_a_cancelled_query_stops_the_model(tiny: Tiny) -> None:
    model = tiny()
    asked = engine(model, options=LONG)
    expected = told(engine(tiny(), options=SHORT).query(QUESTIONS[0]))
    count = CountingModel(model)
    task = asyncio.create_task(asked.aquery(QUESTIONS[0]))
    while count.forwards < 5:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = count.forwards
    await asyncio.to_thread(settle, model)
    assert count.forwards - before <= 2
    assert told(engine(model, options=SHORT).query(QUESTIONS[0])) == expected


async def test_a_query_cancelled_while_documents_are_read_stops_the_reading(tiny: Tiny) -> None:
    model = tiny()
    model.window = 16
    asked = engine(model)
    model.engine.runner.decoder.attends  # noqa: B018 - found out by forward passes of its own
    count = CountingModel(model)
    task = asyncio.create_task(asked.aquery(QUESTIONS[0]))
    while count.forwards < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(settle, model)
    assert count.forwards < asked.reader.plan().prompt_tokens // 16


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stream_that_is_left_costs_two_more_forwards_at_most(tiny: Tiny, how: str) -> None:
    model = tiny()
    count = CountingModel(model)

    def begin(kind: str) -> Any:
        if kind == "query":
            response: Any = engine(model, options=LONG, streaming=True).query(QUESTIONS[0])
        else:
            response = WholeDocumentChatEngine(model, NODES, options=LONG).stream_chat("Who?")
        return response.response_gen

    for kind in ("query", "chat"):
        pieces = begin(kind)
        for _ in range(3):
            next(pieces)
        if how == "close":
            pieces.close()
        del pieces  # nothing else holds it: no collector is needed
        before = count.forwards
        settle(model)
        assert count.forwards - before <= 2
        gc.collect()
        assert all(node.pins == 0 for node in model.engine.runner.cache.nodes())


@pytest.mark.parametrize("kind", ["query", "chat"])
async def test_an_async_stream_that_is_left_stops_the_model(tiny: Tiny, kind: str) -> None:
    model = tiny()
    count = CountingModel(model)
    if kind == "query":
        response: Any = await engine(model, options=LONG, streaming=True).aquery(QUESTIONS[0])
    else:
        response = await WholeDocumentChatEngine(model, NODES, options=LONG).astream_chat("Who?")
    pieces = response.async_response_gen() if kind == "chat" else response.response_gen
    for _ in range(3):
        await anext(pieces)
    await pieces.aclose()
    before = count.forwards
    await asyncio.to_thread(settle, model)
    assert count.forwards - before <= 2


def broken(*_: object) -> None:
    raise RuntimeError("broken layer")


async def test_an_error_in_the_middle_of_a_stream_arrives(tiny: Tiny) -> None:
    model = tiny()
    expected = told(engine(model).query(QUESTIONS[0]))
    chat = WholeDocumentChatEngine(model, NODES, options=LONG)
    streams: list[Any] = [
        engine(model, options=LONG, streaming=True).query(QUESTIONS[0]).response_gen,
        chat.stream_chat(QUESTIONS[1]).response_gen,
    ]
    later: list[Any] = [
        (await engine(model, options=LONG, streaming=True).aquery(QUESTIONS[2])).response_gen,
        (await chat.astream_chat(QUESTIONS[3])).async_response_gen(),
    ]
    for stream in streams:
        next(stream)
        hook = model.module.base_model.layers[1].register_forward_pre_hook(broken)
        with pytest.raises(RuntimeError, match="broken layer"):
            list(stream)
        hook.remove()
    for stream in later:
        await anext(stream)
        hook = model.module.base_model.layers[1].register_forward_pre_hook(broken)
        with pytest.raises(RuntimeError, match="broken layer"):
            [piece async for piece in stream]
        hook.remove()
    assert chat.chat_history == []
    assert told(engine(model).query(QUESTIONS[0])) == expected


def test_closing_an_engine_lets_its_documents_go(tiny: Tiny) -> None:
    model = tiny()
    asked = engine(model)
    expected = told(asked.query(QUESTIONS[0]))
    assert any(node.pins for node in model.engine.runner.cache.nodes())
    asked.close()
    gc.collect()
    assert not any(node.pins for node in model.engine.runner.cache.nodes())
    assert told(asked.query(QUESTIONS[0])) == expected
