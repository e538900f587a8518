"""Contract: what happens when something is wrong, is left, or must not wait.

Each test's docstring says what it demands, and how to mend a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import TextNode

from llama_index.llms.pacellm.contract_model import ContractModel

__all__ = ["FailureContract"]

_PATIENCE = 2.0  # seconds for an error to arrive


class FailureContract(ContractModel):
    """Errors, cancelling, and the event loop."""

    def rests(self, llm: FunctionCallingLLM) -> bool:
        """Whether the model has stopped computing, half a second given to come to rest."""
        time.sleep(0.5)
        before = self.work_done(llm)
        time.sleep(0.3)
        return self.work_done(llm) == before

    def whole_work(self) -> int:
        """What a long answer takes, left alone."""
        llm = self.make_llm(max_tokens=self.longest_answer)
        before = self.work_done(llm)
        llm.chat(self.turns(self.questions[0]))
        return self.work_done(llm) - before

    def test_a_closed_stream_computes_no_further(self) -> None:
        """After `close()` of `stream_chat` and `stream_complete` the model rests.

        Decode in the generator itself, or stop whatever decodes in its `finally`. `stream_chat`
        must return a real generator: for anything else LlamaIndex passes no `close` on.
        """
        self.needs("stops_when_closed")
        whole = self.whole_work()
        question = self.questions[1]
        ways: list[Callable[[FunctionCallingLLM], Generator[Any, None, None]]] = [
            lambda llm: llm.stream_chat(self.turns(question)),
            lambda llm: llm.stream_complete(question),
        ]
        for begin in ways:
            llm = self.make_llm(max_tokens=self.longest_answer)
            before = self.work_done(llm)
            stream = begin(llm)
            next(stream)
            stream.close()
            assert self.rests(llm)
            assert self.work_done(llm) - before < whole, "it went on to its end"

    def test_a_stream_that_is_dropped_computes_no_further(self) -> None:
        """A stream that nobody holds any more is a closed one."""
        self.needs("stops_when_closed")
        whole = self.whole_work()
        llm = self.make_llm(max_tokens=self.longest_answer)
        before = self.work_done(llm)
        for _ in llm.stream_chat(self.turns(self.questions[2])):
            break
        gc.collect()
        assert self.rests(llm)
        assert self.work_done(llm) - before < whole

    def test_cancelling_stops_the_work(self) -> None:
        """Cancelling the task of `achat`, or closing `astream_chat`, stops the model.

        Await something that can be cancelled, and stop the decoding in `finally`; a thread that is
        awaited goes on to its end.
        """
        self.needs("native_async", "stops_when_closed")
        whole = self.whole_work()
        messages = self.turns(self.questions[1])

        async def cancelled(llm: FunctionCallingLLM) -> None:
            task = asyncio.create_task(llm.achat(messages))
            start = self.work_done(llm)
            while self.work_done(llm) == start and not task.done():
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        async def closed(llm: FunctionCallingLLM) -> None:
            stream = await llm.astream_chat(messages)
            await anext(stream)
            await stream.aclose()
            await asyncio.sleep(0.05)

        for leave in (cancelled, closed):
            llm = self.make_llm(max_tokens=self.longest_answer)
            before = self.work_done(llm)
            asyncio.run(leave(llm))
            assert self.rests(llm)
            assert self.work_done(llm) - before < whole, f"{leave.__name__}: it went on to its end"

    def test_the_event_loop_is_free(self) -> None:
        """While `achat` and `astream_chat` answer, the loop goes on with other things.

        `CustomLLM` and many subclasses call the sync method in the coroutine. Decode in a thread
        of your own and await its pieces, or await the server's.
        """
        self.needs("native_async")
        messages = self.turns(self.questions[0])

        async def stream(llm: FunctionCallingLLM) -> None:
            async for _ in await llm.astream_chat(messages):
                pass

        async def longest_wait(call: Callable[[FunctionCallingLLM], Any]) -> tuple[float, float]:
            task = asyncio.create_task(call(self.make_llm(max_tokens=self.longest_answer)))
            begun = last = time.monotonic()
            longest = 0.0
            while not task.done():
                await asyncio.sleep(0.001)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            await task
            return longest, last - begun

        for call in (lambda llm: llm.achat(messages), stream):
            longest, took = asyncio.run(longest_wait(call))
            assert longest < max(0.1, took / 2), f"blocked for {longest:.2f} of {took:.2f} s"

    def test_an_error_in_mid_stream_arrives(self) -> None:
        """An error while an answer is streamed is raised where it is iterated, within two seconds.

        A queue between a decoding thread and the generator must carry errors as well as text.
        """
        self.needs("tells_errors_in_streams")
        messages = self.turns(self.questions[0])
        found: queue.Queue[object] = queue.Queue()
        llm = self.failing_llm()

        def iterate() -> None:
            try:
                found.put(list(llm.stream_chat(messages)))
            except Exception as error:
                found.put(error)

        threading.Thread(target=iterate, daemon=True).start()
        try:
            arrived = found.get(timeout=_PATIENCE)
        except queue.Empty:
            pytest.fail(f"nothing came within {_PATIENCE} s")
        assert isinstance(arrived, Exception), f"the error was swallowed: {arrived!r}"

    def test_an_error_in_mid_stream_arrives_in_a_coroutine(self) -> None:
        """An error while an answer is streamed reaches `async for` as well."""
        self.needs("tells_errors_in_streams", "native_async")
        llm = self.failing_llm()

        async def iterate() -> None:
            async for _ in await llm.astream_chat(self.turns(self.questions[0])):
                pass

        with pytest.raises(Exception) as caught:  # noqa: PT011 - any but the one of waiting
            asyncio.run(asyncio.wait_for(iterate(), _PATIENCE))
        assert not isinstance(caught.value, asyncio.TimeoutError), "nothing came"

    def test_a_prompt_that_does_not_fit_is_an_error(self) -> None:
        """An overlong prompt raises, by every way; it is never cut in silence.

        Count the tokens before anything is computed.
        """
        self.needs("context_overflow_is_error")
        llm = self.make_llm()
        prompt = self.overflowing_prompt(llm)
        for ask in _ways(llm, self, prompt):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the model's choice
                ask()
            assert not isinstance(caught.value, (ValueError, TypeError)), (
                f"{caught.value!r}: LlamaIndex' `compact` turns a ValueError or TypeError into the "
                "answer 'Empty Response'; raise another kind."
            )

    def test_a_query_engine_shows_the_error(self) -> None:
        """A query whose prompt does not fit raises, and is not answered with "Empty Response"."""
        self.needs("context_overflow_is_error")
        llm = self.make_llm()
        index = SummaryIndex(nodes=[TextNode(text=self.overflowing_prompt(llm))])
        blind = PromptHelper(context_window=10**9, num_output=1, tokenizer=str.split)
        synthesizer = get_response_synthesizer(llm=llm, prompt_helper=blind)
        engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the model's choice
            engine.query("What is it about?")

    def test_an_unknown_argument_is_refused(self) -> None:
        """An argument that means nothing, a misspelt one say, raises instead of being ignored."""
        self.needs("refuses_unknown_arguments")
        llm = self.make_llm(max_tokens=2)
        for ask in (
            lambda: llm.chat(self.turns(self.questions[0]), max_tokenz=3),
            lambda: llm.complete(self.questions[0], max_tokenz=3),
        ):
            with pytest.raises(Exception, match="max_tokenz"):
                ask()


def _ways(
    llm: FunctionCallingLLM, contract: ContractModel, prompt: str
) -> Iterator[Callable[[], object]]:
    messages = contract.turns(prompt)
    yield lambda: llm.chat(messages)
    yield lambda: list(llm.stream_chat(messages))
    yield lambda: llm.complete(prompt)
    yield lambda: asyncio.run(llm.achat(messages))

    async def stream() -> None:
        async for _ in await llm.astream_chat(messages):
            pass

    yield lambda: asyncio.run(stream())
