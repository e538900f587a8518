"""How tests tell that two ways to the same logits agree, in float32 and in bfloat16.

Two ways (one call or several, a batch or a row) sum in another order, so they differ by rounding
without any bank as well. The measure is therefore that difference of the plain model: with banks,
the two ways may differ three times as much, since rounding now also passes through stored keys and
values. The token that differs most counts, so that one wrong token is not averaged away.

In bfloat16 that alone would be luck: activations are off by up to 2^-8, so tokens change bands and
trade places among the most similar slots, and a token that changes bands differs by as much as
memory moves it, which no bound on rounding can tell from a wrong memory. Hence settings without
such choices: all slots are averaged, and thresholds of -1 and 1, which no similarity crosses, put
every token that meets a memory in one band, `MIDDLE` or `HIGH`. (Layer 0 has no bank there: where
attention stands beside the feed-forward network, as in GPT-NeoX, a token that comes twice has the
same activations twice, and a cosine of 1 may be rounded above 1.) In float32 one similarity in a
million is that near to a threshold: `ACTING` has real ones, and tokens from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.config import PaceConfig

Pair = tuple[torch.Tensor, torch.Tensor]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
MIDDLE = replace(ACTING, layers=(1, 2), positives=16, negatives=0, low=-1.0, high=1.0, blend=1.0)
HIGH = replace(MIDDLE, high=-1.0, blend=0.5)

every_type_and_band = pytest.mark.parametrize(
    ("dtype", "config"),
    [
        pytest.param("float32", ACTING, id="float32"),
        pytest.param("bfloat16", MIDDLE, id="bfloat16-middle"),
        pytest.param("bfloat16", HIGH, id="bfloat16-high"),
    ],
)


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """Root mean square over the last dimension, where it is largest."""
    return float((one.float() - two.float()).square().mean(dim=-1).sqrt().max())


def allowed(one: torch.Tensor, two: torch.Tensor, dtype: str) -> float:
    """What two ways may differ by with banks, if the plain model gives `one` and `two`.

    Where the plain model's ways happen to agree, the last bit of the type counts (in float32, the
    rounding of the few hundred products of a similarity).
    """
    last_bit = {"float32": 3e-5, "bfloat16": 2.0**-8}[dtype]
    return 3 * max(distance(one, two), last_bit * float(one.abs().max()))


def assert_same_to_rounding(
    model: PreTrainedModel, config: PaceConfig, dtype: str, two_ways: Callable[[], Pair]
) -> None:
    """Asserts that two ways to the same logits agree on a model with banks.

    Banks must have moved the logits by more than twice what is allowed: else agreeing says nothing.
    """
    plain, plain_too = two_ways()
    bound = allowed(plain, plain_too, dtype)
    with attach(model, config):
        one, two = two_ways()
    assert distance(one, two) <= bound
    assert distance(one, plain) > 2 * bound
