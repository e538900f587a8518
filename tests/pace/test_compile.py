"""torch.compile on a model with banks: the same numbers, and how many graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import DynamicCache

from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.config import PaceConfig

Tiny = Callable[..., PaceModel]
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own, which change with every release
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def test_a_compiled_model_with_banks_reads_and_decodes_as_it_does_uncompiled(tiny: Tiny) -> None:
    model = tiny("llama").module
    ids = torch.randint(4, 260, (1, 60), generator=torch.Generator().manual_seed(0))
    with attach(model, ACTING):
        compiled = torch.compile(model, backend="eager")
        plain_cache, cache = (DynamicCache(config=model.config) for _ in range(2))
        for piece in (ids, ids[:, :1], ids[:, 5:6]):
            wanted = model(piece, past_key_values=plain_cache).logits
            got = compiled(piece, past_key_values=cache).logits
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_graphs_break_at_the_hooks_only(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, torch.randint(4, 260, (1, 30))

    def breaks() -> int:
        torch._dynamo.reset()
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache)

        def step(token: torch.Tensor, held: DynamicCache) -> torch.Tensor:
            logits: torch.Tensor = model(token, past_key_values=held).logits
            return logits

        explained = torch._dynamo.explain(step)(ids[:, :1], copy.deepcopy(cache))  # type: ignore[no-untyped-call]
        for reason in explained.break_reasons:
            assert "disable" in str(reason.reason), reason
        return int(explained.graph_break_count)

    assert breaks() == 0
    with attach(model, ACTING):
        assert breaks() <= 8  # before and after the decoder, and around each of the two layers
