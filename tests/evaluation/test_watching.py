from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_suite import ACTING

from pacellm_rag.evaluation.watching import watch_banks, watch_logits, watch_memory
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.config import PaceConfig

Tiny = Callable[..., PaceModel]
IDS = torch.arange(80)[None] % 250 + 4


def digest(module: torch.nn.Module, ids: torch.Tensor = IDS, times: int = 1) -> str | None:
    with watch_logits(module) as found, torch.inference_mode():
        for _ in range(times):
            module(ids)
    return found.value


def hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_digest_is_that_of_every_bit_of_every_pass(tiny: Tiny, dtype: str) -> None:
    module = tiny("llama", dtype=dtype).module
    first = digest(module)
    assert first is not None
    assert digest(module) == first
    assert digest(module, times=2) != first
    assert digest(module, IDS[:, :-1]) != first
    bits = module.lm_head.weight.data.view(torch.int16 if dtype == "bfloat16" else torch.int32)
    bits[7, 3] ^= 1 << 6
    assert digest(module) != first


def test_logits_that_are_not_there_have_no_digest(tiny: Tiny) -> None:
    module = tiny("llama").module
    with watch_logits(module) as found:
        pass
    assert found.value is None
    with watch_logits(module.model) as found, torch.inference_mode():
        module.model(IDS)
    assert found.value is None


def test_nothing_watches_any_more_after_an_error(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    before = hooks(model.module)

    def fail() -> None:
        with (
            watch_logits(model.module),
            watch_banks(model.pace),
            watch_memory(torch.device("cpu")),
        ):
            assert hooks(model.module) == before + 1 + 2 * 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert hooks(model.module) == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    ("settings", "acts"),
    [
        (ACTING, True),
        (PaceConfig(layers=(0,), window=32, low=1, high=1), False),
        (PaceConfig(layers=(0,), window=32, low=-1, blend=0), False),
        (PaceConfig(layers=(0,), window=4000, low=-1), False),
        (PaceConfig(layers=(2,), window=32, low=-1, high=-1, blend=0.001), True),
    ],
)
def test_banks_act_where_they_change_a_bit(
    tiny: Tiny, family: str, settings: PaceConfig, acts: bool
) -> None:
    module = tiny(family).module
    with torch.inference_mode():
        plain = module(IDS).logits
    with attach(module, settings) as handle, watch_banks(handle) as effect:
        with torch.inference_mode():
            logits = module(IDS).logits
        assert effect.acted is acts
    assert torch.equal(plain, logits) is not acts


def test_without_banks_none_act() -> None:
    with watch_banks(None) as effect:
        pass
    assert not effect.acted


def test_memory_that_was_held_for_a_while_is_seen() -> None:
    with watch_memory(torch.device("cpu")) as use:
        held = torch.ones(60_000_000)
        assert float(held[-1]) == 1
        del held
    assert use.added > 100_000_000
    assert use.peak == use.begin + use.added
