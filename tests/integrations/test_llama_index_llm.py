"""PaceLLM itself: calls, prompts that are formatted, and what never blocks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import TextNode
from pydantic import BaseModel, field_validator
from tokenizers.processors import TemplateProcessing

import pacellm_rag
from llama_index.llms.pacellm import PaceLLM
from pacellm_rag.errors import (
    ContextOverflowError,
    DeadlineExceededError,
    ModelError,
    PaceLLMError,
)
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.testing import ScriptedModel, WordTokenizer, tiny_model

Tiny = Callable[..., PaceModel]
USER = MessageRole.USER


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=USER, content=text)]


def prompt_of(model: ScriptedModel) -> tuple[int, ...]:
    return model.prompts[-1]


def test_a_call_changes_what_the_object_says(tiny: Tiny) -> None:
    llm = PaceLLM(engine=tiny(), max_tokens=40, temperature=0.9, seed=1)
    by_call = PaceLLM(engine=llm.text_model, max_tokens=5)
    question = user("Tell me a story.")
    settings = {"max_tokens": 40, "temperature": 0.9, "seed": 1}
    assert by_call.chat(question, **settings).message == llm.chat(question).message
    greedy = PaceLLM(engine=llm.text_model, max_tokens=40).chat(question).message
    assert llm.chat(question, temperature=0).message == greedy
    assert llm.chat(question, top_k=1).message == greedy
    assert llm.chat(question, top_p=1e-9).message == greedy
    assert llm.chat(question, seed=2).message != llm.chat(question).message
    assert llm.chat(question, max_tokens=None, stop=None).message == llm.chat(question).message
    with pytest.raises(DeadlineExceededError):
        llm.chat(user("x" * 3000), timeout=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max_new_tokens": 3}, "max_new_tokens: PaceLLM knows no such argument"),
        ({"max_tokens": 0}, "it must be 1 or more"),
        ({"max_tokens": "many"}, "not supported between"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"stop": [""]}, "non-empty strings"),
        ({"tool_choice": "lookup"}, "there are no tools"),
        ({"tool_choice": 7}, "tool_choice is 7"),
        ({"tools": ["lookup"]}, "tools holds 'lookup'"),
        ({"response_format": {"type": "xml"}}, "response_format is"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
            "can not be enforced",
        ),
        ({"response_format": {"type": "json_schema"}}, "it must be"),
    ],
)
async def test_arguments_that_can_not_work_are_no_value_errors(
    tiny: Tiny, arguments: dict[str, Any], told: str
) -> None:
    llm = PaceLLM(engine=tiny())
    with pytest.raises(ModelError, match=told) as caught:
        llm.chat(user("Hello"), **arguments)
    assert not isinstance(caught.value, (ValueError, TypeError))
    with pytest.raises(ModelError, match=told):
        llm.stream_chat(user("Hello"), **arguments)
    with pytest.raises(ModelError, match=told):
        await llm.achat(user("Hello"), **arguments)


def test_no_messages_are_an_error(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="There are no messages"):
        PaceLLM(engine=tiny()).chat([])


def test_completions_take_no_tools(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="tools: PaceLLM knows no such argument"):
        PaceLLM(engine=tiny()).complete("Hello", tools=[])


class Broken(ScriptedModel):
    """A model with a bug."""

    error: Exception = ValueError("a bug")

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


class BreaksLater(ScriptedModel):
    """A model with a bug that shows in mid-answer."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        generation = super().stream(*args, **kwargs)
        generation._pieces = ["Two ", None]  # type: ignore[list-item]
        return generation


@pytest.mark.parametrize("model", [Broken(), BreaksLater()])
def test_no_error_of_the_engine_becomes_an_empty_response(model: ScriptedModel) -> None:
    index = SummaryIndex(nodes=[TextNode(text="A text.")])
    llm = PaceLLM(engine=model)
    with pytest.raises(ModelError):
        index.as_query_engine(llm=llm).query("What?")
    with pytest.raises(ModelError):
        asyncio.run(index.as_query_engine(llm=llm).aquery("What?"))
    with pytest.raises(ModelError):
        list(index.as_query_engine(llm=llm, streaming=True).query("What?").response_gen)


