"""One prompt, one answer: encoding, fitting the window, and what is reported of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.errors import CancelledError, ConfigurationError, ContextOverflowError
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt, fit_prompt
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import Message
from pacellm_rag.testing import ScriptedModel, byte_tokenizer

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

BYTES = ChatTokenizer(byte_tokenizer(), name="bytes", context_window=200)


def chat(*contents: str, **fields: object) -> PromptedSample:
    turns = tuple(Message("user", content) for content in contents)
    return PromptedSample("s", "t", messages=turns, **fields)  # type: ignore[arg-type]


def test_chat_turns_get_the_template_and_text_does_not() -> None:
    messages = chat("hello")
    text = PromptedSample("s", "t", text="hello")
    assert fit_prompt(BYTES, messages, 200).encoded == BYTES.encode_messages(messages.messages)
    assert fit_prompt(BYTES, text, 200).encoded == BYTES.encode_text("hello")


def test_a_prompt_that_fits_loses_nothing() -> None:
    fitted = fit_prompt(BYTES, chat("x" * 50, max_new_tokens=10), 200)
    assert fitted.tokens_left_out == 0
    assert "x" * 50 in fitted.encoded.text


def test_what_is_too_long_loses_the_middle_of_its_longest_turn() -> None:
    turns = (Message("system", "rules"), Message("user", "begin" + "." * 400 + "end?"))
    sample = PromptedSample("s", "t", messages=turns, max_new_tokens=10)
    fitted = fit_prompt(BYTES, sample, 200)
    prompt = fitted.encoded
    assert len(prompt.token_ids) in (189, 190)
    assert fitted.tokens_left_out == len(BYTES.encode_messages(turns).token_ids) - len(
        prompt.token_ids
    )
    assert "rules" in prompt.text
    assert "begin..." in prompt.text
    assert "...end?" in prompt.text
    assert prompt.message_starts  # banks count their windows from there


def test_the_answer_keeps_its_room() -> None:
    short = fit_prompt(BYTES, PromptedSample("s", "t", text="x" * 400, max_new_tokens=10), 200)
    shorter = fit_prompt(BYTES, PromptedSample("s", "t", text="x" * 400, max_new_tokens=150), 200)
    assert len(short.encoded.token_ids) == 190
    assert len(shorter.encoded.token_ids) == 50


def test_max_length_holds_before_the_template() -> None:
    sample = chat("a" * 40 + "b" * 40, max_length=21, max_new_tokens=10)
    fitted = fit_prompt(BYTES, sample, 200)
    assert "a" * 10 + "b" * 10 in fitted.encoded.text  # int(21 / 2) of both ends
    assert "a" * 11 not in fitted.encoded.text
    assert fitted.tokens_left_out == 80 - 20


def test_max_length_above_the_window_gives_way_to_it() -> None:
    fitted = fit_prompt(BYTES, chat("x" * 900, max_length=500, max_new_tokens=10), 200)
    assert len(fitted.encoded.token_ids) in (189, 190)


def test_no_room_for_the_ends_says_what_is_there() -> None:
    with pytest.raises(ContextOverflowError, match=r"'s' needs 199 tokens.*takes 200") as caught:
        fit_prompt(BYTES, chat("question", max_new_tokens=199), 200)
    assert caught.value.available_tokens == 200
    assert caught.value.needed_tokens > 200


@given(st.text(max_size=300), st.integers(60, 200), st.none() | st.integers(2, 300))
def test_every_prompt_fits_or_is_refused(text: str, window: int, max_length: int | None) -> None:
    sample = PromptedSample("s", "t", text=text, max_new_tokens=30, max_length=max_length)
    fitted = fit_prompt(BYTES, sample, window)
    assert len(fitted.encoded.token_ids) + 30 <= window
    whole = len(BYTES.encode_text(text).token_ids)
    assert fitted.tokens_left_out == whole - len(fitted.encoded.token_ids)


@pytest.mark.parametrize("fields", [{}, {"messages": ()}, {"text": "a", "messages": (1,)}])
def test_a_sample_has_exactly_one_prompt(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="either messages or a text"):
        PromptedSample("s", "t", **fields)  # type: ignore[arg-type]


def test_an_answer_tells_what_it_took() -> None:
    model = ScriptedModel(answers=["Paris it is"], context_window=40)
    sample = PromptedSample("s", "t", text="w " * 40 + "where?", max_new_tokens=8)
    answer = answer_prompt(model, sample)
    assert answer.text == "Paris it is"
    assert answer.prompt_tokens == len(model.prompts[0]) == 32
    assert answer.tokens_left_out == 82 - 32
    assert answer.completion_tokens == 3
    assert answer.seconds >= 0
    assert model.generations[0].closed


def test_a_wanted_stop_and_length_reach_the_model(tiny: Callable[..., PaceModel]) -> None:
    model = tiny()
    sample = PromptedSample("s", "t", text="abc", max_new_tokens=12)
    whole = answer_prompt(model, sample)
    again = answer_prompt(model, sample)
    assert again.text == whole.text
    assert whole.completion_tokens <= 12
    letter = whole.text[2]
    stopped = answer_prompt(
        model, PromptedSample("s", "t", text="abc", max_new_tokens=12, stop=(letter,))
    )
    assert stopped.text == whole.text.split(letter)[0]


def test_what_was_read_before_is_reported(tiny: Callable[..., PaceModel]) -> None:
    model = tiny()
    sample = PromptedSample("s", "t", text="abc" * 500, max_new_tokens=2)
    assert answer_prompt(model, sample).tokens_reused == 0
    assert answer_prompt(model, sample).tokens_reused > 0


def test_cancelling_ends_it() -> None:
    cancel = threading.Event()
    cancel.set()
    model = ScriptedModel()
    with pytest.raises(CancelledError):
        answer_prompt(model, PromptedSample("s", "t", text="a"), cancel=cancel)
    assert model.generations[0].closed


def test_an_outcome_has_all_of_the_answer() -> None:
    model = ScriptedModel(answers=["Yes.\nReally"])
    sample = PromptedSample("id", "task", text="Is it?")
    answer = answer_prompt(model, sample)
    outcome = answer.outcome(sample, {"score": 1.0}, facts={"length": 3}, text="Yes.")
    assert (outcome.sample, outcome.task, outcome.text) == ("id", "task", "Yes.")
    assert outcome.scores == {"score": 1.0}
    assert outcome.facts == {"length": 3}
    assert outcome.prompt_tokens == answer.prompt_tokens
    assert outcome.completion_tokens == answer.completion_tokens
    assert answer.outcome(sample, {}, facts={}).text == answer.text
