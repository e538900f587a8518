"""The format of calls is what the chat template writes; other templates are told in words."""

from __future__ import annotations

import pytest
from written_templates import HERMES, KINDS, NATIVE, NO_MIDDLE, chat_tokenizer

from pacellm_rag.messages import Message, Tool, ToolCall
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.models.tool_template import template_turns
from pacellm_rag.testing import byte_tokenizer
from pacellm_rag.tool_format import IN_WORDS, ToolCallParser, ToolFormat

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ASKED = [Message("system", "The documents. " * 30), Message("user", "Weather in\n<Paris>?")]
CALL = ToolCall("get_weather", {"city": 'Pa"ris é'}, "call_0123456789")
ANSWERED = [
    *ASKED,
    Message("assistant", "", (CALL,)),
    Message("tool", 'sunny "and"\nwarm \\o/', tool_call_id=CALL.id, name=CALL.name),
]
LATER = [*ANSWERED, Message("assistant", "It is sunny."), Message("user", "And now?")]


def of(template: str) -> ChatTokenizer:
    return ChatTokenizer(byte_tokenizer(template), name="t", context_window=4096)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "hermes",
            ToolFormat(
                '<tool_call>\n{"name": "',
                '", "arguments": ',
                "}\n</tool_call>",
                '}\n</tool_call>\n<tool_call>\n{"name": "',
            ),
        ),
        ("llama", ToolFormat('{"name": "', '", "parameters": ', "}")),
        (
            "mistral",
            ToolFormat('[TOOL_CALLS] [{"name": "', '", "arguments": ', "}]", '}, {"name": "'),
        ),
        ("in_words", IN_WORDS),
        ("xml", IN_WORDS),
    ],
)
def test_the_format_is_what_stands_around_a_call(kind: str, expected: ToolFormat) -> None:
    for vocabulary in ("bytes", "bpe"):
        assert chat_tokenizer(kind, vocabulary).tool_format == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('never') }}",
        "{{ tools | tojson }}{{ raise_exception('no') if messages | length > 1 }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}",
        HERMES.replace("c.arguments | tojson", "c.arguments + ''"),
        HERMES.replace("c.name", "'call'"),
        NO_MIDDLE,
    ],
    ids=range(6),
)
def test_a_template_that_can_not_write_calls_is_told_in_words(template: str) -> None:
    chat = of(template)
    assert chat.tool_format == IN_WORDS


def test_a_template_that_refuses_results_of_tools_is_told_in_words() -> None:
    refuses = HERMES.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}",
    )
    assert "sunny" in of(refuses).encode_messages(ANSWERED, [WEATHER]).text


def test_an_id_before_the_name_is_not_taken_for_a_part_of_the_format() -> None:
    template = HERMES.replace(
        "{% set c = c.function %}", "{% set id = c.id %}{% set c = c.function %}"
    ).replace('{"name": "\' +', '{"id": "\' + id + \'", "name": "\' +')
    form = of(template).tool_format
    assert "probeid" not in "".join((form.before, form.middle, form.after, form.between or ""))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])
def test_the_next_turn_begins_with_what_was_read_and_written(kind: str, vocabulary: str) -> None:
    chat = chat_tokenizer(kind, vocabulary)
    system = [] if kind == "mistral" else ASKED[:1]
    first = chat.encode_messages([*system, *ASKED[1:]], [WEATHER])
    then = chat.encode_messages([*system, *ANSWERED[1:]], [WEATHER])
    said = chat.tool_format.write([CALL])
    if kind == "mistral":  # whose template puts an id behind, which models do not write
        said = said.removesuffix("}]")
    assert then.text.startswith(first.text + said)
    assert then.token_ids[: len(first.token_ids)] == first.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_has_its_start_with_tools_and_results(kind: str) -> None:
    chat = chat_tokenizer(kind)
    system = [] if kind == "mistral" else ASKED[:1]
    for turns in (ASKED, ANSWERED, LATER):
        prompt = chat.encode_messages([*system, *turns[1:]], [WEATHER])
        begins = [prompt.text[prompt.offsets[start][0] :] for start in prompt.message_starts]
        said = [m.content for m in (*system, *turns[1:]) if m.content]
        if kind in NATIVE:
            assert len(begins) == len(said)
            for begin, content in zip(begins, said, strict=True):
                assert begin.startswith(content[:5])
        else:  # calls are text there, and results begin with a mark
            assert len(begins) == len(system) + len(turns[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_bos_or_none(kind: str) -> None:
    prompt = chat_tokenizer(kind).encode_messages(LATER if kind != "mistral" else LATER[1:])
    assert prompt.token_ids.count(0) == (kind in ("llama", "mistral"))


@pytest.mark.parametrize("kind", ["qwen", "mistral"])
@pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])
def test_marks_that_are_tokens_reach_the_parser_and_other_special_ones_do_not(
    kind: str, vocabulary: str
) -> None:
    chat = chat_tokenizer(kind, vocabulary)
    written = chat.tool_format.write([CALL])
    ids = chat.hf(f"Hi <|im_start|>{written}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert chat.call_ids & set(ids)
    parser = ToolCallParser(chat.tool_format)
    text, pieces = parser.feed(chat.decode(ids))
    assert text == "Hi "
    assert pieces[0].name == "get_weather"
    assert "im_end" not in chat.decode(ids)


def test_ids_are_nine_letters_in_templates_and_equal_for_call_and_result() -> None:
    turns = template_turns(ANSWERED)
    short = turns[2]["tool_calls"][0]["id"]
    assert len(short) == 9
    assert short.isalnum()
    assert turns[3]["tool_call_id"] == short
    kept = template_turns([Message("tool", "x", tool_call_id="abcDEF123")])
    assert kept[0]["tool_call_id"] == "abcDEF123"
