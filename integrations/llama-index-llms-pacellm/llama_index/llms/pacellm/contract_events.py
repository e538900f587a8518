"""Contract: what observers see. Every call begins and ends, with its answer and its tokens.

Each test's docstring says what it demands, and how to mend a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

from llama_index.llms.pacellm.contract_model import ContractModel

__all__ = ["EventContract"]


class _Recorder(BaseEventHandler):
    """Remembers every event."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._events.append(event)

    def names(self, part: str) -> list[str]:
        """Names of the events of chats or completions, and of exceptions, in their order."""
        names = [type(event).__name__ for event in self._events]
        return [n for n in names if n.startswith(f"LLM{part}") or n == "ExceptionEvent"]


@contextlib.contextmanager
def _recorded() -> Iterator[_Recorder]:
    root, recorder = get_dispatcher(), _Recorder()
    root.add_event_handler(recorder)
    try:
        yield recorder
    finally:
        root.event_handlers.remove(recorder)


class EventContract(ContractModel):
    """Instrumentation events, legacy callbacks, counts of tokens."""

    def test_every_call_has_a_start_and_an_end(self) -> None:
        """`chat`, `complete`, and their async twins emit a start event and an end event.

        Decorate them with `llm_chat_callback()` and `llm_completion_callback()`.
        """
        llm, question = self.make_llm(max_tokens=4), self.questions[0]
        messages = self.turns(question)
        for part, call in (
            ("Chat", lambda: llm.chat(messages)),
            ("Chat", lambda: asyncio.run(llm.achat(messages))),
            ("Completion", lambda: llm.complete(question)),
            ("Completion", lambda: asyncio.run(llm.acomplete(question))),
        ):
            with _recorded() as recorder:
                response: Any = call()
            assert recorder.names(part) == [f"LLM{part}StartEvent", f"LLM{part}EndEvent"]
            end: Any = recorder._events[-1]
            assert end.response == response

    def test_every_piece_of_a_stream_has_an_event(self) -> None:
        """A stream emits a start, one event in progress for each piece, and an end with the last.

        Return a real generator: LlamaIndex sends no end event for any other iterator.
        """
        llm, question = self.make_llm(max_tokens=6), self.questions[0]
        messages = self.turns(question)

        async def pieces(stream: Any) -> list[Any]:
            return [piece async for piece in await stream]

        for part, call in (
            ("Chat", lambda: list(llm.stream_chat(messages))),
            ("Chat", lambda: asyncio.run(pieces(llm.astream_chat(messages)))),
            ("Completion", lambda: list(llm.stream_complete(question))),
            ("Completion", lambda: asyncio.run(pieces(llm.astream_complete(question)))),
        ):
            with _recorded() as recorder:
                responses: Any = call()
            assert recorder.names(part) == [
                f"LLM{part}StartEvent",
                *[f"LLM{part}InProgressEvent"] * len(responses),
                f"LLM{part}EndEvent",
            ]
            end: Any = next(e for e in recorder._events if type(e).__name__.endswith("EndEvent"))
            assert end.response == responses[-1]

    def test_a_stream_that_is_closed_ends_for_observers_too(self) -> None:
        """A stream closed early tells its observers; none waits for an end for ever."""
        llm = self.make_llm(max_tokens=8)
        counter = self.counter(llm)
        with _recorded() as recorder:
            stream = llm.stream_chat(self.turns(self.questions[0]))
            next(stream)
            stream.close()
        assert recorder.names("Chat") == [
            "LLMChatStartEvent",
            "LLMChatInProgressEvent",
            "ExceptionEvent",
        ]
        assert isinstance(counter, TokenCountingHandler)

    def test_token_counts_are_the_usage(self) -> None:
        """`TokenCountingHandler` counts what the model itself counted, streamed or not.

        It reads raw["usage"] of the last response, and guesses with tiktoken without it.
        """
        self.needs("returns_usage")
        llm, question = self.make_llm(max_tokens=7), self.questions[1]
        counter = self.counter(llm)
        messages = self.turns(question)

        async def ask() -> list[Any]:
            stream = [response async for response in await llm.astream_chat(messages)]
            return [stream[-1], await llm.acomplete(question)]

        *_, streamed = llm.stream_chat(messages)
        responses = [llm.chat(messages), llm.complete(question), streamed, *asyncio.run(ask())]
        usages = [self.usage(response) for response in responses]
        assert counter.prompt_llm_token_count == sum(u["prompt_tokens"] for u in usages)
        assert counter.completion_llm_token_count == sum(u["completion_tokens"] for u in usages)
        assert len(counter.llm_token_counts) == len(responses)

    @staticmethod
    def counter(llm: FunctionCallingLLM) -> TokenCountingHandler:
        """A counter of the LLM's tokens whose own guess would be far off."""
        counter = TokenCountingHandler(tokenizer=lambda _: [0] * 1_000_000)
        llm.callback_manager = CallbackManager([counter])
        return counter
