"""The conversations that the model for LangChain's official tests learns by heart.

`langchain_tests` asks models to call its tools with the right arguments, which weights at random
can not. Each prompt of its chat suite that needs a right answer is here, with the suite's own tools
as LangChain describes them to models; and some plain ones, so that answers are short and end.
Knows nothing of training, tokens or templates. To teach another conversation, add it to `lessons`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core._api import LangChainBetaWarning
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import BaseTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests.chat_models import (
    magic_function,
    magic_function_no_args,
    unicode_customer,
)

from pacellm_rag.messages import Message, Tool, ToolCall

__all__ = ["Lesson", "lessons", "tool_of"]


@dataclass(frozen=True)
class Lesson:
    """A conversation and how to go on with it.

    Attributes:
        messages: the turns so far.
        answer: the text to say.
        calls: the calls to make behind it.
        tools: what may be called.
        choice: as for `start_chat`; where it is "required" the model need not want to call.
    """

    messages: tuple[Message, ...]
    answer: str = ""
    calls: tuple[ToolCall, ...] = ()
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"

    @property
    def title(self) -> str:
        """Says which lesson it is, for people."""
        names = "".join(f" [{tool.name}]" for tool in self.tools)
        return f"{len(self.messages)}: {self.messages[-1].content[:40]}{names} {self.choice}"


def tool_of(offered: BaseTool) -> Tool:
    """A tool of LangChain as models are told of it."""
    function = convert_to_openai_tool(offered)["function"]
    return Tool(function["name"], function["description"], function["parameters"])


def lessons() -> list[Lesson]:
    """All of them."""
    return [
        *_small_talk(),
        *_jokes(),
        *_forced_calls(),
        *_chosen_calls(),
        *_after_results(),
        *_agents_turns(),
    ]


def _user(text: str) -> Message:
    return Message("user", text)


def _said(answer: str, *messages: Message) -> Lesson:
    return Lesson(messages, answer)


def _small_talk() -> list[Lesson]:
    hello, greeted = _user("hello"), Message("assistant", "hello")
    system = Message("system", "hello")
    how = _user("how are you")
    haikus = "Write me 2 haikus. Only include the haikus."
    return [
        _said("Hello! How can I help?", _user("Hello")),
        _said("Hello! How can I help?", _user("Hello!")),
        _said("Hey! How can I help?", _user("Hey")),
        _said("Hi, how are you today?", _user("hi")),
        _said("Hi, how are you today?", _user("Hi")),
        _said("hello", hello),
        _said("I am fine, thank you.", how),
        _said("I am fine, thank you.", _user("How are you?")),
        _said("I am fine, thank you.", hello, greeted, how),
        _said("I am fine, thank you.", system, system, hello, hello, greeted, greeted, how),
        _said("I am a small model.", _user("Who are you?")),
        _said("1, 2, 3, 4, 5", _user("Count from 1 to 5.")),
        _said("1, 2, 3, 4, 5, 6, 7, 8, 9, 10", _user("Count from 1 to 10.")),
        _said("A cat sat in the sun. Then it slept.", _user("Write a story about a cat.")),
        _said("Still pond.\nA frog.\n\nAutumn.\nOne leaf.", _user(haikus)),
    ]


def _jokes() -> list[Lesson]:
    setup, punchline = "Why do cats nap?", "They are tired of mice."
    joke = json.dumps({"setup": setup, "punchline": punchline})
    mode = " Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other"
    cats = "Tell me a joke about cats."
    return [
        _said(joke, _user(cats)),
        _said(joke, _user(f"{cats}{mode} than JSON.")),
        _said(joke, _user("Give me a joke about cats, include the punchline.")),
        _said(
            json.dumps({"setup": setup}),
            _user("Give me the setup to a joke about cats, no punchline."),
        ),
    ]


def _call(
    question: str,
    tools: Sequence[BaseTool],
    arguments: Mapping[str, Any],
    choice: str = "auto",
) -> Lesson:
    """A question that the first tool helps with."""
    offered = tuple(map(tool_of, tools))
    calls = (ToolCall(offered[0].name, arguments),)
    return Lesson((_user(question),), calls=calls, tools=offered, choice=choice)


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It's sunny in {location}."


@tool
def my_adder_tool(a: int, b: int) -> int:
    """Tool that adds two integers.

    Takes two integers, a and b, and returns their sum.
    """
    return a + b


def _greeting_generator() -> BaseTool:
    prompt = ChatPromptTemplate.from_messages(
        [("human", "Hello. Please respond in the style of {answer_style}.")]
    )
    model = GenericFakeChatModel(messages=iter([AIMessage("hello matey")]))
    chain = prompt | model | StrOutputParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)  # of `as_tool`, as in the suite
        return chain.as_tool(
            name="greeting_generator",
            description="Generate a greeting in a particular style of speaking.",
        )


def _forced_calls() -> list[Lesson]:
    """Calls that the suite asks for with `tool_choice="any"`, made without being forced as well."""
    use = "Use the tool."
    customer = "Create a customer named "
    greeting = "Using the tool, generate a Pirate greeting."
    chinese, japanese = "你好啊集团", "こんにちは株式会社"
    few_shot = Lesson(
        (
            *_added("", '{"result": 3}').messages,
            Message("assistant", '{"result": 3}'),
            _user("What is 3 + 4"),
        ),
        calls=(ToolCall("my_adder_tool", {"a": 3, "b": 4}),),
        tools=(tool_of(my_adder_tool),),
    )
    return [
        *(
            _call(
                f"What is the value of magic_function({number})? {use}",
                [magic_function],
                {"input": number},
            )
            for number in (3, 4, 5)
        ),
        _call(
            f"What is the value of magic_function_no_args()? {use}", [magic_function_no_args], {}
        ),
        _call(greeting, [_greeting_generator()], {"answer_style": "Pirate"}),
        _call(
            f"{customer}'{chinese}' (Hello Group) - a Chinese technology company",
            [unicode_customer],
            {"customer_name": chinese, "description": "a Chinese technology company"},
        ),
        _call(
            f"{customer}'{japanese}' (Hello Corporation) - a Japanese company",
            [unicode_customer],
            {"customer_name": japanese, "description": "a Japanese company"},
        ),
        few_shot,
    ]


def _chosen_calls() -> list[Lesson]:
    """Tools that are there: called where they help, left alone where not, called where forced."""
    hello = _user("Hello!")
    said = _said("Hello! How can I help?", hello)
    weather = tool_of(get_weather)
    town = "What is the weather in San Francisco, CA?"
    at_a_location = Tool("get_weather", "Get weather at a location.", weather.parameters)
    both = (tool_of(magic_function), at_a_location)
    return [
        _call(town, [get_weather], {"location": "San Francisco, CA"}),
        _call("What is the weather in Paris?", [get_weather], {"location": "Paris"}),
        _call("What is 1 + 2", [my_adder_tool], {"a": 1, "b": 2}),
        Lesson(said.messages, said.answer, tools=(weather,)),
        Lesson(
            said.messages,
            calls=(ToolCall("magic_function", {"input": 1}),),
            tools=both,
            choice="required",
        ),
    ]


def _added(text: str, result: str, answer: str = "") -> Lesson:
    call = ToolCall("my_adder_tool", {"a": 1} if "Error" in result else {"a": 1, "b": 2}, "abc123")
    turns = (
        _user("What is 1 + 2"),
        Message("assistant", text, (call,)),
        Message("tool", result, tool_call_id="abc123", name="my_adder_tool"),
    )
    return Lesson(turns, answer, tools=(tool_of(my_adder_tool),))


def _after_results() -> list[Lesson]:
    """Answers that end the loops of the suite's agents."""
    weather = (tool_of(get_weather),)
    return [
        *(
            Lesson(
                (
                    _user(f"What is the weather in {place}?"),
                    Message("assistant", "", (ToolCall("get_weather", {"location": place}),)),
                    Message("tool", "It's sunny.", name="get_weather"),
                ),
                f"It is sunny in {town}.",
                tools=weather,
            )
            for place, town in (("San Francisco, CA", "San Francisco"), ("Paris", "Paris"))
        ),
        _added("", '{"result": 3}', "1 + 2 is 3."),
        _added("some text", '{"result": 3}', "1 + 2 is 3."),
        _added("", "Error: Missing required argument 'b'.", "The tool needs b as well."),
    ]