def test_an_overflow_says_by_how_much(tiny: Tiny) -> None:
    llm = PaceLLM(engine=tiny(), max_tokens=100)
    for ask in (
        lambda: llm.chat(user("x" * 4096)),
        lambda: llm.complete("x" * 4096),
        lambda: llm.complete("x" * 4096, formatted=True),
    ):
        with pytest.raises(ContextOverflowError) as caught:
            ask()
        assert caught.value.available_tokens == 4096
        assert caught.value.needed_tokens >= 4196


def test_a_formatted_prompt_goes_to_the_model_as_it_is(tiny: Tiny) -> None:
    llm = PaceLLM(engine=tiny(), max_tokens=6)
    rendered = llm.text_model.tokenizer.encode_messages([pacellm_rag.Message("user", "Hello")])
    by_hand = llm.complete(rendered.text, formatted=True)
    by_template = llm.complete("Hello")
    assert by_hand.text == by_template.text
    assert by_hand.raw is not None
    assert by_hand.raw["usage"]["prompt_tokens"] == len(rendered.token_ids)
    plain = llm.complete("Hello", formatted=True)
    assert plain.raw is not None
    assert plain.raw["usage"]["prompt_tokens"] == 5
    assert [piece.delta for piece in llm.stream_complete(rendered.text, formatted=True)][-1] == ""


@pytest.mark.parametrize("written", ["", "<s>", "<s><s>"])
def test_a_formatted_prompt_has_one_bos_however_it_was_written(written: str) -> None:
    model = tiny_model()
    hf = model.tokenizer.hf
    hf._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model.tokenizer = ChatTokenizer(hf, name=model.name, context_window=model.context_window)
    llm = PaceLLM(engine=model, max_tokens=2)
    response = llm.complete(f"{written}Hello", formatted=True)
    assert response.raw is not None
    assert response.raw["usage"]["prompt_tokens"] == 6


def test_a_scripted_answer_has_text_usage_and_reason() -> None:
    llm = PaceLLM(engine=ScriptedModel(["One two three four."]), max_tokens=3)
    response = llm.chat(user("Count."))
    assert response.message.content == "One two three"
    assert response.raw == {
        "model": "scripted",
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 3,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert response.additional_kwargs == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
    }
    assert llm.chat(user("Count."), max_tokens=9).raw["finish_reason"] == "stop"


def test_an_empty_answer_is_one() -> None:
    llm = PaceLLM(engine=ScriptedModel([""]))
    assert not llm.chat(user("Say nothing.")).message.content
    assert [r.delta for r in llm.stream_chat(user("Say nothing."))] == [""]
    assert llm.complete("Say nothing.").text == ""


def test_the_system_prompt_goes_first() -> None:
    model = ScriptedModel()
    PaceLLM(engine=model, system_prompt="Be brief.").predict(PromptTemplate("{x}?"), x="Why")
    wanted = [pacellm_rag.Message("system", "Be brief."), pacellm_rag.Message("user", "Why?")]
    assert prompt_of(model) == model.tokenizer.encode_messages(wanted).token_ids


def test_the_prompt_helper_counts_as_the_model_does(tiny: Tiny) -> None:
    llm = PaceLLM(engine=tiny(), max_tokens=96)
    helper = llm.as_prompt_helper()
    assert helper._token_counter.get_string_tokens("日本語") == 9
    nodes = [TextNode(text="日本語のテキスト。" * 20) for _ in range(40)]
    synthesizer = get_response_synthesizer(llm=llm, prompt_helper=helper)
    engine = SummaryIndex(nodes=nodes).as_query_engine(llm=llm, response_synthesizer=synthesizer)
    # 21,600 tokens in a window of 4,096: many calls, and no overflow, which tiktoken would cause.
    assert engine.query("何ですか").response is not None
    assert llm.as_prompt_helper(num_output=5, chunk_size_limit=77).chunk_size_limit == 77


