"""Forms in the engine: several at once, stopped, cancelled, beside answers that have none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

import pytest
from test_constrained import SCHEMAS, Person, fits, thing

from pacellm_rag.constraints import JsonConstraint
from pacellm_rag.errors import CancelledError, ConfigurationError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
PROMPT = list(range(40, 90))
PERSON = JsonConstraint(Person.model_json_schema())
NAMES = ("a positive price", "an expression", "a tree", "digits", "email", "nested arrays")


def options(name: str, tokens: int = 60, **more: object) -> GenerationOptions:
    return GenerationOptions(
        max_new_tokens=tokens,
        constraint=JsonConstraint(SCHEMAS[name]),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_family_keeps_to_a_form(tiny: Tiny, family: str, temperature: float) -> None:
    model = tiny(family)
    wanted = GenerationOptions(
        max_new_tokens=170, temperature=temperature, seed=1, constraint=PERSON
    )
    answer = model.stream(PROMPT, wanted)
    Person.model_validate_json("".join(answer))
    assert answer.completion_tokens <= 170


def test_fewer_tokens_than_a_form_needs_are_refused_with_their_number(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(ConfigurationError, match=r"at least 8 tokens; max_new_tokens is 7"):
        model.stream(PROMPT, options("a positive price", 7))
    json.loads("".join(model.stream(PROMPT, options("a positive price", 8))))


async def test_forms_that_are_decoded_together_are_each_followed(tiny: Tiny) -> None:
    model = tiny()

    async def one(name: str, seed: int) -> str:
        wanted = options(name, temperature=1.0, seed=seed)
        return "".join([piece async for piece in model.stream(PROMPT, wanted)])

    alone = [await one(name, seed) for seed, name in enumerate(NAMES)]
    together = await asyncio.gather(*(one(name, seed) for seed, name in enumerate(NAMES)))
    assert together == alone
    for name, text in zip(NAMES, together, strict=True):
        assert fits(json.loads(text), SCHEMAS[name], SCHEMAS[name])


async def test_answers_without_a_form_are_as_they_are_alone(tiny: Tiny) -> None:
    model, free = tiny(), GenerationOptions(max_new_tokens=40)

    async def said(wanted: GenerationOptions) -> str:
        return "".join([piece async for piece in model.stream(PROMPT, wanted)])

    alone = await said(free)
    beside = await asyncio.gather(said(options("a tree")), said(free), said(options("digits")))
    assert beside[1] == alone


async def test_a_form_that_is_refused_or_cancelled_harms_nobody_else(tiny: Tiny) -> None:
    model, cancel = tiny(), threading.Event()
    other = model.stream(PROMPT, options("a tree"))
    doomed = model.stream(PROMPT, options("a long text", 200), cancel=cancel)
    pieces = [await anext(other), await anext(doomed)]
    bad = JsonConstraint({"type": "nonsense"})
    with pytest.raises(ConfigurationError, match="nonsense"):
        model.stream(PROMPT, GenerationOptions(constraint=bad))
    cancel.set()
    with pytest.raises(CancelledError):
        [piece async for piece in doomed]
    text = pieces[0] + "".join([piece async for piece in other])
    assert fits(json.loads(text), SCHEMAS["a tree"], SCHEMAS["a tree"])


def test_a_stop_string_ends_a_form_early(tiny: Tiny) -> None:
    answer = tiny().stream(PROMPT, options("a positive price", stop=('":',)))
    assert "".join(answer) == '{"p'
    assert answer.finish_reason == "stop"


def test_forms_are_kept_with_memory_banks(tiny: Tiny) -> None:
    model = tiny(pace=PaceConfig())
    for name in NAMES:
        text = "".join(model.stream(PROMPT, options(name)))
        assert fits(json.loads(text), SCHEMAS[name], SCHEMAS[name])


def test_a_form_that_is_full_ends_the_answer_at_once(tiny: Tiny) -> None:
    answer = tiny().stream(PROMPT, options("this", 100))
    assert json.loads("".join(answer)) == SCHEMAS["this"]["const"]
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens < 100


def test_one_form_for_many_threads(tiny: Tiny) -> None:
    model, texts = tiny(), list[str]()

    def ask() -> None:
        texts.append("".join(model.stream(PROMPT, options("email"))))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert len(set(texts)) == 1


def test_a_seed_gives_the_same_form_again(tiny: Tiny) -> None:
    wanted = options("an expression", temperature=1.0, seed=7)
    model = tiny()
    assert "".join(model.stream(PROMPT, wanted)) == "".join(model.stream(PROMPT, wanted))


def test_a_list_of_stop_tokens_beyond_the_vocabulary_is_no_trouble(tiny: Tiny) -> None:
    model = tiny(vocab_size=300)
    model._stop_ids = model._stop_ids | {299}
    model._forms.stop_ids = model._stop_ids
    wanted = GenerationOptions(max_new_tokens=30, constraint=JsonConstraint(thing(type="integer")))
    assert isinstance(json.loads("".join(model.stream(PROMPT, wanted)))["p"], int)
