"""A turn of a conversation: the same sync and async, with calls, ends and errors as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pacellm_rag.chat import ChatStream, start_chat
from pacellm_rag.constraints import JsonConstraint, ToolConstraint
from pacellm_rag.errors import CancelledError, ConfigurationError, ContextOverflowError
from pacellm_rag.messages import Message, Tool, ToolCall
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel, tiny_model
from pacellm_rag.tool_format import IN_WORDS

ASKED = [Message("user", "Why?")]
F = Tool("f", "does it", {"type": "object", "properties": {"a": {"type": "integer"}}})
G = Tool("g", "", {})
ONE = "Well. " + IN_WORDS.write([ToolCall("f", {"a": 1})])
TWO = IN_WORDS.write([ToolCall("f", {"a": 1}), ToolCall("g", {"x": ["}"]})])
CUT = TWO[: TWO.rindex("]")]
NO_OBJECT = '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>'


def summary(stream: ChatStream) -> dict[str, Any]:
    return {
        "text": stream.text,
        "calls": [(call.name, call.arguments) for call in stream.tool_calls],
        "invalid": [(call.name, call.arguments, call.error) for call in stream.invalid_tool_calls],
        "reason": stream.finish_reason,
        "tokens": (stream.prompt_tokens, stream.completion_tokens, stream.tokens_read),
    }


@pytest.mark.parametrize("answer", ["", "Because.", ONE, TWO, CUT, NO_OBJECT, "<tool_call>\n{"])
@pytest.mark.parametrize("tools", [(), (F, G)])
async def test_sync_equals_async(answer: str, tools: tuple[Tool, ...]) -> None:
    sync = start_chat(ScriptedModel([answer]), ASKED, tools=tools)
    deltas = list(sync)
    other = start_chat(ScriptedModel([answer]), ASKED, tools=tools)
    assert [delta async for delta in other] == deltas
    assert summary(other) == summary(sync)
    assert "".join(delta.text for delta in deltas) == sync.text
    assert all(delta.text or delta.calls for delta in deltas)
    if not tools:
        assert sync.text == answer


@pytest.mark.parametrize(
    ("answer", "reason", "good", "bad"),
    [
        ("Because.", "stop", 0, 0),
        (ONE, "tool_calls", 1, 0),
        (TWO, "tool_calls", 2, 0),
        (CUT, "stop", 1, 1),
        (NO_OBJECT, "stop", 0, 1),
        (ONE.replace('"f"', '""'), "stop", 0, 1),
    ],
)
def test_the_end_is_told_as_it_is(answer: str, reason: str, good: int, bad: int) -> None:
    stream = start_chat(ScriptedModel([answer]), ASKED, tools=[F, G])
    assert stream.finish_reason is None
    list(stream)
    assert (stream.finish_reason, len(stream.tool_calls), len(stream.invalid_tool_calls)) == (
        reason, good, bad,
    )  # fmt: skip
    ids = [call.id for call in (*stream.tool_calls, *stream.invalid_tool_calls)]
    assert ids == stream.call_ids
    assert len(set(ids)) == good + bad


def test_an_answer_that_is_too_long_ends_by_length() -> None:
    few = GenerationOptions(max_new_tokens=2)
    stream = start_chat(ScriptedModel(["one two three"]), ASKED, options=few, tools=[F])
    list(stream)
    assert (stream.text, stream.finish_reason, stream.completion_tokens) == ("one two", "length", 2)


def test_ids_differ_between_answers() -> None:
    model, ids = ScriptedModel([TWO]), list[str]()
    for _ in range(3):
        stream = start_chat(model, ASKED, tools=[F, G])
        list(stream)
        ids += stream.call_ids
    assert len(set(ids)) == 6


def test_closing_stops_the_work_and_may_be_repeated() -> None:
    model = ScriptedModel(["one two three"])
    with start_chat(model, ASKED) as stream:
        assert next(stream).text == "one"
        stream.close()
        stream.close()
        assert list(stream) == []
    assert model.generations[0].closed
    assert stream.finish_reason == "closed"


async def test_closing_in_async_is_the_same() -> None:
    model = ScriptedModel([ONE])
    async with start_chat(model, ASKED, tools=[F]) as stream:
        await anext(stream)
    assert [delta async for delta in stream] == []
    assert model.generations[0].closed
    assert stream.tool_calls == ()


def test_closing_after_the_end_changes_nothing() -> None:
    stream = start_chat(ScriptedModel([ONE]), ASKED, tools=[F])
    list(stream)
    before = summary(stream)
    stream.close()
    assert summary(stream) == before


async def test_an_error_in_the_middle_is_raised_and_ends_the_answer() -> None:
    cancel = threading.Event()
    stream = start_chat(ScriptedModel([CUT]), ASKED, tools=[F, G], cancel=cancel)
    next(stream)
    cancel.set()
    with pytest.raises(CancelledError):
        list(stream)
    assert list(stream) == []
    assert [delta async for delta in stream] == []
    assert stream.finish_reason == "closed"
    assert stream.tool_calls == ()


def test_nothing_is_done_before_the_first_piece_is_asked_for(
    tiny: Callable[..., PaceModel],
) -> None:
    model = tiny()
    start_chat(model, ASKED)
    assert model.engine.idle


@pytest.mark.parametrize(
    ("messages", "more", "told"),
    [
        ([], {}, "no messages"),
        (ASKED, {"tool_choice": "required"}, "no tools"),
        (ASKED, {"tool_choice": "f"}, "'f', but there are no tools"),
        (ASKED, {"tool_choice": "h", "tools": [F, G]}, "'h'; it must be .* f, g"),
        (ASKED, {"tool_choice": "", "tools": [F]}, "it must be"),
    ],
)
def test_what_can_not_work_is_refused(
    messages: list[Message], more: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        start_chat(ScriptedModel(), messages, **more)


def test_too_long_a_conversation_is_refused_with_its_numbers() -> None:
    model = ScriptedModel(context_window=300)
    with pytest.raises(ContextOverflowError, match="take 256") as caught:
        start_chat(model, [Message("user", "word " * 100)])
    assert caught.value.needed_tokens > 300 == caught.value.available_tokens
    assert model.generations == []


def test_tools_decide_what_an_answer_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = ScriptedModel(), list[GenerationOptions]()
    stream = model.stream

    def spy(ids: Any, options: GenerationOptions, **more: Any) -> Any:
        seen.append(options)
        return stream(ids, options, **more)

    monkeypatch.setattr(model, "stream", spy)
    form = JsonConstraint({"type": "integer"})
    wanted = GenerationOptions(constraint=form)
    for choice in ("auto", "none", "required", "g"):
        start_chat(model, ASKED, options=wanted, tools=[F, G], tool_choice=choice)
    start_chat(model, ASKED, options=wanted)
    start_chat(model, ASKED, tools=[F], parallel_tool_calls=False)
    assert [options.constraint for options in seen] == [
        ToolConstraint((F, G), otherwise=form),
        form,
        ToolConstraint((F, G), required=True, otherwise=form),
        ToolConstraint((G,), required=True, parallel=False),
        form,
        ToolConstraint((F,), parallel=False),
    ]
    assert wanted.constraint is form


@pytest.mark.parametrize("choice", ["required", "f", "auto"])
async def test_a_random_model_calls_tools_rightly(
    tiny: Callable[..., PaceModel], choice: str
) -> None:
    model = tiny()
    several = [
        start_chat(
            model,
            ASKED,
            options=GenerationOptions(max_new_tokens=150, temperature=1.0, seed=seed),
            tools=[F, G],
            tool_choice=choice,
        )
        for seed in range(4)
    ]

    async def run(stream: ChatStream) -> None:
        async for _ in stream:
            pass

    await asyncio.gather(*map(run, several))
    for stream in several:
        assert stream.invalid_tool_calls == ()
        assert all(call.name in ("f", "g") for call in stream.tool_calls)
        if choice != "auto":
            assert stream.tool_calls
            assert stream.finish_reason == "tool_calls"
            assert stream.text.strip() == ""
        if choice == "f":
            assert [call.name for call in stream.tool_calls] == ["f"]


def test_the_next_turn_goes_on_where_the_last_one_was_read(tiny: Callable[..., PaceModel]) -> None:
    model = tiny()
    turns = [Message("system", "The documents. " * 60), Message("user", "What?")]
    wanted = GenerationOptions(max_new_tokens=120)
    first = start_chat(model, turns, options=wanted, tools=[F], tool_choice="f")
    list(first)
    assert (first.tokens_reused, first.tokens_read) == (0, first.prompt_tokens)
    (call,) = first.tool_calls
    turns += [
        Message("assistant", first.text, first.tool_calls),
        Message("tool", "It is so.", tool_call_id=call.id, name=call.name),
    ]
    then = start_chat(model, turns, options=wanted, tools=[F])
    list(then)
    assert then.tokens_reused >= first.prompt_tokens - 1
    assert then.tokens_reused + then.tokens_read == then.prompt_tokens


@pytest.mark.parametrize("question", ["What?", " What?", "\nWhat?", "\n\n  What?"])
def test_what_stands_before_a_question_is_known_however_it_begins(question: str) -> None:
    model = tiny_model(pace=PaceConfig())
    documents = Message("system", "The pump stands in hall four. " * 40)
    for asked in ("Where?", question):
        stream = start_chat(
            model,
            [documents, Message("user", asked)],
            options=GenerationOptions(max_new_tokens=2),
        )
        list(stream)
    assert stream.tokens_reused > 0.95 * len(documents.content)
