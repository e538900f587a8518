"""Whatever a model wants to write, an answer follows its schema and ends within its tokens."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from written_templates import chat_tokenizer

from pacellm_rag.constraints import Constraint, JsonConstraint
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.constrained import ConstraintCompiler

VOCABULARIES = ("bytes", "bpe")


@functools.cache
def compiler(vocabulary: str, kind: str = "in_words") -> ConstraintCompiler:
    chat = chat_tokenizer(kind, vocabulary)
    return ConstraintCompiler(chat, chat.stop_ids)


def fewest(made: ConstraintCompiler, constraint: Constraint) -> int:
    """The tokens that a constraint is said to need."""
    try:
        made.compile(constraint, 1)
    except ConfigurationError as error:
        found = re.search(r"at least (\d+) tokens", str(error))
        if found is None:
            raise
        return int(found.group(1))
    return 1


def written(made: ConstraintCompiler, constraint: Constraint, tokens: int, seed: int) -> str:
    """What a model writes that likes some tokens, and some more at each step."""
    generator = torch.Generator().manual_seed(seed)
    size = len(made.tokenizer.hf)
    liked = torch.randn(1, size, generator=generator) * 3
    form, ids = made.compile(constraint, tokens), list[int]()
    while len(ids) < tokens and not form.complete:
        logits = liked + torch.randn(1, size, generator=generator) * 3
        token = form.choose(int(form.allow(logits).argmax()), tokens - len(ids))
        if token in made.stop_ids:
            break
        ids.append(token)
    return made.tokenizer.decode(ids)


def fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value follows a schema: the part of JSON schema that the tests use."""
    if "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].split("/")[1:]:
            target = target[name]
        return fits(value, target, root)
    if "anyOf" in schema and not any(fits(value, one, root) for one in schema["anyOf"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type")
    if kinds is not None and not any(
        _is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ):
        return False
    if isinstance(value, str):
        long = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        return long and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        step = schema.get("multipleOf")
        return bool(
            schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
            and ("exclusiveMinimum" not in schema or schema["exclusiveMinimum"] < value)
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
            and (step is None or value % step == 0)
        )
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        items = [*first, *[schema.get("items", {})] * len(value)]
        long = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        return long and all(fits(v, s, root) for v, s in zip(value, items, strict=False))
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            (name in known or more is not False) and fits(v, known.get(name, more), root)
            for name, v in value.items()
        )
    return True


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "null": value is None,
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and float(value).is_integer(),
    }[kind]


def test_the_judge_of_these_tests_tells_right_from_wrong() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert fits({"a": 1}, schema, schema)
    assert not any(fits(v, schema, schema) for v in ({}, {"a": "1"}, {"a": True}, [], "a", None))


