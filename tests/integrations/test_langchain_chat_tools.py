"""ChatPaceLLM's tools and structured output: every form of asking for them, enforced."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pydantic.v1
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import ModelInvalidRequestError, OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from langchain_pacellm import ChatPaceLLM
from langchain_pacellm.messages import to_tool_choice
from langchain_pacellm.structured_output import to_constraint
from pacellm_rag import PaceConfig
from pacellm_rag.models.model import PaceModel
from pacellm_rag.testing import ScriptedModel

Tiny = Callable[..., PaceModel]
METHODS = ["json_schema", "function_calling", "json_mode"]


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@tool
def greet(name: str) -> str:
    """Greets."""
    return f"Hello {name}"


class Person(BaseModel):
    """Somebody."""

    name: str = Field(description="The name.", max_length=8)
    age: int = Field(ge=0, le=150)
    nick: str | None = Field(default=None, max_length=4)


class OldPerson(pydantic.v1.BaseModel):
    name: str
    age: int


class PersonDict(TypedDict):
    """Somebody."""

    name: str
    age: int


@pytest.fixture(params=[None, PaceConfig(layers=(0, 2), slots=16, window=20)], ids=["", "bank"])
def chat(tiny: Tiny, request: pytest.FixtureRequest) -> ChatPaceLLM:
    return ChatPaceLLM(engine=tiny("llama", pace=request.param), max_tokens=150)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, "auto"),
        ("auto", "auto"),
        (False, "auto"),
        ({"type": "auto"}, "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ({"type": "any"}, "required"),
        ("add", "add"),
        ({"type": "function", "function": {"name": "add"}}, "add"),
        ({"type": "tool", "name": "add"}, "add"),
    ],
)
def test_every_form_of_tool_choice_is_understood(choice: Any, meant: str) -> None:
    assert to_tool_choice(choice, ["add", "greet"]) == meant


@pytest.mark.parametrize("choice", ["subtract", {"type": "function"}, 7, {}])
def test_a_choice_of_a_tool_that_there_is_not_is_refused_when_it_is_bound(choice: Any) -> None:
    with pytest.raises(ModelInvalidRequestError, match="add, greet"):
        ChatPaceLLM(engine=ScriptedModel()).bind_tools([add, greet], tool_choice=choice)


@pytest.mark.parametrize("choice", ["any", True, "greet", {"type": "tool", "name": "greet"}])
def test_a_forced_call_is_made_with_arguments_of_its_schema(chat: ChatPaceLLM, choice: Any) -> None:
    answer = chat.bind_tools([add, greet], tool_choice=choice).invoke("Hello!")
    assert answer.tool_calls
    assert answer.invalid_tool_calls == []
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    for call in answer.tool_calls:
        if choice not in ("any", True):
            assert call["name"] == "greet"
        {"add": add, "greet": greet}[call["name"]].invoke(call["args"])


def test_no_call_is_made_where_none_is_allowed(chat: ChatPaceLLM) -> None:
    told = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    scripted = ChatPaceLLM(engine=ScriptedModel([told]))
    assert scripted.bind_tools([add]).invoke("Hi").tool_calls
    answer = scripted.bind_tools([add], tool_choice="none").invoke("Hi")
    assert answer.tool_calls == []
    assert answer.text == told


def test_one_call_at_most_where_several_are_not_wanted(chat: ChatPaceLLM) -> None:
    bound = chat.bind_tools([add], tool_choice="any", parallel_tool_calls=False)
    assert len(bound.invoke("Hello!").tool_calls) == 1


@pytest.mark.parametrize(
    "offered", [{"type": "web_search"}, {"nonsense": 1}, 7, {"type": "function"}], ids=str
)
def test_what_is_no_tool_or_runs_elsewhere_is_refused(offered: Any) -> None:
    with pytest.raises(ModelInvalidRequestError, match="tool"):
        ChatPaceLLM(engine=ScriptedModel()).bind_tools([offered])


def test_tools_may_be_given_to_a_call_as_they_are() -> None:
    told = '<tool_call>\n{"name": "Person", "arguments": {"name": "Ada", "age": 36}}\n</tool_call>'
    chat = ChatPaceLLM(engine=ScriptedModel([told]))
    answer = chat.invoke("Who?", tools=[Person, add], tool_choice="any")
    assert answer.tool_calls[0]["args"] == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strict", [None, True, False])
async def test_a_class_gives_its_objects(
    chat: ChatPaceLLM, method: Any, strict: bool | None
) -> None:
    chain = chat.with_structured_output(Person, method=method, strict=strict)
    person = chain.invoke("Who is there?")
    assert isinstance(person, Person)
    assert await chain.ainvoke("Who is there?") == person
    *_, last = chain.stream("Who is there?")
    assert last == person


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "schema",
    [PersonDict, Person.model_json_schema(), OldPerson.schema(), {"properties": {"age": {}}}],
    ids=["typeddict", "schema", "old schema", "untitled"],
)
def test_a_schema_gives_dicts_without_other_keys(
    chat: ChatPaceLLM, method: Any, schema: Any
) -> None:
    found = chat.with_structured_output(schema, method=method).invoke("Who is there?")
    assert isinstance(found, dict)
    assert set(found) <= {"name", "age", "nick"}


@pytest.mark.parametrize("method", METHODS)
def test_a_class_of_pydantic_1_gives_its_objects(chat: ChatPaceLLM, method: Any) -> None:
    person = chat.with_structured_output(OldPerson, method=method).invoke("Who is there?")
    assert isinstance(person, OldPerson)


@pytest.mark.parametrize("method", METHODS)
def test_the_raw_message_comes_beside_what_was_made_of_it(chat: ChatPaceLLM, method: Any) -> None:
    chain = chat.with_structured_output(Person, method=method, include_raw=True)
    found = chain.invoke("Who is there?")
    assert isinstance(found["raw"], AIMessage)
    assert isinstance(found["parsed"], Person)
    assert found["parsing_error"] is None


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_an_answer_that_does_not_parse_is_told_or_raised(method: Any) -> None:
    chat = ChatPaceLLM(engine=ScriptedModel(["No JSON."]))
    with pytest.raises(OutputParserException):
        chat.with_structured_output(Person, method=method).invoke("Who?")
    chain = chat.with_structured_output(Person, method=method, include_raw=True)
    found = chain.invoke("Who?")
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], OutputParserException)
    assert found["raw"].text == "No JSON."


def test_json_mode_without_a_schema_gives_any_object(chat: ChatPaceLLM) -> None:
    found = chat.with_structured_output(method="json_mode").invoke("Who is there?")
    assert isinstance(found, dict)


def test_a_method_that_there_is_not_and_a_missing_schema_are_refused() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel())
    with pytest.raises(ModelInvalidRequestError, match="json_schema, function_calling"):
        chat.with_structured_output(Person, method="magic")  # type: ignore[arg-type]
    with pytest.raises(ModelInvalidRequestError, match="no schema"):
        chat.with_structured_output(None)
    with pytest.raises(ModelInvalidRequestError, match="is no schema"):
        chat.with_structured_output(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            {"type": "array"},
        ),
        (
            {"properties": {"a": {"properties": {"properties": {"type": "string"}}}}},
            {
                "properties": {
                    "a": {
                        "properties": {"properties": {"type": "string"}},
                        "additionalProperties": False,
                        "type": "object",
                    }
                },
                "additionalProperties": False,
                "type": "object",
            },
        ),
        (
            {"properties": {}, "additionalProperties": {"type": "string"}},
            {"properties": {}, "additionalProperties": {"type": "string"}, "type": "object"},
        ),
        (
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        ),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": False, "schema": {"properties": {}}},
            },
            {"properties": {}},
        ),
    ],
)
def test_a_response_format_asks_for_a_schema(given: Any, schema: Any) -> None:
    constraint = to_constraint(given)
    assert (None if constraint is None else constraint.schema) == schema


@pytest.mark.parametrize(
    "given",
    [{"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}, "json"],
)
def test_a_response_format_that_says_nothing_is_refused(given: Any) -> None:
    with pytest.raises(ModelInvalidRequestError):
        ChatPaceLLM(engine=ScriptedModel()).invoke("Hi", response_format=given)


@pytest.mark.parametrize("tools", [[], [add]], ids=["alone", "with tools"])
def test_a_response_format_is_kept_to_beside_tools(chat: ChatPaceLLM, tools: list[Any]) -> None:
    spec = ProviderStrategy(Person).to_model_kwargs()
    answer = chat.bind_tools(tools, **spec).invoke("Who is there?")
    if not answer.tool_calls:
        Person(**json.loads(answer.text))
    assert bool(answer.tool_calls) != bool(answer.text)


@pytest.mark.parametrize("strategy", [Person, ProviderStrategy(Person), ToolStrategy(Person)])
def test_an_agent_answers_in_a_form(chat: ChatPaceLLM, strategy: Any) -> None:
    agent = create_agent(chat, [], response_format=strategy)
    found = agent.invoke({"messages": [("user", "Who is there?")]})
    assert isinstance(found["structured_response"], Person)


def test_an_agent_calls_a_tool_and_goes_on_with_its_result() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    engine = ScriptedModel([call, "It is 3."])
    agent = create_agent(ChatPaceLLM(engine=engine), [add], system_prompt="Be exact.")
    messages = agent.invoke({"messages": [("user", "1 + 2?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].content == "3"
    assert messages[-1].text == "It is 3."


class Node(BaseModel):
    kind: Literal["leaf", "tree"]
    children: list[Node] = Field(default_factory=list, max_length=2)


def test_a_schema_that_refers_to_itself_is_enforced(chat: ChatPaceLLM) -> None:
    assert isinstance(chat.with_structured_output(Node).invoke("Grow."), Node)
