from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacellm_rag.errors import ModelError
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import EncodedPrompt, Message
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


CHATML = "<chatml>"  # byte_tokenizer's own template
TEMPLATES = [CHATML, NO_SYSTEM, DROPS_SYSTEM, WITH_BOS, None]
LONG = [
    *TURNS,
    Message("assistant", "So."),
    Message("user", "How?"),
    Message("assistant", "Thus."),
    Message("user", "When?"),
]


def any_tokenizer(template: str | None) -> ChatTokenizer:
    if template == CHATML:
        return ChatTokenizer(byte_tokenizer(), name="t", context_window=100)
    return tokenizer(template)


def begins(prompt: EncodedPrompt) -> list[int]:
    """The characters at which messages begin."""
    return [prompt.offsets[token][0] for token in prompt.message_starts]


def contents(turns: Sequence[Message]) -> list[str]:
    """What is to be found of the turns."""
    kept = [turn.content.strip() for turn in turns]  # a system turn is folded in, or kept
    return [content for content in kept if content]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("turns", [TURNS, LONG, LONG[1:], TURNS[1:]])
def test_messages_start_where_their_contents_do(template: str | None, turns: list[Message]) -> None:
    prompt = any_tokenizer(template).encode_messages(turns)
    starts = prompt.message_starts
    assert list(starts) == sorted(set(starts))
    wanted = contents(turns)
    found = [prompt.text[at:] for at in begins(prompt)]
    if prompt.offsets[0][0] == prompt.text.find(wanted[0]) and len(found) < len(wanted):
        wanted = wanted[1:]  # nothing goes before the first: there is no segment to end
    assert len(found) == len(wanted)
    for text, content in zip(found, wanted, strict=True):  # blanks may stand before it
        assert text.lstrip().startswith(content)


def test_a_system_turn_that_was_folded_in_ends_where_the_question_begins() -> None:
    for template in (NO_SYSTEM, DROPS_SYSTEM):
        prompt = tokenizer(template).encode_messages(LONG)
        documents, question, *_ = begins(prompt)
        assert prompt.text[documents:question] == "The documents.\n\n"
        assert len(prompt.message_starts) == len(LONG)


def test_contents_that_are_repeated_are_found_in_their_own_turns() -> None:
    """Also where one content stands inside of another."""
    turns = [
        Message("system", "Why? Because. Why?"),
        Message("user", "Why?"),
        Message("assistant", "Because."),
        Message("user", "Why?"),
        Message("assistant", "Because."),
        Message("user", "Why?"),
    ]
    prompt = any_tokenizer(CHATML).encode_messages(turns)
    assert len(prompt.message_starts) == len(turns)
    for at, turn in zip(begins(prompt), turns, strict=True):
        header = f"<|im_start|>{turn.role}\n"
        assert prompt.text[: at + len(turn.content)].endswith(header + turn.content)


def test_a_content_that_the_roles_name_too_starts_behind_its_role() -> None:
    """`user` is in the header of the turn whose content it is."""
    turns = [
        Message("user", "user"),
        Message("assistant", "assistant"),
        Message("user", "user"),
        Message("assistant", "a"),
        Message("user", "s"),
    ]
    prompt = any_tokenizer(CHATML).encode_messages(turns)
    found = [prompt.text[:at] for at in begins(prompt)]
    assert len(found) == len(turns)
    for before, turn in zip(found, turns, strict=True):
        assert before.endswith(f"<|im_start|>{turn.role}\n")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_turns_without_content_have_no_start(template: str | None, empty: str) -> None:
    turns = [Message("system", "One."), Message("user", empty), Message("assistant", "Two."),
             Message("user", "Three.")]  # fmt: skip
    prompt = any_tokenizer(template).encode_messages(turns)
    assert list(prompt.message_starts) == sorted(set(prompt.message_starts))
    found = [prompt.text[at:] for at in begins(prompt)]
    assert [text[:3] for text in found][-2:] == ["Two", "Thr"]
    assert len(found) <= 3


@pytest.mark.parametrize("adds_bos", [True, False])
def test_starts_count_the_bos(adds_bos: bool) -> None:
    prompt = tokenizer(WITH_BOS, adds_bos=adds_bos).encode_messages(TURNS)
    assert prompt.token_ids[0] == 0
    assert prompt.message_starts == (1, 1 + len("The documents."))


def test_starts_are_found_through_tokens_of_several_bytes() -> None:
    turns = [Message("system", "日本 – naïve"), Message("user", "né? 日本")]
    prompt = any_tokenizer(CHATML).encode_messages(turns)
    assert [
        prompt.text[at:].startswith(t.content) for at, t in zip(begins(prompt), turns, strict=True)
    ] == [True, True]
    for start in prompt.message_starts:  # the first of the bytes of its character
        assert prompt.offsets[start - 1][1] <= prompt.offsets[start][0]


@given(
    system=st.sampled_from(["", "The documents.", "The documents, BBB.", "BZ BZ BZ BZ"]),
    turns=st.lists(st.text(alphabet="BZ .\né", max_size=6), min_size=1, max_size=4),
    template=st.sampled_from(TEMPLATES),
)
@settings(max_examples=150, deadline=None)
def test_starts_ascend_and_lie_in_the_prompt(
    system: str, turns: list[str], template: str | None
) -> None:
    messages = [Message("system", system)] if system else []
    for number, text in enumerate(turns):
        messages.append(Message("assistant" if number % 2 else "user", text))
    prompt = any_tokenizer(template).encode_messages(messages)
    assert list(prompt.message_starts) == sorted(set(prompt.message_starts))
    assert all(0 < start < len(prompt.token_ids) for start in prompt.message_starts)
    wanted = [message.content.strip() for message in messages if message.content.strip()]
    found = [prompt.text[at:] for at in begins(prompt)]
    if len(found) < len(wanted):
        wanted = wanted[1:]  # nothing goes before the first: there is no segment to end
    assert len(found) == len(wanted)
    for text, content in zip(found, wanted, strict=True):  # blanks may stand before it
        assert text.lstrip().startswith(content)
