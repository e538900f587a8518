"""ChatPaceLLM stops when it is told to, fails at once and aloud, and leaves event loops free."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelError
from langchain_core.messages import AIMessageChunk

import pacellm_rag.errors
from langchain_pacellm import ChatPaceLLM
from pacellm_rag import EngineLimits, PaceConfig
from pacellm_rag.models.model import PaceModel
from pacellm_rag.testing import ScriptedModel

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
Tiny = Callable[..., PaceModel]


@pytest.fixture(params=[None, ACTING], ids=["plain", "bank"])
def model(tiny: Tiny, request: pytest.FixtureRequest) -> PaceModel:
    return tiny("llama", pace=request.param)


class Forwards:
    """Counts a model's forward passes."""

    def __init__(self, model: PaceModel) -> None:
        self.count = 0
        model.module.base_model.register_forward_pre_hook(self._more)

    def _more(self, *_: Any) -> None:
        self.count += 1


async def collected(chat: ChatPaceLLM, text: str) -> list[AIMessageChunk]:
    return [chunk async for chunk in chat.astream(text)]


def test_an_abandoned_stream_costs_no_more_than_what_runs_ahead(model: PaceModel) -> None:
    count = Forwards(model)
    stream = ChatPaceLLM(engine=model, max_tokens=300).stream("Hello")
    next(stream)
    stream.close()
    time.sleep(0.3)
    before = count.count
    time.sleep(0.3)
    assert before == count.count < 12


async def test_cancelling_the_task_stops_the_model(model: PaceModel) -> None:
    count = Forwards(model)
    task = asyncio.create_task(ChatPaceLLM(engine=model, max_tokens=2000).ainvoke("Hello"))
    while count.count < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at = count.count
    await asyncio.sleep(0.3)
    assert count.count <= at + 2


async def test_leaving_an_async_stream_stops_the_model(model: PaceModel) -> None:
    count = Forwards(model)
    async for _ in ChatPaceLLM(engine=model, max_tokens=2000).astream("Hello"):
        break
    gc.collect()
    await asyncio.sleep(0.2)
    at = count.count
    await asyncio.sleep(0.2)
    assert at == count.count < 20


async def test_a_failure_in_mid_stream_arrives_at_once(tiny: Tiny) -> None:
    model = tiny("llama")
    count = Forwards(model)

    def fail(*_: Any) -> None:
        if count.count > 20:
            raise RuntimeError("The card has fallen out.")

    model.module.base_model.layers[1].register_forward_pre_hook(fail)
    chat = ChatPaceLLM(engine=model, max_tokens=200)
    got = []
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="fallen out"):  # noqa: PT012
        for chunk in chat.stream("Hello"):
            got.append(chunk)
    assert got
    for ask in (chat.ainvoke("Hello"), collected(chat, "Hello")):
        with pytest.raises(RuntimeError, match="fallen out"):
            await ask
    assert time.monotonic() - started < 2


async def test_the_event_loop_stays_free(tiny: Tiny) -> None:
    """As free as with the whole work in a thread, on a machine that may be busy otherwise."""
    beats: list[float] = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.005)
            beats.append(time.monotonic())

    async def rate(answering: Awaitable[Any]) -> float:
        beats.clear()
        started = time.monotonic()
        await answering
        seconds = time.monotonic() - started
        assert seconds > 0.1
        return len(beats) / seconds

    ticker = asyncio.create_task(tick())
    question = "A long question, is it not? " * 60
    chats = [ChatPaceLLM(engine=tiny("llama"), max_tokens=150) for _ in range(2)]
    in_thread = await rate(asyncio.to_thread(chats[0].invoke, question))
    native = await rate(chats[1].ainvoke(question))
    ticker.cancel()
    assert native >= in_thread / 2


def test_what_does_not_fit_is_an_overflow_to_langchain_and_to_us(tiny: Tiny) -> None:
    chat = ChatPaceLLM(engine=tiny("llama"), max_tokens=100)
    with pytest.raises(ContextOverflowError, match="takes 4,096") as caught:
        chat.invoke("x" * 4000)
    assert isinstance(caught.value, pacellm_rag.errors.ContextOverflowError)
    assert caught.value.available_tokens == 4096
    assert not isinstance(caught.value, (ValueError, TypeError))
    assert type(caught.value.__cause__) is pacellm_rag.errors.ContextOverflowError


async def test_a_full_queue_is_waited_for_and_then_told(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=1, max_queue=0))
    busy = ChatPaceLLM(engine=model, max_tokens=3000).stream("Hello")
    next(busy)
    impatient = ChatPaceLLM(engine=model, max_tokens=2, max_retries=0)
    with pytest.raises(pacellm_rag.errors.QueueFullError) as caught:
        impatient.invoke("Hello")
    assert isinstance(caught.value, ModelError)
    assert caught.value.is_retryable
    waiting = asyncio.create_task(
        ChatPaceLLM(engine=model, max_tokens=2, max_retries=3).ainvoke("Hello")
    )
    await asyncio.sleep(0.1)
    busy.close()
    assert (await waiting).usage_metadata["output_tokens"] == 2


def test_no_messages_are_refused() -> None:
    with pytest.raises(ModelError, match="no messages"):
        ChatPaceLLM(engine=ScriptedModel()).invoke([])
