"""Reading and answering with memory banks attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.pace.cache import memories_of
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=10)
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def prompt(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (count,), generator=generator)]


@every_family
def test_a_then_b_then_a_gives_the_same_a(tiny: Tiny, family: str) -> None:
    model = tiny(family, pace=ACTING)
    documents = prompt(90)
    state = model.prefill(documents, reserve=60)
    a, b = [*documents, *prompt(12, 1)], [*documents, *prompt(25, 2)]
    first, other, again = ("".join(model.stream(state, ids, SHORT)) for ids in (a, b, a))
    assert first == again
    assert first != other


@every_family
def test_the_engines_windows_do_not_matter(tiny: Tiny, family: str) -> None:
    documents, answers = prompt(95), []
    for window in (1, 7, 64, 1024):
        model = tiny(family, pace=ACTING)
        model.window = window
        state = model.prefill(documents)
        answers.append("".join(model.stream(state, [*documents, *prompt(33, 1)], SHORT)))
    assert len(set(answers)) == 1


@every_family
def test_answers_drawn_in_turns_are_those_drawn_alone(tiny: Tiny, family: str) -> None:
    model = tiny(family, pace=ACTING)
    documents = prompt(60)
    prompts = [[*documents, *prompt(9, seed)] for seed in range(3)]
    alone = ["".join(model.stream(model.prefill(documents), ids, SHORT)) for ids in prompts]
    state = model.prefill(documents, reserve=40)
    streams = [model.stream(state, ids, SHORT) for ids in prompts]
    texts = ["", "", ""]
    for _ in range(12):
        for index, stream in enumerate(streams):
            texts[index] += next(stream, "")
    assert texts == alone


def test_memory_acts_on_the_answer_and_the_state_keeps_its_own(tiny: Tiny) -> None:
    model, plain = tiny("llama", pace=ACTING), tiny("llama")
    documents = prompt(90)
    ids = [*documents, *prompt(12, 1)]
    state = model.prefill(documents, reserve=60)
    before = {i: m.bank.keys.clone() for i, m in memories_of(state._cache).items()}
    paced = "".join(model.stream(state, ids, SHORT))
    assert paced != "".join(plain.stream(plain.prefill(documents), ids, SHORT))
    for layer, memory in memories_of(state._cache).items():
        assert torch.equal(memory.bank.keys, before[layer])
        assert memory.pending.shape[1] == 0  # a segment ends with its message
    assert model.pace is not None
    assert all(stats.acted for stats in model.pace.stats().values())


def test_a_branch_costs_no_copy_of_the_cache(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    state = model.prefill(prompt(50), reserve=20)
    with state.branch(50, 70) as branch:
        for own, others in zip(state._cache.layers, branch.cache.layers, strict=True):
            assert own.keys.data_ptr() == others.keys.data_ptr()


def test_a_state_with_memory_is_not_rewound(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    documents = prompt(50)
    state = model.prefill(documents)
    other = [*documents[:30], *prompt(25, 5)]
    assert model.stream(state, other, SHORT).tokens_reused == 0
    unread = model.stream(model.prefill([7]), other, SHORT)
    assert "".join(model.stream(state, other, SHORT)) == "".join(unread)


def test_settings_are_loaded_with_the_checkpoint_unless_told_otherwise(
    tiny: Tiny, folder_of: Callable[[PaceModel], Path]
) -> None:
    folder = folder_of(tiny("llama", pace=ACTING))
    loaded = load_model(folder, device="cpu", dtype="float32")
    assert loaded.pace is not None
    assert loaded.pace.config == ACTING
    assert load_model(folder, device="cpu", pace=None).pace is None
    other = PaceConfig(layers=(1,))
    changed = load_model(folder, device="cpu", pace=other)
    assert changed.pace is not None
    assert changed.pace.config == other


def test_banks_can_be_asked_for_without_settings(
    tiny: Tiny, folder_of: Callable[[PaceModel], Path]
) -> None:
    plain = load_model(folder_of(tiny("llama")), device="cpu", pace="on")
    assert plain.pace is not None
    assert plain.pace.config == PaceConfig()
    saved = load_model(folder_of(tiny("qwen2", pace=ACTING)), device="cpu", pace="on")
    assert saved.pace is not None
    assert saved.pace.config == ACTING


def test_the_fingerprint_is_that_of_the_weights_with_and_without_banks(tiny: Tiny) -> None:
    assert weights_fingerprint(tiny("llama", pace=ACTING).module) == weights_fingerprint(
        tiny("llama").module
    )