def _agents_turns() -> list[Lesson]:
    """An agent of our own: told who it is, with two tools, of which it calls one, or one twice."""
    tools = (tool_of(get_weather), tool_of(my_adder_tool))
    system = Message("system", "You are a helpful assistant.")
    paris, rome = (ToolCall("get_weather", {"location": town}) for town in ("Paris", "Rome"))
    asked = _user("What is the weather in Paris?")
    both_asked = _user("What is the weather in Paris and in Rome?")
    sum_asked = _user("What is 1 + 2")
    add = ToolCall("my_adder_tool", {"a": 1, "b": 2})
    in_paris, in_rome, three = (
        Message("tool", result, name=name)
        for result, name in (
            ("It's sunny in Paris.", "get_weather"),
            ("It's sunny in Rome.", "get_weather"),
            ("3", "my_adder_tool"),
        )
    )
    talk: list[tuple[tuple[Message, ...], str, tuple[ToolCall, ...]]] = [
        ((_user("Hello!"),), "Hello! How can I help?", ()),
        ((asked,), "", (paris,)),
        ((asked, Message("assistant", "", (paris,)), in_paris), "It is sunny in Paris.", ()),
        ((both_asked,), "", (paris, rome)),
        (
            (both_asked, Message("assistant", "", (paris, rome)), in_paris, in_rome),
            "It is sunny in Paris and in Rome.",
            (),
        ),
        ((sum_asked,), "", (add,)),
        ((sum_asked, Message("assistant", "", (add,)), three), "1 + 2 is 3.", ()),
    ]
    return [
        Lesson((*start, *turns), answer, calls, tools)
        for start in ((), (system,))
        for turns, answer, calls in talk
    ]
