"""Banks on decoders that `pacellm_rag.testing` does not have, those with odd layouts among them."""

from __future__ import annotations

import pytest
import torch
from test_architectures import OTHERS, build

from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.config import PaceConfig

ACTING = PaceConfig(layers=(1,), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)


def logits(model: torch.nn.Module, ids: torch.Tensor, **arguments: object) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, **arguments).logits
    return output


@pytest.mark.parametrize("family", OTHERS)
def test_banks_act_alike_in_one_call_in_pieces_and_in_a_batch_and_come_off(family: str) -> None:
    model = build(family)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(4, 260, (2, 70), generator=torch.Generator().manual_seed(1))
    before = logits(model, ids)
    with attach(model, ACTING) as handle:  # type: ignore[arg-type]
        paced = logits(model, ids)
        assert torch.equal(paced[:, :20], before[:, :20])
        assert (paced - before)[:, 20:].abs().max() > 0.01
        assert handle.stats()[1].acted
        torch.testing.assert_close(logits(model, ids[1:]), paced[1:], atol=2e-4, rtol=1e-3)
        cache = PaceCache(model.config)
        cache.reading()
        pieces = [
            logits(model, ids[:, a:b], past_key_values=cache)
            for a, b in ((0, 7), (7, 33), (33, 34), (34, 70))
        ]
        torch.testing.assert_close(torch.cat(pieces, dim=1), paced, atol=5e-4, rtol=1e-3)
    assert torch.equal(logits(model, ids), before)
