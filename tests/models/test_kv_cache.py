from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from pacellm_rag.models.kv_cache import (
    PreallocatedLayer,
    branch_cache,
    cache_bytes,
    detach_cache,
    new_cache,
    rewindable,
)
from pacellm_rag.models.model import PaceModel

Tiny = Callable[..., PaceModel]


def block(tokens: int, seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, 3, tokens, 4, generator=generator)
    return keys, -keys


steps = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, 9)),
        st.tuples(st.just("crop"), st.integers(0, 5)),
        st.tuples(st.just("select"), st.integers(0, 1)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
    ),
    max_size=12,
)


@given(capacity=st.integers(1, 30), steps=steps)
@settings(max_examples=80, deadline=None)
def test_a_preallocated_layer_holds_what_a_dynamic_layer_holds(
    capacity: int, steps: list[tuple[str, int]]
) -> None:
    ours, theirs = PreallocatedLayer(capacity), DynamicLayer()  # type: ignore[no-untyped-call]
    rows = 2
    for seed, (step, number) in enumerate(steps):
        if step == "update":
            keys, values = block(number, seed, rows)
            returned = ours.update(keys, values)
            expected = theirs.update(keys, values)
            assert torch.equal(returned[0], expected[0])
            assert torch.equal(returned[1], expected[1])
        elif theirs.get_seq_length() == 0:
            continue
        elif step == "crop":
            number = min(number, theirs.get_seq_length() - 1)
            ours.crop(-number)
            theirs.crop(-number)
        elif step == "select":
            chosen = torch.tensor([number % rows])
            ours.batch_select_indices(chosen)
            theirs.batch_select_indices(chosen)
            rows = 1
        elif rows < 4:
            ours.batch_repeat_interleave(number)
            theirs.batch_repeat_interleave(number)
            rows *= number
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)
        if theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_within_its_capacity_nothing_is_moved() -> None:
    layer = PreallocatedLayer(20)
    layer.update(*block(8, 0))
    place = layer.keys.data_ptr()
    layer.update(*block(12, 1))
    assert layer.keys.data_ptr() == place
    layer.update(*block(1, 2))
    assert layer.keys.data_ptr() != place


def test_a_layer_grows_by_more_than_one_token_at_a_time() -> None:
    layer = PreallocatedLayer(100)
    layer.update(*block(100, 0))
    layer.update(*block(1, 1))
    assert layer.capacity >= 125


def test_positive_crops_are_refused() -> None:
    layer = PreallocatedLayer(4)
    layer.update(*block(2, 0))
    with pytest.raises(ValueError, match="negative"):
        layer.crop(1)


def test_a_reset_layer_starts_anew_with_another_batch_size() -> None:
    layer = PreallocatedLayer(4)
    layer.update(*block(2, 0))
    layer.reset()
    assert layer.get_seq_length() == 0
    keys, _ = layer.update(*block(3, 1, batch=1))
    assert keys.shape == (1, 3, 3, 4)


def test_a_detached_branch_leaves_its_origin_alone(tiny: Tiny) -> None:
    model = tiny("llama").module
    cache = new_cache(model.config, 64)
    with torch.inference_mode():
        model(torch.tensor([list(range(20, 40))]), past_key_values=cache)
        before = cache.layers[0].keys.clone()
        branch = branch_cache(cache, 10)
        detach_cache(branch, 40)
        model(torch.tensor([list(range(50, 70))]), past_key_values=branch)
    assert torch.equal(cache.layers[0].keys, before)
    assert branch.get_seq_length() == 30
    assert cache.get_seq_length() == 20


def test_bytes_are_those_of_the_buffers(tiny: Tiny) -> None:
    model = tiny("llama").module
    cache = new_cache(model.config, 100)
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    assert cache_bytes(cache) == 3 * 2 * (2 * 100 * 8) * 4  # layers, k+v, heads*tokens*dim, fp32


@pytest.mark.parametrize(
    ("family", "answer"), [("llama", True), ("mistral", False), ("gemma2", False)]
)
def test_sliding_windows_can_not_be_rewound(tiny: Tiny, family: str, answer: bool) -> None:
    assert rewindable(new_cache(tiny(family).module.config, 10)) is answer
