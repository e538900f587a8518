"""Whatever a model wants to write, its calls name tools that are there, with fitting arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_constrained import compiler, fewest, fits, thing, written
from written_templates import KINDS

from pacellm_rag.constraints import JsonConstraint, ToolConstraint
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Tool
from pacellm_rag.models.constrained import ConstraintCompiler
from pacellm_rag.tool_format import ToolCallParser

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {**thing("city", type="string"), "additionalProperties": False},
)
NOW = Tool("now", "", {})
NOTHING = Tool("nothing", "", {"type": "object", "properties": {}})
PLACE = Tool(
    "place",
    "With definitions",
    {
        **thing("at", **{"$ref": "#/$defs/P"}),
        "$defs": {"P": thing("x", type="number", exclusiveMinimum=0)},
    },
)
ODD = Tool('we"ird ü😀\\n', 'It\'s <odd> & "quoted"', thing('ä"', type="boolean"))
TOOLS = (WEATHER, NOW, NOTHING, PLACE, ODD)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_vocabulary = pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])


def parted(made: ConstraintCompiler, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """An answer's text and calls."""
    parser = ToolCallParser(made.tokenizer.tool_format)
    said, pieces = parser.feed(text)
    said += parser.flush()
    assert not parser.cut_off, text
    names = [piece.name for piece in pieces if piece.name is not None]
    whole = ["".join(p.arguments for p in pieces if p.index == i) for i in range(len(names))]
    return said, [(name, json.loads(one)) for name, one in zip(names, whole, strict=True)]


def check(calls: list[tuple[str, Any]], tools: tuple[Tool, ...] = TOOLS) -> None:
    known = {tool.name: {"type": "object", **tool.parameters} for tool in tools}
    for name, arguments in calls:
        assert fits(arguments, known[name], known[name])


@every_kind
@every_vocabulary
@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call_is_there_and_whole(kind: str, vocabulary: str, parallel: bool) -> None:
    made = compiler(vocabulary, kind)
    constraint = ToolConstraint(TOOLS, required=True, parallel=parallel)
    least = fewest(made, constraint)
    for seed, more in enumerate((0, 1, 4, 20, 80, 200)):
        said, calls = parted(made, written(made, constraint, least + more, seed))
        assert said.strip() == ""
        assert len(calls) == 1 or (calls and parallel)
        check(calls)


@every_kind
@every_vocabulary
def test_text_or_calls_are_whole_however_few_tokens_there_are(kind: str, vocabulary: str) -> None:
    made, constraint = compiler(vocabulary, kind), ToolConstraint(TOOLS)
    mark = made.tokenizer.hf(made.tokenizer.tool_format.before, add_special_tokens=False)
    for tokens in (1, 2, 7, 40, 120):
        for seed in range(2):
            check(parted(made, written(made, constraint, tokens, seed))[1])
    form = made.compile(constraint, 400)  # a model that begins a call has to go through with it
    ids = [form.choose(i, 400 - n) for n, i in enumerate(mark["input_ids"])]
    while not form.complete and len(ids) < 400:
        token = form.choose(form._way[0] if form._way else min(made.stop_ids), 400 - len(ids))
        if token in made.stop_ids:
            break
        ids.append(token)
    _, calls = parted(made, made.tokenizer.decode(ids))
    assert len(calls) == 1
    check(calls)


@every_kind
@every_vocabulary
def test_an_answer_is_calls_or_the_form_asked_for(kind: str, vocabulary: str) -> None:
    schema = thing("price", type="number", exclusiveMinimum=0)
    made = compiler(vocabulary, kind)
    constraint = ToolConstraint((WEATHER,), otherwise=JsonConstraint(schema))
    least = fewest(made, constraint)
    for seed, more in enumerate((0, 3, 60, 150)):
        said, calls = parted(made, written(made, constraint, least + more, seed))
        check(calls, (WEATHER,))
        if not calls:
            assert fits(json.loads(said), schema, schema)


@pytest.mark.parametrize("kind", ["qwen", "mistral", "hermes", "llama"])
@every_vocabulary
def test_a_mark_that_is_spelled_out_is_no_way_around_the_form(kind: str, vocabulary: str) -> None:
    made = compiler(vocabulary, kind)
    form = made.tokenizer.tool_format
    tokens, wanted = made._tokens(), f"Hi. {form.before}zzz{form.middle}5 bla"
    spelled = [tokens.tokenize_bytes(bytes([byte]))[0] for byte in wanted.encode()]
    matcher = made.compile(ToolConstraint(TOOLS), 1000)._matcher
    assert matcher.try_consume_tokens(spelled) <= len(f"Hi. {form.before}")


@every_kind
def test_text_with_signs_of_all_sorts_is_free(kind: str) -> None:
    made = compiler("bytes", kind)
    wanted = 'a <b> [c] {"n": 5} <tool [TOOL\n\t"\\ é日😀'
    ids = made.tokenizer.hf(wanted, add_special_tokens=False)["input_ids"]
    form = made.compile(ToolConstraint(TOOLS), len(ids) + 1)
    assert [form.choose(i, len(ids) + 1 - n) for n, i in enumerate(ids)] == ids


@every_kind
def test_fifty_tools_may_be_offered(kind: str) -> None:
    tools = tuple(Tool(f"tool_{i}", "d" * 50, WEATHER.parameters) for i in range(50))
    made, constraint = compiler("bpe", kind), ToolConstraint(tools, required=True)
    _, calls = parted(made, written(made, constraint, fewest(made, constraint) + 9, 0))
    check(calls, tools)


def test_arguments_that_can_not_be_enforced_are_refused() -> None:
    broken = Tool("broken", "", thing(type="nonsense"))
    with pytest.raises(ConfigurationError, match="nonsense"):
        compiler("bytes").compile(ToolConstraint((WEATHER, broken)), 100)


def test_tools_are_needed_for_calls() -> None:
    with pytest.raises(ConfigurationError, match="no tools"):
        ToolConstraint(())
