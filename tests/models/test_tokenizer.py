from __future__ import annotations

import pytest

from pacellm_rag.errors import ModelError
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import Message
from pacellm_rag.testing import byte_tokenizer

TURNS = [Message("system", "The documents."), Message("user", "Why?")]
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endif %}{% endfor %}<assistant>"
)
WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
BROKEN = "{{ raise_exception('never') }}"


def tokenizer(template: str | None, *, adds_bos: bool = False) -> ChatTokenizer:
    hf = byte_tokenizer(template)
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        hf.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return ChatTokenizer(hf, name="t", context_window=100)


def test_offsets_lead_back_to_the_text() -> None:
    chat = tokenizer(WITH_BOS)
    prompt = chat.encode_messages([Message("user", "naïve – 日本")])
    for token, (start, end) in zip(prompt.token_ids, prompt.offsets, strict=True):
        if token > 3:
            assert prompt.text[start:end]
    covered = {i for start, end in prompt.offsets for i in range(start, end)}
    assert covered == set(range(len(prompt.text)))


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_turn_that_the_template_does_not_take_goes_into_the_first_question(
    template: str,
) -> None:
    text = tokenizer(template).render(TURNS)
    assert text == "<user>The documents.\n\nWhy?<assistant>"


def test_later_turns_stay_where_they_are_when_the_system_turn_moves() -> None:
    turns = [*TURNS, Message("assistant", "So."), Message("user", "How?")]
    text = tokenizer(NO_SYSTEM).render(turns)
    assert text == "<user>The documents.\n\nWhy?<assistant>So.<user>How?<assistant>"


def test_a_template_that_refuses_everything_is_an_error() -> None:
    with pytest.raises(ModelError, match="refuses this conversation"):
        tokenizer(BROKEN).render(TURNS)
    with pytest.raises(ModelError, match="refuses this conversation"):
        tokenizer(BROKEN).render([Message("user", "Why?")])


def test_a_model_without_a_template_gets_a_plain_prompt() -> None:
    turns = [*TURNS, Message("assistant", "So."), Message("user", "How?")]
    text = tokenizer(None).render(turns)
    assert text == "The documents.\n\nQuestion: Why?\nAnswer: So.\n\nQuestion: How?\nAnswer:"


@pytest.mark.parametrize("template", [WITH_BOS, None])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_there_is_never_more_than_one_bos(template: str | None, adds_bos: bool) -> None:
    chat = tokenizer(template, adds_bos=adds_bos)
    prompt = chat.encode_messages(TURNS)
    wanted = 1 if adds_bos or template else 0
    assert prompt.token_ids.count(0) == wanted
    assert len(prompt.offsets) == len(prompt.token_ids)
    if wanted:
        assert prompt.token_ids[0] == 0


def test_counting_adds_no_special_tokens() -> None:
    assert tokenizer(WITH_BOS, adds_bos=True).count_tokens("four") == 4


def test_the_ends_of_turns_are_known() -> None:
    assert tokenizer(WITH_BOS).stop_ids == {3}


def test_special_tokens_are_not_part_of_an_answer() -> None:
    chat = tokenizer(WITH_BOS)
    ids = [2, *chat.hf("hi", add_special_tokens=False)["input_ids"], 3]
    assert chat.decode(ids) == "hi"