def thing(name: str = "p", **schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


NODE = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any": {},
    "a positive price": thing(type="number", exclusiveMinimum=0),
    "numbers between": {
        "type": "array",
        "items": {"type": "number", "minimum": 1.25, "maximum": 1.5},
        "minItems": 2,
    },
    "negative": {"type": "number", "exclusiveMaximum": 0},
    "dozens": {"type": "integer", "multipleOf": 12, "minimum": 1},
    "thousands": {"type": "integer", "minimum": 5000, "maximum": 6000},
    "digits": thing(type="string", pattern="^[0-9]+$"),
    "no x": thing(type="string", pattern='^[^x"]+$'),
    "holds cab": thing(type="string", pattern="cab"),
    "ends in z": {"type": "string", "pattern": "^.*z$"},
    "phone": {"type": "string", "pattern": "^\\d{3}-\\d{4}$"},
    "hexadecimal": {"type": "string", "pattern": "^[0-9a-f]{8,}$"},
    "a long text": {"type": "string", "minLength": 40},
    "a list next": {
        "$ref": "#/$defs/N",
        "$defs": {"N": thing("next", anyOf=[{"$ref": "#/$defs/N"}, {"type": "null"}])},
    },
    "an expression": {
        "$ref": "#/$defs/E",
        "$defs": {
            "E": {
                "anyOf": [
                    {
                        **NODE,
                        "properties": {
                            "op": {"type": "string"},
                            "left": {"$ref": "#/$defs/E"},
                            "right": {"$ref": "#/$defs/E"},
                        },
                        "required": ["op", "left", "right"],
                    },
                    {**NODE, "properties": {"value": {"type": "number"}}, "required": ["value"]},
                ]
            }
        },
    },
    "a child before a name": {
        "$ref": "#/$defs/N",
        "$defs": {
            "N": {
                **NODE,
                "properties": {
                    "a": {"type": "integer"},
                    "child": {"$ref": "#/$defs/N"},
                    "name": {"type": "string"},
                },
                "required": ["a", "name"],
            }
        },
    },
    "a tree": {
        "$ref": "#/$defs/T",
        "$defs": {"T": thing("kids", type="array", items={"$ref": "#/$defs/T"})},
    },
    "one of": {"enum": ["a very long text that takes many tokens", 'b"\\', 5, None, "日本"]},
    "this": {"const": {"a": [1, 2.5, "x"], "é": None}},
    "nullable": {"type": ["string", "null"]},
    "a pair": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "minItems": 2,
        "maxItems": 2,
    },
    "nested arrays": {
        "type": "array",
        "minItems": 2,
        "items": {"type": "array", "minItems": 2, "items": {"type": "boolean"}},
    },
    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
    "extra required": {
        **thing("b", type="integer"),
        "required": ["b", "a"],
        "additionalProperties": {"type": "string"},
    },
    "empty": {**NODE},
    "an empty key": thing("", type="null"),
    "marks of the model": {"enum": ["<s>", "<|im_end|>", "<tool_call>"]},
    **{
        name: thing(type="string", format=name)
        for name in (
            "date",
            "time",
            "date-time",
            "duration",
            "email",
            "ipv4",
            "ipv6",
            "uuid",
            "uri",
        )
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_an_answer_is_valid_from_the_fewest_tokens_up(vocabulary: str, name: str) -> None:
    made, constraint = compiler(vocabulary), JsonConstraint(SCHEMAS[name])
    least = fewest(made, constraint)
    for seed, more in enumerate((0, 0, 1, 2, 3, 5, 9, 17, 40, 130)):
        text = written(made, constraint, least + more, seed)
        assert fits(json.loads(text), SCHEMAS[name], SCHEMAS[name]), text


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_an_answer_ends_though_its_shortest_form_is_long(vocabulary: str) -> None:
    names = [f"a_long_name_of_a_field_{i}" for i in range(30)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names,
    }
    made, constraint = compiler(vocabulary), JsonConstraint(schema)
    least = fewest(made, constraint)
    assert least > 512
    for more in (0, 100, 300):
        assert set(json.loads(written(made, constraint, least + more, 1))) == set(names)


class Address(BaseModel):
    street: str = Field(min_length=1)
    code: str = Field(pattern=r"^\d{5}$")


class Person(BaseModel):
    """Of many kinds of fields."""

    name: str
    age: int | None = Field(ge=0, le=150)
    height: float = Field(gt=0, lt=3)
    kind: Literal["a", "b"]
    addresses: list[Address] = Field(min_length=1)
    friends: list[Person] = []
    notes: dict[str, int] = {}
    home: Address | None = None


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_pydantic_takes_what_was_written_for_its_own_schema(vocabulary: str) -> None:
    made, constraint = compiler(vocabulary), JsonConstraint(Person.model_json_schema())
    least = fewest(made, constraint)
    for seed in range(12):
        Person.model_validate_json(written(made, constraint, least + seed * seed, seed))


def _schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "é", 'q"', "long name", ""])
    numbers = st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(
        lambda low: {"minimum": low[0], "maximum": low[0] + low[1]}
    )
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(lambda n: {"type": "string", "minLength": n}, st.integers(0, 6)),
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
        st.builds(lambda b: {"type": "integer", **b}, numbers),
        st.builds(lambda b: {"type": "number", **b}, numbers),
        st.builds(lambda v: {"enum": v}, st.lists(st.text(max_size=5), min_size=1, max_size=3)),
    )

    def inner(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        fields = st.dictionaries(names, children, max_size=4)
        objects = st.tuples(fields, st.sets(names), st.booleans()).map(
            lambda made: {
                "type": "object",
                "properties": made[0],
                "required": sorted(made[1] & set(made[0])),
                **({"additionalProperties": False} if made[2] else {}),
            }
        )
        arrays = st.builds(
            lambda item, least: {"type": "array", "items": item, "minItems": least},
            children,
            st.integers(0, 2),
        )
        either = st.lists(children, min_size=1, max_size=3).map(lambda many: {"anyOf": many})
        return st.one_of(objects, arrays, either)

    return st.recursive(leaves, inner, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(_schemas(), st.integers(0, 40), st.integers(0, 99), st.sampled_from(VOCABULARIES))
def test_any_schema_is_followed_in_any_number_of_tokens(
    schema: dict[str, Any], more: int, seed: int, vocabulary: str
) -> None:
    made, constraint = compiler(vocabulary), JsonConstraint(schema)
    text = written(made, constraint, fewest(made, constraint) + more, seed)
    assert fits(json.loads(text), schema, schema), text


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_model_that_has_room_says_what_it_wants(vocabulary: str) -> None:
    made = compiler(vocabulary)
    wanted = '{"name": "Ünal \\"x\\"", "tags": ["a", "bc"], "next": {"value": -12.5e3}}'
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "next": thing("value", type="number"),
        },
        "required": ["name", "tags", "next"],
    }
    ids = made.tokenizer.hf(wanted, add_special_tokens=False)["input_ids"]
    form = made.compile(JsonConstraint(schema), len(ids) + 30)
    for place, token in enumerate(ids):
        assert form.choose(token, len(ids) + 30 - place) == token
    assert form.complete


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "https://example.org/schema"},
        {"type": "string", "pattern": "("},
        {"enum": []},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"const": {1, 2}},
        {"$ref": "#/$defs/N", "$defs": {"N": thing("n", **{"$ref": "#/$defs/N"})}},
        {"$ref": "#"},
    ],
    ids=str,
)
def test_a_schema_that_no_answer_can_follow_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"schema|form"):
        compiler("bytes").compile(JsonConstraint(schema), 1000)


def test_what_is_not_enforced_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    compiler("bpe").compile(JsonConstraint(thing(type="string", format="colour")), 100)
    assert "Unknown format: colour" in caplog.text


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_logits_may_be_wider_than_the_vocabulary(vocabulary: str) -> None:
    made = compiler(vocabulary)
    form = made.compile(JsonConstraint({}), 10)
    size = len(made.tokenizer.hf)
    logits = form.allow(torch.zeros(1, size + 60))
    assert logits.shape == (1, size + 60)
    assert torch.isinf(logits[0, size:]).all()
    assert torch.isfinite(logits).any()
