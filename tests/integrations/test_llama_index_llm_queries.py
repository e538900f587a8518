"""LlamaIndex' own ways over the sample documents: one call with all text, and what is read once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatResponse, CompletionResponse
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    BaseQueryEngine,
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel, PrivateAttr

from llama_index.llms.pacellm import PaceLLM, PaceReader, page_nodes
from pacellm_rag.errors import ContextOverflowError
from pacellm_rag.messages import ToolCall
from pacellm_rag.models.model import PaceModel
from pacellm_rag.testing import ScriptedModel
from pacellm_rag.tool_format import IN_WORDS

Tiny = Callable[..., PaceModel]


class Watched(PaceLLM):
    """Remembers what it answered."""

    _asked: list[str] = PrivateAttr(default_factory=list)
    _usages: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        response: ChatResponse = super().chat(messages, **kwargs)
        self._asked.append("\n".join(m.content or "" for m in messages))
        self._usages.append(response.raw["usage"])  # type: ignore[index]
        return response

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        response: CompletionResponse = super().complete(prompt, formatted, **kwargs)
        self._asked.append(prompt)
        self._usages.append(response.raw["usage"])  # type: ignore[index]
        return response


@pytest.fixture(autouse=True)
def _loop_that_is_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """LlamaIndex' sync methods take the thread's event loop, make one, and leave it open."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[TextNode]:
    """The supplier contract, page by page."""
    return page_nodes(PaceReader().load_data(documents / "supplier-contract.pdf"))


@pytest.fixture
def llm(tiny: Tiny) -> Watched:
    return Watched(engine=tiny(max_position_embeddings=65536), max_tokens=12)


def scripted(*answers: str) -> PaceLLM:
    return PaceLLM(engine=ScriptedModel(answers, context_window=100_000))


def engine_over(pages: list[TextNode], llm: PaceLLM, **settings: Any) -> BaseQueryEngine:
    return SummaryIndex(nodes=pages).as_query_engine(llm=llm, **settings)


def test_all_pages_are_read_in_one_call(pages: list[TextNode], llm: Watched) -> None:
    response = engine_over(pages, llm, response_mode="compact").query("When does it end?")
    (prompt,) = llm._asked
    for page in pages:
        assert page.get_content(MetadataMode.LLM) in prompt
    assert response.response != "Empty Response"
    cited = [(n.metadata["file_name"], n.metadata["page_label"]) for n in response.source_nodes]
    assert cited == [("supplier-contract.pdf", label) for label in "1234"]


def test_the_second_question_reads_the_question_only(pages: list[TextNode], llm: Watched) -> None:
    engine = engine_over(pages, llm)
    first, other, again = (
        engine.query(question).response
        for question in ("When does it end?", "What does it cost a year?", "When does it end?")
    )
    assert first == again
    assert first != other or len(first or "") > 0
    one, two, three = llm._usages
    assert one["prompt_tokens_details"]["cached_tokens"] == 0
    for usage in (two, three):
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0.95 * usage["prompt_tokens"] <= cached < usage["prompt_tokens"]


async def test_streamed_and_awaited_queries_answer_alike(
    pages: list[TextNode], llm: Watched
) -> None:
    question = "Who signs it?"
    engine = engine_over(pages, llm)
    wanted = engine.query(question).response
    assert (await engine.aquery(question)).response == wanted
    streaming = engine_over(pages, llm, streaming=True)
    streamed = streaming.query(question)
    assert isinstance(streamed, StreamingResponse)
    assert "".join(streamed.response_gen) == wanted
    awaited = await streaming.aquery(question)
    assert isinstance(awaited, AsyncStreamingResponse)
    assert "".join([piece async for piece in awaited.async_response_gen()]) == wanted


def test_pages_that_do_not_fit_are_an_error_and_no_empty_response(
    pages: list[TextNode], tiny: Tiny
) -> None:
    llm = PaceLLM(engine=tiny(), max_tokens=12)  # 4,096 bytes; tiktoken thinks more of it
    with pytest.raises(ContextOverflowError):
        engine_over(pages, llm).query("When does it end?")
    with pytest.raises(ContextOverflowError):
        asyncio.run(engine_over(pages, llm).aquery("When does it end?"))


def test_pages_that_do_not_fit_are_read_in_turns_with_the_models_own_counts(
    pages: list[TextNode], tiny: Tiny
) -> None:
    llm = Watched(engine=tiny(), max_tokens=12)
    synthesizer = get_response_synthesizer(llm=llm, prompt_helper=llm.as_prompt_helper())
    engine = SummaryIndex(nodes=pages).as_query_engine(llm=llm, response_synthesizer=synthesizer)
    engine.query("When does it end?")
    assert len(llm._asked) > 1
    assert max(usage["prompt_tokens"] for usage in llm._usages) <= 4096 - 12