def test_structured_output_that_breaks_a_rule_is_no_value_error(tiny: Tiny) -> None:
    class Odd(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def impossible(cls, number: int) -> int:
            raise ValueError("no number will do")

    llm = PaceLLM(engine=tiny())
    with pytest.raises(ModelError, match="no number will do"):
        llm.structured_predict(Odd, PromptTemplate("Which?"))
    with pytest.raises(ModelError, match="no number will do"):
        list(llm.stream_structured_predict(Odd, PromptTemplate("Which?")))


def test_a_form_that_needs_more_tokens_than_there_are_is_refused(tiny: Tiny) -> None:
    class Long(BaseModel):
        a_field_with_a_long_name: int

    llm = PaceLLM(engine=tiny(), max_tokens=10)
    with pytest.raises(ModelError, match="takes at least"):
        llm.structured_predict(Long, PromptTemplate("Which?"))


def test_a_schema_is_told_behind_the_question_only() -> None:
    class Fact(BaseModel):
        year: int

    model = ScriptedModel(['{"year": 1987}'])
    llm = PaceLLM(engine=model)
    fact = llm.structured_predict(Fact, PromptTemplate("{text}\nWhen?"), text="A long text.")
    assert fact == Fact(year=1987)
    plain = model.tokenizer.encode_messages([pacellm_rag.Message("user", "A long text.\nWhen?")])
    shared = plain.token_ids[: -len(WordTokenizer().encode_messages([]).token_ids) - 1]
    assert len(shared) > 8
    assert prompt_of(model)[: len(shared)] == shared
    *partial, whole = llm.stream_structured_predict(Fact, PromptTemplate("When?"))
    assert whole == Fact(year=1987)
    assert getattr(partial[-1], "year", None) == 1987


class Slow(ScriptedModel):
    """A model whose tokenizer takes its time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        encode = self.tokenizer.encode_messages

        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.3)
            return encode(*args, **kwargs)

        self.tokenizer.encode_messages = slow  # type: ignore[method-assign]


async def longest_wait(call: Any) -> float:
    """The longest time for which the loop did not go on while a coroutine ran."""
    task = asyncio.create_task(call)
    last, longest = time.monotonic(), 0.0
    while not task.done():
        await asyncio.sleep(0.002)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await task
    return longest


async def test_long_prompts_are_encoded_beside_the_loop() -> None:
    llm = PaceLLM(engine=Slow())
    assert await longest_wait(llm.achat(user("Hello"))) < 0.2
    assert await longest_wait(llm.acomplete("Hello")) < 0.2
    assert await longest_wait(llm.astream_chat(user("Hello"))) < 0.2


async def test_the_model_is_loaded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def load(*args: Any, **settings: Any) -> ScriptedModel:
        threads.append(threading.current_thread())
        time.sleep(0.3)
        return ScriptedModel()

    monkeypatch.setattr(pacellm_rag, "shared_model", load)
    monkeypatch.setattr(pacellm_rag, "shared_tokenizer", lambda *a, **k: load().tokenizer)
    assert await longest_wait(PaceLLM().achat(user("Hello"))) < 0.2
    assert await longest_wait(PaceLLM().apredict(PromptTemplate("Hello"))) < 0.2
    assert len(threads) == 3
    assert threading.main_thread() not in threads


async def test_every_async_way_of_leaving_closes_the_answer() -> None:
    model = ScriptedModel(["one two three four five"])
    llm = PaceLLM(engine=model)
    stream = await llm.astream_chat(user("Count."))
    assert (await anext(stream)).delta == "one"
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert model.generations[-1].finish_reason == "closed"
    async for _ in await llm.astream_complete("Count."):
        break
    await asyncio.sleep(0.01)
    assert model.generations[-1].finish_reason == "closed"


def test_errors_are_the_packages_own() -> None:
    assert not issubclass(ModelError, ValueError)
    assert issubclass(ModelError, PaceLLMError)
