"""Banks on decoders that `pacellm_rag.testing` does not have, those with odd layouts among them.

In float32 and bfloat16, judged as `to_rounding` says.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_architectures import OTHERS, build
from to_rounding import assert_same_to_rounding, every_type_and_band
from transformers import PreTrainedModel

from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.config import PaceConfig


def logits(model: torch.nn.Module, ids: torch.Tensor, **arguments: object) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, **arguments).logits
    return output.float()


def read_in_pieces(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    cache = PaceCache(model.config)
    cache.reading()
    pieces = [
        logits(model, ids[:, a:b], past_key_values=cache)
        for a, b in ((0, 7), (7, 33), (33, 34), (34, 70))
    ]
    return torch.cat(pieces, dim=1)


@every_type_and_band
@pytest.mark.parametrize("family", OTHERS)
def test_banks_act_alike_in_one_call_in_pieces_and_in_a_batch_and_come_off(
    family: str, dtype: str, config: PaceConfig
) -> None:
    model = build(family)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(0))
    model.to(getattr(torch, dtype))
    assert isinstance(model, PreTrainedModel)
    config = replace(config, layers=(1,))
    ids = torch.randint(4, 260, (2, 70), generator=torch.Generator().manual_seed(1))
    before = logits(model, ids)
    with attach(model, config) as handle:
        paced = logits(model, ids)
        assert torch.equal(paced[:, :20], before[:, :20])
        assert (paced - before)[:, 20:].abs().max() > 0.01
        assert handle.stats()[1].acted
    assert torch.equal(logits(model, ids), before)
    assert_same_to_rounding(
        model, config, dtype, lambda: (logits(model, ids[1:]), logits(model, ids)[1:])
    )
    assert_same_to_rounding(
        model, config, dtype, lambda: (logits(model, ids), read_in_pieces(model, ids))
    )
    assert torch.equal(logits(model, ids), before)
