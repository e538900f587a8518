"""What the contract suite must know of a model before it can try it: hooks and switches.

Knows pytest and LlamaIndex' LLM interface; knows nothing of PaceLLM.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM

__all__ = ["ContractModel"]


class ContractModel:
    """Hooks and switches, for subclasses to override.

    Every switch begins on the strict side. Turn one off where your model can not do the thing; the
    tests of it are skipped then, and the skip names the switch.

    Attributes:
        questions: at least three different prompts whose greedy answers have a dozen characters or
            more.
        has_tools: calls tools, and can be made to.
        has_structured_output: answers with objects of pydantic classes.
        returns_usage: final responses have raw["usage"].
        reuses_prefixes: a second question about the same text is answered from what is read, and
            the usage says so.
        supports_stop: honours `stop`, of the constructor and of a call.
        supports_max_tokens: honours `max_tokens`, of the constructor and of a call.
        context_overflow_is_error: a prompt that does not fit raises.
        native_async: async methods leave the event loop free, and can be cancelled.
        stops_when_closed: a stream that is closed computes no further.
        tells_errors_in_streams: an error in mid-stream reaches who iterates.
        refuses_unknown_arguments: an argument of a call that means nothing raises.
        pickles_without_weights: copies and pickles hold settings only.
        longest_answer: tokens that let an answer take a few tenths of a second at least.
        paragraphs: of the text that two questions share; more where what was read is kept in large
            steps.
    """

    questions: tuple[str, ...] = (
        "Tell me about the sea.",
        "What is a bridge made of?",
        "Name three rivers.",
    )
    has_tools: bool = True
    has_structured_output: bool = True
    returns_usage: bool = True
    reuses_prefixes: bool = True
    supports_stop: bool = True
    supports_max_tokens: bool = True
    context_overflow_is_error: bool = True
    native_async: bool = True
    stops_when_closed: bool = True
    tells_errors_in_streams: bool = True
    refuses_unknown_arguments: bool = True
    pickles_without_weights: bool = True
    longest_answer: int = 256
    paragraphs: int = 60

    def make_llm(self, **settings: Any) -> FunctionCallingLLM:
        """Makes the LLM, decoding greedily.

        Args:
            settings: `max_tokens` and `stop`, where a test sets them; map them to your names.
        """
        raise NotImplementedError("Override make_llm(self, **settings) to return your LLM.")

    def call_arguments(self, **settings: Any) -> dict[str, Any]:
        """The arguments of a call for `max_tokens` and `stop`; override where yours differ."""
        return settings

    def failing_llm(self) -> FunctionCallingLLM:
        """Makes an LLM whose model breaks after an answer's first pieces."""
        raise NotImplementedError(
            "Override failing_llm(self), or set tells_errors_in_streams = False."
        )

    def work_done(self, llm: FunctionCallingLLM) -> int:
        """A number that grows with everything the model computes, such as its forward passes."""
        raise NotImplementedError(
            "Override work_done(self, llm), or set stops_when_closed = False."
        )

    def overflowing_prompt(self, llm: FunctionCallingLLM) -> str:
        """A prompt of more tokens than the model takes."""
        return "word and " * llm.metadata.context_window

    def needs(self, *switches: str) -> None:
        """Skips the test that calls it where a switch is off."""
        for switch in switches:
            if not getattr(self, switch):
                pytest.skip(f"{switch} is off")

    @staticmethod
    def turns(*contents: str) -> list[ChatMessage]:
        """A conversation that the user begins and ends."""
        roles = (MessageRole.USER, MessageRole.ASSISTANT)
        return [ChatMessage(role=roles[i % 2], content=text) for i, text in enumerate(contents)]

    @staticmethod
    def usage(response: Any) -> dict[str, Any]:
        """The usage of a final response, which must be there."""
        raw = response.raw
        assert isinstance(raw, dict), (
            f"response.raw is {raw!r}; put a dictionary with 'usage' there, for it is where "
            "TokenCountingHandler looks."
        )
        usage = cast("dict[str, Any]", raw.get("usage") or {})
        assert usage, "raw['usage'] is missing from the final response."
        return usage

    @staticmethod
    def text(response: ChatResponse) -> str:
        """The text of a response."""
        return response.message.content or ""
