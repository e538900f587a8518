"""Experts and banks together: a permutation of neurons changes nothing that a bank does.

A permutation alone, over the same families and types, is in `test_clustering`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from to_rounding import allowed, distance, every_type_and_band

from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.clustering import apply_permutation, cluster_neurons, undo
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]


@every_type_and_band
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_9_a_permutation_changes_nothing_with_banks_either(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model = tiny(family, dtype=dtype).module
    ids = torch.randint(4, 260, (1, 70), generator=torch.Generator().manual_seed(0))
    plain = model(ids).logits
    with attach(model, config):
        cache = PaceCache(model.config)
        paced = model(ids, past_key_values=cache).logits
    experts = cluster_neurons(model, 8)
    apply_permutation(model, experts)
    bound = allowed(plain, model(ids).logits, dtype)
    with attach(model, config):
        moved_cache = PaceCache(model.config)
        moved = model(ids, past_key_values=moved_cache).logits
    assert distance(moved, paced) <= bound
    assert distance(paced, plain) > 2 * bound
    for layer, memory in cache.memories.items():
        own, other = memory.bank, moved_cache.memories[layer].bank
        assert torch.equal(own.usage, other.usage)
        order = experts.layers[layer].permutation  # the bank's neurons moved as well
        for one, two in ((own.keys, other.keys), (own.values, other.values)):
            assert distance(one[..., order], two) < 0.05 * distance(one, two)
    undo(model, experts)
    with attach(model, config):
        assert torch.equal(model(ids).logits, paced)
