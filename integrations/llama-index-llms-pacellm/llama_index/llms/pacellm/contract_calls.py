"""Contract: calls of tools, and answers that are objects.

Each test's docstring says what it demands, and how to mend a failure.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

from llama_index.llms.pacellm.contract_model import ContractModel

__all__ = ["CallContract"]


def _multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def _now() -> str:
    """Tells the time."""
    return "noon"


class _Stop(BaseModel):
    name: str = Field(description="The stop's name.")
    minutes: int


class _Route(BaseModel):
    """A bus route."""

    line: str
    stops: list[_Stop] = Field(max_length=2)


class CallContract(ContractModel):
    """Tools and structured output."""

    @property
    def tools(self) -> list[FunctionTool]:
        """Two tools, the second without arguments."""
        return [
            FunctionTool.from_defaults(_multiply, name="multiply"),
            FunctionTool.from_defaults(_now, name="now"),
        ]

    def checked(self, calls: list[ToolSelection]) -> None:
        """Checks that there are calls of the tools, with the arguments that these take."""
        assert calls, "no tool was called although one was required"
        for call in calls:
            assert call.tool_id, "a call has no id"
            assert isinstance(call.tool_kwargs, dict)
            if call.tool_name == "multiply":
                assert set(call.tool_kwargs) == {"a", "b"}
                assert all(isinstance(value, int) for value in call.tool_kwargs.values())
            else:
                assert (call.tool_name, call.tool_kwargs) == ("now", {})

    def test_a_required_tool_is_called_by_every_way(self) -> None:
        """With `tool_required=True` the answer is a call, sync, async and streamed.

        Name `tool_required` in the signature of `_prepare_chat_with_tools`, or LlamaIndex does not
        pass it on.
        """
        self.needs("has_tools")
        llm, tools = self.make_llm(), self.tools
        question: dict[str, Any] = {"user_msg": "What is 6 times 7?", "tool_required": True}

        async def ask() -> list[Any]:
            stream = await llm.astream_chat_with_tools(tools, **question)
            responses = [response async for response in stream]
            return [await llm.achat_with_tools(tools, **question), responses[-1]]

        *_, streamed = llm.stream_chat_with_tools(tools, **question)
        for response in [llm.chat_with_tools(tools, **question), streamed, *asyncio.run(ask())]:
            self.checked(llm.get_tool_calls_from_response(response))

    def test_calls_stand_where_llama_index_looks_for_them(self) -> None:
        """Calls are `ToolCallBlock`s of the message, and in additional_kwargs["tool_calls"].

        The agents read the blocks; `FunctionCallingProgram` still reads the dictionary.
        """
        self.needs("has_tools")
        response = self.make_llm().chat_with_tools(self.tools, "6 times 7?", tool_required=True)
        blocks = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        assert blocks
        assert len(response.message.additional_kwargs["tool_calls"]) == len(blocks)

    def test_a_tool_that_is_named_is_called(self) -> None:
        """`tool_choice` with a tool's name makes it that tool, its arguments as its schema says."""
        self.needs("has_tools")
        llm = self.make_llm()
        for name in ("now", "multiply"):
            response = llm.chat_with_tools(self.tools, "And now?", tool_choice=name)
            (call,) = llm.get_tool_calls_from_response(response)
            assert call.tool_name == name
            self.checked([call])

    def test_one_call_where_one_is_allowed(self) -> None:
        """Without `allow_parallel_tool_calls` there is one call, as `predict_and_call` demands."""
        self.needs("has_tools")
        llm = self.make_llm()
        answer = llm.predict_and_call(
            [self.tools[1]], "What time is it?", tool_required=True, error_on_tool_error=True
        )
        assert [source.content for source in answer.sources] == ["noon"]

        async def ask() -> list[str]:
            answer = await llm.apredict_and_call(
                [self.tools[1]], "What time is it?", tool_required=True, error_on_tool_error=True
            )
            return [source.content for source in answer.sources]

        assert asyncio.run(ask()) == ["noon"]

    def test_no_call_is_an_empty_list_or_an_error(self) -> None:
        """`get_tool_calls_from_response` of a plain answer gives [], or raises where asked to."""
        self.needs("has_tools")
        llm = self.make_llm(max_tokens=4)
        response = llm.chat(self.turns(self.questions[0]))
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the model's choice
            llm.get_tool_calls_from_response(response)

    def test_results_of_tools_are_taken_back(self) -> None:
        """A conversation with a call and its result goes on, as agents write it."""
        self.needs("has_tools")
        llm = self.make_llm()
        asked = self.turns("What is 6 times 7?")
        response = llm.chat_with_tools(self.tools, chat_history=asked, tool_required=True)
        results = [
            ChatMessage(
                role=MessageRole.TOOL, content="42", additional_kwargs={"tool_call_id": c.tool_id}
            )
            for c in llm.get_tool_calls_from_response(response)
        ]
        history = [*asked, response.message, *results]
        assert llm.chat_with_tools(self.tools, chat_history=history).message is not None

    def test_an_object_of_a_class_is_predicted_by_every_way(self) -> None:
        """The four structured predictions give the class, streams at last.

        `FunctionCallingProgram.stream_call` requires no tool, so that a model which volunteers no
        call gives empty objects: override `stream_structured_predict`.
        """
        self.needs("has_structured_output")
        llm = self.make_llm(max_tokens=self.longest_answer)
        prompt = PromptTemplate("Which bus goes to {place}?")

        async def ask() -> list[Any]:
            stream = await llm.astream_structured_predict(_Route, prompt, place="the station")
            found = [route async for route in stream]
            return [await llm.astructured_predict(_Route, prompt, place="the station"), found[-1]]

        *partial, streamed = llm.stream_structured_predict(_Route, prompt, place="the station")
        whole = llm.structured_predict(_Route, prompt, place="the station")
        for route in [whole, streamed, *asyncio.run(ask())]:
            assert isinstance(route, _Route)
            assert route == whole
        assert partial, "the object came all at once; yield it as it grows"
        assert any(getattr(route, "line", None) for route in partial)

    def test_a_structured_llm_answers_in_json(self) -> None:
        """`as_structured_llm` gives the class as JSON, and the object as `raw`."""
        self.needs("has_structured_output")
        llm = self.make_llm(max_tokens=self.longest_answer).as_structured_llm(_Stop)
        messages = self.turns("Where does it stop?")
        response = llm.chat(messages)
        assert _Stop.model_validate_json(self.text(response)) == response.raw
        with warnings.catch_warnings():  # of LlamaIndex' own use of pydantic's `json`
            warnings.simplefilter("ignore", DeprecationWarning)
            *_, streamed = llm.stream_chat(messages)
        assert streamed.raw == response.raw
