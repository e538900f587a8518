"""The chat engine over whole documents: memory, follow-ups, windows, streams, sources."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.schema import Document, TextNode
from sqlalchemy.ext.asyncio import create_async_engine

from llama_index.llms.pacellm import PaceReader, page_nodes
from llama_index.llms.pacellm.chat_engine import WholeDocumentChatEngine
from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel

Engine = WholeDocumentChatEngine
NOTE = Document(text="The notice period is ninety days. The contract ends in May.", id_="note")


def model_saying(*answers: str, window: int = 100_000) -> ScriptedModel:
    return ScriptedModel(answers or ("Yes.",), context_window=window)


@pytest.fixture(scope="module")
def pages(documents: Path) -> list[TextNode]:
    return page_nodes(PaceReader().load_data(documents / "supplier-contract.pdf"))


def said(engine: Engine) -> list[tuple[str, str]]:
    return [(turn.role.value, turn.content or "") for turn in engine.chat_history]


def prompt_holds(model: ScriptedModel, text: str) -> bool:
    """Whether the last prompt has these words."""
    wanted = model.tokenizer.encode_messages([Message("user", text)]).token_ids[4:-5]
    prompt = model.prompts[-1]
    return any(prompt[i : i + len(wanted)] == wanted for i in range(len(prompt)))


def test_an_answer_has_its_pages_and_the_conversation_is_remembered(pages: list[TextNode]) -> None:
    model = model_saying("Sixty days [D1 p2].", "In writing [D1 p2].")
    engine = Engine(model, pages)
    first = engine.chat("How long is the notice period?")
    assert isinstance(first, AgentChatResponse)
    assert str(first) == "Sixty days."
    assert "2" in [source.metadata["page_label"] for source in first.source_nodes]
    assert first.metadata is not None
    assert first.metadata["citations"][0]["found_by"] == "model"
    assert first.metadata["turns_left_out"] == 0
    second = engine.chat("And how is it given?")
    assert prompt_holds(model, "How long is the notice period?")
    assert prompt_holds(model, "Sixty days [D1 p2].")  # as the model itself wrote it
    assert len(model.prefills) == 1
    assert second.metadata is not None
    assert second.metadata["usage"]["tokens_reused"] == len(model.prefills[0])
    assert said(engine) == [
        ("user", "How long is the notice period?"),
        ("assistant", "Sixty days."),
        ("user", "And how is it given?"),
        ("assistant", "In writing."),
    ]


def test_reset_forgets_the_conversation_and_not_the_documents(pages: list[TextNode]) -> None:
    model = model_saying("Sixty.", "Five.")
    engine = Engine(model, pages)
    engine.chat("How long?")
    engine.reset()
    assert engine.chat_history == []
    engine.chat("How many?")
    assert not prompt_holds(model, "How long?")
    assert len(model.prefills) == 1


async def test_all_four_ways_of_chatting_agree(pages: list[TextNode]) -> None:
    script = ("Sixty [D1 p2] days.", "In writing [D1 p1, D1 p2], always.")
    questions = ("How long?", "And how?")

    async def talk(way: str) -> tuple[list[tuple[str, list[Any], Any]], list[tuple[str, str]], Any]:
        model = model_saying(*script)
        engine, given = Engine(model, pages), []
        for question in questions:
            response: Any
            if way == "chat":
                response = engine.chat(question)
            elif way == "achat":
                response = await engine.achat(question)
            elif way == "stream_chat":
                response = engine.stream_chat(question)
                assert response.source_nodes == []
                pieces = list(response.response_gen)
                assert len(pieces) > 1
                assert "".join(pieces) == response.response == str(response)
                assert list(response.response_gen) == [response.response]
            else:
                response = await engine.astream_chat(question)
                pieces = [piece async for piece in response.async_response_gen()]
                assert "".join(pieces) == response.response
            metadata = {k: v for k, v in response.metadata.items() if k not in _MEASURED}
            given.append((response.response, response.source_nodes, metadata))
        return given, said(engine), model.prompts

    expected = await talk("chat")
    assert expected[0][1][0] == "In writing, always."
    for way in ("achat", "stream_chat", "astream_chat"):
        assert await talk(way) == expected


_MEASURED = ("timings", "receipt")


def test_a_given_history_replaces_what_is_remembered(pages: list[TextNode]) -> None:
    model = model_saying("Five.")
    engine = Engine(model, pages)
    engine.chat("How long?")
    history = [ChatMessage(content="Who?"), ChatMessage(content="Maria.", role="assistant")]
    engine.chat("Where?", chat_history=history)
    assert prompt_holds(model, "Maria.")
    assert not prompt_holds(model, "How long?")
    assert [text for _, text in said(engine)] == ["Who?", "Maria.", "Where?", "Five."]


def test_an_edited_answer_is_shown_to_the_model_as_edited(pages: list[TextNode]) -> None:
    model = model_saying("Sixty days [D1 p2].")
    engine = Engine(model, pages)
    engine.chat("How long?")
    history = engine.chat_history
    history[1].blocks = [TextBlock(text="Ninety days.")]
    engine.chat("Sure?", chat_history=history)
    assert prompt_holds(model, "Ninety days.")
    assert not prompt_holds(model, "Sixty days [D1 p2].")


def test_tools_and_empty_turns_of_a_shared_memory_are_no_part_of_the_conversation() -> None:
    model = model_saying("Yes.")
    history = [
        ChatMessage(content="Who?"),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[]),
        ChatMessage(content="tool says", role=MessageRole.TOOL),
        ChatMessage(content="Maria.", role=MessageRole.ASSISTANT),
    ]
    response = Engine(model, [NOTE]).chat("Where?", chat_history=history)
    assert prompt_holds(model, "Maria.")
    assert not prompt_holds(model, "tool says")
    assert response.metadata is not None
    assert response.metadata["turns_left_out"] == 0


def test_instructions_stand_behind_the_documents_and_stay(pages: list[TextNode]) -> None:
    model = model_saying("Oui.")
    engine = Engine(model, pages, system_prompt="Answer in French.")
    history = [ChatMessage(content="Be brief.", role=MessageRole.SYSTEM)]
    for question in ("One?", "Two?"):
        engine.chat(question, chat_history=history)
        assert prompt_holds(model, "Answer in French.\n\nBe brief.")
    assert len(model.prefills) == 1


def long_talk(engine: Engine, turns: int = 12) -> list[AgentChatResponse]:
    return [engine.chat(f"Question {i} " + "word " * 20) for i in range(turns)]


def test_what_does_not_fit_of_a_conversation_is_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = GenerationOptions(max_new_tokens=20)
    model = model_saying("Yes it is.", window=700)
    engine = Engine(model, [NOTE], options=options, system_prompt="Be brief.")
    with caplog.at_level(logging.WARNING, logger="llama_index.llms.pacellm"):
        responses = long_talk(engine)
    left_out = [(response.metadata or {})["turns_left_out"] for response in responses]
    assert left_out[:2] == [0, 0]
    assert left_out[-1] > 0
    assert left_out == sorted(left_out)
    assert all(count % 2 == 0 for count in left_out)  # a question and its answer go together
    assert "oldest of" in caplog.text
    assert "window of 700 tokens" in caplog.text
    assert len(engine.chat_history) == 24
    assert not prompt_holds(model, "Question 0 ")
    assert prompt_holds(model, "Question 10 ")
    assert prompt_holds(model, "Be brief.")
    assert prompt_holds(model, NOTE.text)  # documents are never cut
    assert all(len(prompt) + 20 <= 700 for prompt in model.prompts)
    exchange = len(model.prompts[1]) - len(model.prompts[0])
    assert len(model.prompts[-1]) + 20 + exchange > 700  # all is kept that fits


async def test_streams_say_at_once_what_was_left_out() -> None:
    options = GenerationOptions(max_new_tokens=20)
    engine = Engine(model_saying("Yes it is.", window=700), [NOTE], options=options)
    long_talk(engine)
    assert engine.stream_chat("Well?").metadata["turns_left_out"] > 0
    assert (await engine.astream_chat("Well?")).metadata["turns_left_out"] > 0


def test_what_the_memory_leaves_out_is_said_too() -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=60, tokenizer_fn=str.split)
    responses = long_talk(Engine(model_saying(), [NOTE], memory=memory), turns=6)
    last = responses[-1].metadata or {}
    assert last["turns_left_out"] == 6


async def test_llama_indexs_other_memory_serves_as_well(tmp_path: Path) -> None:
    model = model_saying("Ninety days [D1 p1].", "May.")
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}")
    memory = Memory.from_defaults(session_id="one", async_engine=database)
    engine = Engine(model, [NOTE], memory=memory)
    await engine.achat("How long?")
    response = await engine.achat("Until when?")
    assert prompt_holds(model, "Ninety days [D1 p1].")
    assert (response.metadata or {})["turns_left_out"] == 0
    assert len(await memory.aget_all()) == 4
    await database.dispose()


async def ask(engine: Engine, way: str) -> None:
    given = getattr(engine, way)("What?", chat_history=[ChatMessage(content="Hello?")])
    if way.startswith("a"):
        await given


async def test_documents_and_question_alone_that_do_not_fit_are_refused() -> None:
    for way in ("chat", "stream_chat", "achat", "astream_chat"):
        model = model_saying(window=150)
        engine = Engine(model, [NOTE], options=GenerationOptions(max_new_tokens=100))
        with pytest.raises(ContextOverflowError) as caught:
            await ask(engine, way)
        assert caught.value.available_tokens == 150
        assert caught.value.document_tokens
        assert [turn.content for turn in engine.chat_history] == ["Hello?"]
        assert model.generations == []


async def test_an_empty_question_is_refused_and_not_remembered() -> None:
    engine = Engine(model_saying(), [NOTE])
    with pytest.raises(ConfigurationError, match="question is empty"):
        engine.chat(" ")
    with pytest.raises(ConfigurationError, match="question is empty"):
        await engine.astream_chat("")
    assert engine.chat_history == []


def test_no_documents_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no document to read"):
        Engine.from_documents([], model_saying())


async def test_a_stream_that_is_closed_stops_the_model_and_is_not_remembered() -> None:
    model = model_saying("One two three four.")
    engine = Engine(model, [NOTE])
    response = engine.stream_chat("What?")
    pieces = response.response_gen
    assert next(pieces) == "One"
    pieces.close()
    assert model.generations[-1].closed
    later = (await engine.astream_chat("What?")).async_response_gen()
    assert await anext(later) == "One"
    await later.aclose()
    assert model.generations[-1].closed
    assert engine.chat_history == []


async def test_a_stream_is_read_by_its_own_kind() -> None:
    engine = Engine(model_saying(), [NOTE])
    with pytest.raises(ConfigurationError, match="use response_gen"):
        [piece async for piece in engine.stream_chat("What?").async_response_gen()]
    with pytest.raises(ConfigurationError, match="use async_response_gen"):
        list((await engine.astream_chat("What?")).response_gen)


def test_streams_are_printed_as_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    response = Engine(model_saying("One two [D1 p1]."), [NOTE]).stream_chat("What?")
    assert isinstance(response, StreamingAgentChatResponse)
    response.print_response_stream()
    assert capsys.readouterr().out == "One two."


class Collector(BaseEventHandler):
    seen: list[str] = []  # noqa: RUF012 - a pydantic field

    @classmethod
    def class_name(cls) -> str:
        return "Collector"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.seen.append(event.class_name())


@pytest.fixture
def events() -> Iterator[list[str]]:
    root, handler = get_dispatcher(), Collector(seen=[])
    root.add_event_handler(handler)
    yield handler.seen
    root.event_handlers.remove(handler)


async def test_events_are_those_of_other_chat_engines(events: list[str]) -> None:
    engine = Engine(model_saying("One two."), [NOTE])
    list(engine.stream_chat("What?").response_gen)
    wanted = ["StreamChatStartEvent", "StreamChatDeltaReceivedEvent"]
    wanted += ["StreamChatDeltaReceivedEvent", "StreamChatEndEvent"]
    assert [event for event in events if event.startswith("StreamChat")] == wanted
    assert "LLMChatEndEvent" in events
    events.clear()
    [piece async for piece in (await engine.astream_chat("What?")).async_response_gen()]
    assert [event for event in events if event.startswith("StreamChat")] == wanted
    events.clear()
    engine.chat("What?")
    assert events == ["LLMChatStartEvent", "LLMChatEndEvent"]