def test_token_counts_are_the_models_own(pages: list[TextNode], llm: Watched) -> None:
    counter = TokenCountingHandler(tokenizer=lambda _: [0] * 10**6)
    engine = engine_over(pages[:1], llm)
    llm.callback_manager = CallbackManager([counter])  # the engine has set the global one
    engine.query("When does it end?")
    engine.query("Who signs it?")
    wanted = [(u["prompt_tokens"], u["completion_tokens"]) for u in llm._usages]
    counted = [(e.prompt_token_count, e.completion_token_count) for e in counter.llm_token_counts]
    assert counted == wanted
    assert len(counted) == 2


def test_an_output_class_is_filled(pages: list[TextNode], tiny: Tiny) -> None:
    llm = PaceLLM(engine=tiny(max_position_embeddings=65536), max_tokens=60)

    class Term(BaseModel):
        ends: str
        months: int

    query_engine = engine_over(pages[:1], llm, output_cls=Term)
    response = query_engine.query(
        "When does it end?",
    )
    assert isinstance(Term.model_validate_json(str(response)), Term)


def test_citations_name_the_pages_they_come_from(pages: list[TextNode]) -> None:
    llm = scripted("It ends in 2027 [2].")
    engine = CitationQueryEngine.from_args(
        SummaryIndex(nodes=pages), llm=llm, citation_chunk_size=4096
    )
    response = engine.query("When does it end?")
    assert str(response) == "It ends in 2027 [2]."
    assert [n.metadata["page_label"] for n in response.source_nodes] == list("1234")
    assert response.source_nodes[1].node.get_content().startswith("Source 2:")


@pytest.mark.parametrize("way", ["text", "tool"])
def test_a_router_asks_the_engine_that_was_chosen(pages: list[TextNode], way: str) -> None:
    llm = (
        scripted('[{"choice": 2, "reason": "the end"}]', "In 2027.")
        if way == "text"
        else scripted(
            IN_WORDS.write([ToolCall("SingleSelection", {"index": 2, "reason": "the end"})]),
            "In 2027.",
        )
    )
    kinds: dict[str, Any] = {"text": LLMSingleSelector, "tool": PydanticSingleSelector}
    tools = [
        QueryEngineTool.from_defaults(engine_over(part, llm), description=f"Part {number}")
        for number, part in enumerate((pages[:2], pages[2:]))
    ]
    router = RouterQueryEngine.from_defaults(
        tools, llm=llm, selector=kinds[way].from_defaults(llm=llm)
    )
    response = router.query("When does it end?")
    assert str(response) == "In 2027."
    assert [n.metadata["page_label"] for n in response.source_nodes] == ["3", "4"]


def test_sub_questions_are_asked_and_put_together(pages: list[TextNode]) -> None:
    asked = (
        '```json\n{"items": [{"sub_question": "Who?", "tool_name": "contract"}, '
        '{"sub_question": "When?", "tool_name": "contract"}]}\n```'
    )
    llm = scripted(asked, "Northwind.", "In 2027.", "Northwind, until 2027.")
    tool = QueryEngineTool.from_defaults(
        engine_over(pages, llm), name="contract", description="The contract"
    )
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        use_async=False,
        verbose=False,
    )
    assert str(engine.query("Who signs, and until when?")) == "Northwind, until 2027."


def test_a_chat_about_pages_reads_them_once(pages: list[TextNode], llm: Watched) -> None:
    chat = SummaryIndex(nodes=pages).as_chat_engine(
        chat_mode=ChatMode.CONDENSE_PLUS_CONTEXT, llm=llm, memory=ChatMemoryBuffer.from_defaults()
    )
    for question in ("When does it end?", "And what does it cost?", "Who signs it?"):
        assert chat.chat(question).response
    long = [u for u in llm._usages if u["prompt_tokens"] > 5000]
    assert len(long) == 3
    assert len(llm._usages) == 5  # two questions were condensed before they were asked
    for usage in long[1:]:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached >= 0.95 * usage["prompt_tokens"]


async def test_a_chat_streams(pages: list[TextNode]) -> None:
    chat = SummaryIndex(nodes=pages).as_chat_engine(
        chat_mode=ChatMode.CONTEXT,
        llm=scripted("In the year 2027."),
        memory=ChatMemoryBuffer.from_defaults(),
    )
    assert "".join(chat.stream_chat("When?").response_gen) == "In the year 2027."
    streamed = await chat.astream_chat("When?")
    assert "".join([p async for p in streamed.async_response_gen()]) == "In the year 2027."


def test_prompts_with_braces_are_left_alone(pages: list[TextNode]) -> None:
    llm = scripted("Yes.")
    node = TextNode(text='{"a": {x}} and {{y}}')
    assert str(engine_over([node], llm).query("Is {z} there?")) == "Yes."
    assert llm.predict(PromptTemplate("{q}"), q="{a}") == "Yes."
