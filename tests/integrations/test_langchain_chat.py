"""ChatPaceLLM's answers: all ways of asking agree, stopping stops, counts are true."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tracers._streaming import _StreamingCallbackHandler

import pacellm_rag.errors
from langchain_pacellm import ChatPaceLLM
from pacellm_rag import PaceConfig
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.testing import ScriptedModel

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
Tiny = Callable[..., PaceModel]
CALL = 'Let me look.<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "array"}},
        },
    },
}


@pytest.fixture(params=[None, ACTING], ids=["plain", "bank"])
def model(tiny: Tiny, request: pytest.FixtureRequest) -> PaceModel:
    return tiny("llama", pace=request.param)


def essence(message: BaseMessage) -> dict[str, Any]:
    """What must not depend on how a model was asked: all but ids and what had been read before."""
    assert isinstance(message, AIMessage)
    usage: dict[str, Any] = {**(message.usage_metadata or {})}
    details = usage.pop("input_token_details")
    assert details["cache_read"] + details["cache_creation"] == usage["input_tokens"]
    return {
        "text": message.text,
        "calls": [(c["name"], c["args"]) for c in message.tool_calls],
        "invalid": [(c["name"], c["args"]) for c in message.invalid_tool_calls],
        "usage": usage,
        "metadata": message.response_metadata,
    }


def joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first, *rest = chunks
    return first + rest


async def gathered(chat: Any, text: str) -> AIMessageChunk:
    return joined([chunk async for chunk in chat.astream(text)])


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "seed"])
async def test_all_ways_of_asking_give_the_same_answer(
    model: PaceModel, sampling: dict[str, Any]
) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=12, **sampling)
    invoked = chat.invoke("Tell me of it. " * 5)
    assert invoked.text
    assert type(invoked) is AIMessage
    for other in (
        joined(list(chat.stream("Tell me of it. " * 5))),
        await chat.ainvoke("Tell me of it. " * 5),
        await gathered(chat, "Tell me of it. " * 5),
    ):
        assert essence(other) == essence(invoked)


@pytest.mark.parametrize("stream_too", [False, True])
async def test_calls_come_whole_however_they_are_asked_for(stream_too: bool) -> None:
    settings: dict[str, Any] = {"streaming": True} if stream_too else {}
    chat = ChatPaceLLM(engine=ScriptedModel([CALL]), **settings).bind_tools([ADD])
    invoked = await chat.ainvoke("Add.") if stream_too else chat.invoke("Add.")
    assert invoked.text == "Let me look."
    assert [(c["name"], c["args"]) for c in invoked.tool_calls] == [("add", {"a": 1, "b": [2, 3]})]
    assert invoked.response_metadata["finish_reason"] == "tool_calls"
    for other in (joined(list(chat.stream("Add."))), await gathered(chat, "Add.")):
        assert essence(other) == essence(invoked)
        assert other.tool_calls[0]["id"]


def test_with_blocks_as_content_text_and_calls_stay_apart() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel([CALL]), output_version="v1").bind_tools([ADD])
    for message in (chat.invoke("Add."), joined(list(chat.stream("Add.")))):
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["text", "tool_call"]
        assert message.tool_calls[0]["args"] == {"a": 1, "b": [2, 3]}


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        '{"a": 1',
        '{"a": "half a str',
        '{"a": "ends in a backslash \\',
        '{"b": [1, 2',
        '{"b": [{"c": "}',
        '{"a": nonsense}',
        '{"a": 1, }',
    ],
)
def test_a_call_that_is_cut_off_or_malformed_is_never_a_call(arguments: str) -> None:
    said = f'<tool_call>\n{{"name": "add", "arguments": {arguments}'
    if arguments.endswith("}"):
        said += "}\n</tool_call>"
    chat = ChatPaceLLM(engine=ScriptedModel([said])).bind_tools([ADD])
    invoked, streamed = chat.invoke("Add."), joined(list(chat.stream("Add.")))
    assert invoked.tool_calls == streamed.tool_calls == []
    assert essence(invoked) == essence(streamed)
    (bad,) = invoked.invalid_tool_calls
    assert bad["name"] == "add"
    assert str(bad["args"]).startswith(arguments)
    assert invoked.response_metadata["finish_reason"] == "stop"


def test_the_call_before_a_cut_off_one_stays_valid() -> None:
    first = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    said = first + '<tool_call>\n{"name": "add", "arguments": {"a": 2'
    chat = ChatPaceLLM(engine=ScriptedModel([said])).bind_tools([ADD])
    for message in (chat.invoke("Add."), joined(list(chat.stream("Add.")))):
        assert [call["args"] for call in message.tool_calls] == [{"a": 1}]
        assert len(message.invalid_tool_calls) == 1


def test_a_batch_gives_what_single_questions_give(model: PaceModel) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=10)
    questions = [f"Question {n}? " * (n + 1) for n in range(6)]
    single = [essence(chat.invoke(question)) for question in questions]
    assert [essence(message) for message in chat.batch(questions)] == single


async def test_tasks_side_by_side_give_what_single_questions_give(model: PaceModel) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=10)
    questions = [f"Question {n}? " * (n + 1) for n in range(6)]
    single = [essence(chat.invoke(question)) for question in questions]
    together = await asyncio.gather(*(chat.ainvoke(question) for question in questions))
    assert [essence(message) for message in together] == single


def test_a_question_in_between_changes_no_answer(model: PaceModel) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=10)
    one, _, again = (chat.invoke(text * 30).text for text in ("First? ", "Other. ", "First? "))
    assert one == again


def test_what_was_read_is_not_read_again(model: PaceModel) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=3)
    system = SystemMessage("A long document, a very long one indeed. " * 60)
    chat.invoke([system, HumanMessage("Who?")])
    usage = chat.invoke([system, HumanMessage("And when?")]).usage_metadata
    assert usage is not None
    shared = len(system.text)  # a byte is a token
    assert usage["input_token_details"]["cache_read"] >= 0.95 * shared


def test_usage_and_the_end_are_told_once_in_the_last_chunk(model: PaceModel) -> None:
    chunks = list(ChatPaceLLM(engine=model, max_tokens=5).stream("Hello"))
    assert [chunk.usage_metadata is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [
        True
    ]
    assert [chunk.chunk_position for chunk in chunks][-2:] == [None, "last"]
    assert chunks[-1].response_metadata == {
        "model_name": "tiny-llama",
        "model_provider": "pacellm",
        "finish_reason": "length",
    }
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata["output_tokens"] == 5


def listening(model: PaceModel) -> list[tuple[int, ...]]:
    """The prompts that a model is asked from now on."""
    asked: list[tuple[int, ...]] = []
    stream = model.stream

    def listen(ids: Any, *more: Any, **options: Any) -> Any:
        asked.append(tuple(ids))
        return stream(ids, *more, **options)

    model.stream = listen  # type: ignore[method-assign]
    return asked


def test_counts_equal_what_is_reported(tiny: Tiny) -> None:
    model = tiny("llama")
    asked = listening(model)
    chat = ChatPaceLLM(engine=model, max_tokens=80)
    messages = [
        SystemMessage("Be kind."),
        HumanMessage("Add 1."),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}]),
        ToolMessage("2", tool_call_id="x"),
    ]
    for tools in ([], [ADD]):
        answer = chat.bind_tools(tools).invoke(messages)
        assert answer.usage_metadata is not None
        counted = chat.get_num_tokens_from_messages(messages, tools or None)
        assert answer.usage_metadata["input_tokens"] == counted == len(asked[-1])
    assert chat.get_num_tokens("Größe") == len(chat.get_token_ids("Größe")) == 7


def test_a_template_that_writes_bos_gives_one(tiny: Tiny) -> None:
    model = tiny("llama")
    hf = copy.deepcopy(model.tokenizer.hf)
    hf.chat_template = "{{ bos_token }}" + hf.chat_template
    model.tokenizer = ChatTokenizer(hf, name="bos", context_window=4096)
    asked = listening(model)
    usage = ChatPaceLLM(engine=model, max_tokens=2).invoke("Hello").usage_metadata
    assert usage is not None
    assert asked[-1][0] == 0
    assert asked[-1].count(0) == 1
    assert usage["input_tokens"] == len(asked[-1])


def test_counting_needs_no_weights_and_a_counting_tokenizer_says_that_it_has_no_ids() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel())
    assert chat.get_num_tokens("one two") == 3
    with pytest.raises(pacellm_rag.errors.ConfigurationError, match="get_num_tokens"):
        chat.get_token_ids("one two")
    own = ChatPaceLLM(engine=ScriptedModel(), custom_get_token_ids=lambda text: [7] * len(text))
    assert own.get_token_ids("ab") == [7, 7]
    assert own.get_num_tokens("ab") == 2


def letters_only(model: PaceModel) -> None:
    """Makes a tiny model write letters; each is a token, so longer strings span several."""
    letters = model.tokenizer.hf("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False).input_ids
    model.module.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_add(
            -1, torch.tensor(letters), torch.full((*logits.shape[:-1], len(letters)), 1e4)
        )
    )


def test_stop_strings_of_both_places_end_an_answer(tiny: Tiny) -> None:
    model = tiny("llama")
    letters_only(model)
    text = ChatPaceLLM(engine=model, max_tokens=60, temperature=1.0, seed=4).invoke("Go.").text
    assert len(text) == 60
    early, late = text[10:13], text[30:33]
    before_early, before_late = text[: text.index(early)], text[: text.index(late)]
    assert before_early != before_late
    for own, given, left in (
        (None, [late], before_late),
        ([late], None, before_late),
        (late, [early], before_early),
        ([early], [late], before_early),
        ([], [], text),
    ):
        chat = ChatPaceLLM(engine=model, max_tokens=60, temperature=1.0, seed=4, stop=own)
        invoked = chat.invoke("Go.", stop=given)
        assert invoked.text == left
        assert joined(list(chat.stream("Go.", stop=given))).text == left
        reason = "length" if left == text else "stop"
        assert invoked.response_metadata["finish_reason"] == reason


class Pieces(BaseCallbackHandler):
    def __init__(self) -> None:
        self.pieces: list[str] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.pieces.append(token)


class StreamingPieces(Pieces, _StreamingCallbackHandler):
    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        return output

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        return output


async def test_a_handler_that_streams_changes_no_answer_and_hears_each_piece_once(
    model: PaceModel,
) -> None:
    chat = ChatPaceLLM(engine=model, max_tokens=8)
    plain = chat.invoke("Hello")
    for ask in (chat.invoke, chat.ainvoke):
        handler, quiet = StreamingPieces(), Pieces()
        heard: Any = ask("Hello", config={"callbacks": [handler]})
        unheard: Any = ask("Hello", config={"callbacks": [quiet]})
        if ask == chat.ainvoke:
            heard, unheard = await heard, await unheard
        assert essence(heard) == essence(unheard) == essence(plain)
        assert "".join(handler.pieces) == plain.text
        assert len(handler.pieces) > 1
        assert quiet.pieces == []
