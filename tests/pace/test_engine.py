"""Reading and answering with memory banks attached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from pacellm_rag.models.generation import PrefixState
from pacellm_rag.models.kv_cache import Block
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.pace.cache import PaceCache, memories_of
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory
from pacellm_rag.protocols import ONE_MESSAGE, GenerationOptions, PromptLayout
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=10)
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def prompt(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (count,), generator=generator)]


def answer(
    model: PaceModel, ids: Sequence[int], layout: PromptLayout = ONE_MESSAGE, *, new: int = 10
) -> str:
    options = GenerationOptions(max_new_tokens=new)
    return "".join(model.stream(ids, options, layout=layout))


def memories_in(state: PrefixState) -> Mapping[int, LayerMemory]:
    snapshot = state._node.node.snapshot
    assert snapshot is not None
    return snapshot.memories


@every_family
def test_a_then_b_then_a_gives_the_same_a(tiny: Tiny, family: str) -> None:
    model = tiny(family, pace=ACTING)
    documents = prompt(90)
    layout = PromptLayout((0, 90))
    state = model.prefill(documents, layout=layout)
    a, b = [*documents, *prompt(12, 1)], [*documents, *prompt(25, 2)]
    first, other, again = (answer(model, ids, layout) for ids in (a, b, a))
    assert first == again == answer(tiny(family, pace=ACTING), a, layout)
    assert other == answer(tiny(family, pace=ACTING), b, layout)
    assert first != other
    assert len(state.token_ids) == 90


@every_family
def test_the_engines_windows_do_not_matter(tiny: Tiny, family: str) -> None:
    documents, answers = prompt(95), []
    layout = PromptLayout((3, 95))
    for window in (1, 7, 64, 1024):
        model = tiny(family, pace=ACTING)
        model.window = window
        state = model.prefill(documents, layout=layout)
        answers.append(answer(model, [*documents, *prompt(33, 1)], layout))
        answers.append(answer(model, documents, layout))
        assert state.tokens_reused == 0
    assert len(set(answers[::2])) == len(set(answers[1::2])) == 1


@every_family
def test_answers_drawn_in_turns_are_those_drawn_alone(tiny: Tiny, family: str) -> None:
    model = tiny(family, pace=ACTING)
    documents = prompt(60)
    prompts = [[*documents, *prompt(9, seed)] for seed in range(3)]
    layout = PromptLayout((0, 60))
    alone = [answer(tiny(family, pace=ACTING), ids, layout) for ids in prompts]
    state = model.prefill(documents, layout=layout)
    streams = [model.stream(ids, SHORT, layout=layout) for ids in prompts]
    texts = ["", "", ""]
    for _ in range(12):
        for index, stream in enumerate(streams):
            texts[index] += next(stream, "")
    assert texts == alone
    assert [stream.tokens_reused for stream in streams] == [60, 60, 60]
    assert len(state.token_ids) == 60


@every_family
def test_answers_made_in_one_batch_are_those_made_alone(tiny: Tiny, family: str) -> None:
    """Batches form and dissolve while answers of different lengths come and go."""
    model = tiny(family, pace=ACTING)
    documents = prompt(60)
    prompts = [[*documents, *prompt(5 + 6 * seed, seed)] for seed in range(4)]
    layout = PromptLayout((0, 60))
    lengths = [6, 20, 11, 27]
    alone = [
        answer(tiny(family, pace=ACTING), ids, layout, new=new)
        for ids, new in zip(prompts, lengths, strict=True)
    ]
    state = model.prefill(documents, layout=layout)
    streams = [
        model.stream(ids, GenerationOptions(max_new_tokens=new), layout=layout)
        for ids, new in zip(prompts, lengths, strict=True)
    ]
    for stream in streams:
        stream.start()
    assert ["".join(stream) for stream in streams] == alone
    assert len(state.token_ids) == 60


def test_memory_acts_on_the_answer_and_the_state_keeps_its_own(tiny: Tiny) -> None:
    model, plain = tiny("llama", pace=ACTING), tiny("llama")
    documents = prompt(90)
    ids = [*documents, *prompt(12, 1)]
    layout = PromptLayout((0, 90))
    state = model.prefill(documents, layout=layout)
    before = {i: m.bank.keys.clone() for i, m in memories_in(state).items()}
    assert set(before) == {0, 2}
    assert answer(model, ids, layout) != answer(plain, ids, layout)
    for layer, memory in memories_in(state).items():
        assert torch.equal(memory.bank.keys, before[layer])
        assert memory.pending.shape[1] == 0  # a segment ends with its message
    assert model.pace is not None
    assert all(stats.acted for stats in model.pace.stats().values())


def test_a_branch_costs_no_copy_of_keys_values_or_memories(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    state = model.prefill(prompt(50))
    node, decoder = state._node.node, model.engine.runner.decoder
    branches = [decoder.open(node.parts(), node.snapshot, Block(20)) for _ in range(2)]
    assert node.part is not None
    for index, (one, two) in enumerate(zip(*(b.layers for b in branches), strict=True)):
        buffers = node.part.block.buffers[index]
        for layer in (one, two):
            for states, buffer in zip(layer.shared[0], buffers, strict=True):
                assert states.data_ptr() == buffer.data_ptr()
    for one, two in zip(*(memories_of(branch).items() for branch in branches), strict=True):
        assert one[1] is two[1] is memories_in(state)[one[0]]


def test_a_state_with_memory_is_not_rewound(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    documents = prompt(50)
    state = model.prefill(documents)
    other = [*documents[:30], *prompt(25, 5)]
    stream = model.stream(other, SHORT)
    text = "".join(stream)
    assert stream.tokens_reused == 0
    assert text == answer(tiny("llama", pace=ACTING), other)
    assert len(state.token_ids) == 50


def test_reading_goes_on_from_the_last_message_that_is_the_same(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    long = prompt(700)
    starts = PromptLayout((2, 300, 660))
    state = model.prefill(long, layout=starts)
    other = [*long[:680], *prompt(30, 5)]
    stream = model.stream(other, SHORT, layout=starts)
    text = "".join(stream)
    assert stream.tokens_reused == 660
    assert text == answer(tiny("llama", pace=ACTING), other, starts)
    assert len(state.token_ids) == 700


def test_the_same_tokens_in_other_messages_are_another_text(tiny: Tiny) -> None:
    """Memory depends on where windows begin, hence on where messages do."""
    documents = prompt(90)
    ids = [*documents, *prompt(20, 1)]
    one, two = PromptLayout((0, 45, 90)), PromptLayout((0, 33, 90))
    model = tiny("llama", pace=ACTING)
    states = [model.prefill(documents, layout=layout) for layout in (one, two)]
    banks = [memories_in(state)[0].bank.keys for state in states]
    assert not torch.equal(banks[0], banks[1])
    for layout in (one, two):
        stream = model.stream(ids, SHORT, layout=layout)
        text = "".join(stream)
        assert stream.tokens_reused == 90
        assert text == answer(tiny("llama", pace=ACTING), ids, layout)
    unread = model.stream(ids, SHORT, layout=PromptLayout((0, 70)))
    list(unread)
    assert unread.tokens_reused == 0


@every_family
def test_memory_is_what_reading_with_transformers_cache_leaves(tiny: Tiny, family: str) -> None:
    """Messages end segments, wherever the engine's own windows end."""
    model = tiny(family, pace=ACTING)
    ids = prompt(100)
    model.window = 30
    state = model.prefill(ids, layout=PromptLayout((0, 33, 72)))
    reference = tiny(family, pace=ACTING).module
    cache = PaceCache(reference.config)
    cache.reading()
    with torch.inference_mode():
        for start, end in ((0, 33), (33, 72), (72, 100)):
            reference(torch.tensor([ids[start:end]]), past_key_values=cache)
            if end < 100:
                cache.end_segment()
    for layer, memory in memories_in(state).items():
        wanted = cache.memories[layer]
        wanted = wanted if memory.pending.shape[1] else wanted.close_window()
        for name, tensor in memory.tensors().items():
            torch.testing.assert_close(tensor, wanted.tensors()[name], atol=1e-4, rtol=1e-4)


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
