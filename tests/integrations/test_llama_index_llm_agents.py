"""Tools and choices: what LlamaIndex' agents, routers and programs get of PaceLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index.llms.pacellm import PaceLLM
from pacellm_rag.errors import ModelError
from pacellm_rag.messages import ToolCall
from pacellm_rag.testing import ScriptedModel, tiny_model
from pacellm_rag.tool_format import IN_WORDS


def look_up(page: int) -> str:
    """Reads a page."""
    return f"Page {page} says 42."


LOOK_UP = FunctionTool.from_defaults(look_up, name="look up (page)")
CALL = IN_WORDS.write([ToolCall("look up (page)", {"page": 7})])
TWO_CALLS = IN_WORDS.write(
    [ToolCall("look up (page)", {"page": 7}), ToolCall("look up (page)", {"page": 8})]
)
# LlamaIndex' agents look at all attributes of pydantic classes, the deprecated ones included.
OLD_PYDANTIC = pytest.mark.filterwarnings(
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
    "ignore::pydantic.warnings.PydanticDeprecatedSince211",
)


def test_a_call_is_told_in_words_and_found_again() -> None:
    llm = PaceLLM(engine=ScriptedModel([f"Let me see.\n{CALL}"]))
    response = llm.chat_with_tools([LOOK_UP], "What does page 7 say?")
    assert response.message.content == "Let me see.\n"
    assert response.raw["finish_reason"] == "tool_calls"
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("look up (page)", {"page": 7})
    (listed,) = response.message.additional_kwargs["tool_calls"]
    assert listed["id"] == call.tool_id
    assert json.loads(listed["function"]["arguments"]) == {"page": 7}
    assert ChatMessage.model_validate(response.message.model_dump()) == response.message


def test_a_streamed_call_grows_and_ends_whole() -> None:
    llm = PaceLLM(engine=ScriptedModel([CALL]))
    responses = list(llm.stream_chat_with_tools([LOOK_UP], "What does page 7 say?"))
    seen = [llm.get_tool_calls_from_response(r, error_on_no_tool_call=False) for r in responses]
    assert seen[-1][0].tool_kwargs == {"page": 7}
    assert len({calls[0].tool_id for calls in seen if calls}) == 1
    growing = [calls[0].tool_kwargs for calls in seen if calls]
    assert len(growing) > 1
    assert [kwargs for kwargs in growing if kwargs == {}]


def test_one_call_is_left_where_one_is_allowed() -> None:
    llm = PaceLLM(engine=ScriptedModel([TWO_CALLS]))
    one = llm.chat_with_tools([LOOK_UP], "Both?")
    assert [c.tool_kwargs for c in llm.get_tool_calls_from_response(one)] == [{"page": 7}]
    assert len(one.message.additional_kwargs["tool_calls"]) == 1
    both = llm.chat_with_tools([LOOK_UP], "Both?", allow_parallel_tool_calls=True)
    pages = [c.tool_kwargs["page"] for c in llm.get_tool_calls_from_response(both)]
    assert pages == [7, 8]


def test_a_call_that_is_cut_off_is_an_error_and_no_silent_end() -> None:
    llm = PaceLLM(engine=ScriptedModel([f"Hm. {CALL[:-16]}"]))
    response = llm.chat_with_tools([LOOK_UP], "What does page 7 say?")
    assert not [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
    with pytest.raises(ModelError, match=r"The call of 'look up \(page\)' can not be made"):
        llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)


def test_no_call_is_an_error_only_where_one_is_asked_for() -> None:
    llm = PaceLLM(engine=ScriptedModel(["I know it."]))
    response = llm.chat_with_tools([LOOK_UP], "What?", tool_choice="none")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ModelError, match=r"calls no tool; it is 'I know it\.'"):
        llm.get_tool_calls_from_response(response)
    assert llm.chat_with_tools([], "What?").message.content == "I know it."


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("any", True),
        ("required", True),
        (True, True),
        ("look up (page)", True),
        ({"type": "function", "function": {"name": "look up (page)"}}, True),
        ("none", False),
    ],
)
def test_every_form_of_a_tool_choice_is_understood(choice: Any, called: bool) -> None:
    llm = PaceLLM(engine=tiny_model(), max_tokens=90)
    response = llm.chat_with_tools([LOOK_UP], "Page 7?", tool_choice=choice)
    assert bool(llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)) is called


def test_a_tool_choice_of_no_tool_is_refused() -> None:
    llm = PaceLLM(engine=ScriptedModel())
    with pytest.raises(ModelError, match="must be auto, none, required or one of: look up"):
        llm.chat_with_tools([LOOK_UP], "Page 7?", tool_choice="write")


@OLD_PYDANTIC
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_calls_a_tool_and_answers(streaming: bool) -> None:
    model = ScriptedModel([f"Let me see.\n{CALL}", "It says 42."])
    agent = FunctionAgent(
        tools=[LOOK_UP], llm=PaceLLM(engine=model), system_prompt="Answer.", streaming=streaming
    )
    handler = agent.run("What does page 7 say?", memory=ChatMemoryBuffer.from_defaults())
    events = [event async for event in handler.stream_events()]
    response = await handler
    assert str(response) == "It says 42."
    (result,) = [e for e in events if isinstance(e, ToolCallResult)]
    assert result.tool_output.content == "Page 7 says 42."
    deltas = "".join(e.delta for e in events if isinstance(e, AgentStream))
    assert deltas == ("Let me see.\nIt says 42." if streaming else "")
    assert len(model.prompts) == 2


@OLD_PYDANTIC
async def test_an_agent_fails_loudly_on_a_call_that_is_cut_off() -> None:
    llm = PaceLLM(engine=ScriptedModel([CALL[:-16]]))
    agent = FunctionAgent(tools=[LOOK_UP], llm=llm)
    with pytest.raises(Exception, match="can not be made"):
        await agent.run("What does page 7 say?", memory=ChatMemoryBuffer.from_defaults())


class Fact(BaseModel):
    """A fact."""

    year: int


def test_programs_that_call_functions_work_too() -> None:
    llm = PaceLLM(engine=tiny_model(), max_tokens=90)
    program = FunctionCallingProgram.from_defaults(
        Fact, prompt_template_str="When was {x}?", llm=llm
    )
    assert isinstance(program(x="that"), Fact)
    by_mode = PaceLLM(
        engine=llm.text_model, max_tokens=90, pydantic_program_mode=PydanticProgramMode.FUNCTION
    )
    prompt = PromptTemplate("When was {x}?")
    assert by_mode.structured_predict(Fact, prompt, x="that") == program(x="that")


async def test_selectors_choose() -> None:
    choices = ["reads the report", "reads the contract"]
    said = PaceLLM(engine=ScriptedModel(['[{"choice": 2, "reason": "It ends."}]']))
    selector = LLMSingleSelector.from_defaults(llm=said)
    assert selector.select(choices, "When does the contract end?").ind == 1
    assert (await selector.aselect(choices, "When does the contract end?")).ind == 1
    by_tool = IN_WORDS.write([ToolCall("SingleSelection", {"index": 1, "reason": "It costs."})])
    called = PaceLLM(engine=ScriptedModel([by_tool]))
    pydantic = PydanticSingleSelector.from_defaults(llm=called)  # type: ignore[arg-type]
    assert pydantic.select(choices, "What did the year cost?").ind == 0
