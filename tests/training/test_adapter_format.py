"""What training saves is what merging reads: the same model, and peft reads it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pacellm_rag.models.adapter import merge_adapter
from pacellm_rag.models.model import PaceModel
from training.lora import LowRank, add_adapters, save_adapter

Tiny = Callable[..., PaceModel]
IDS = torch.arange(20, 60)[None]


def save_random(model: PaceModel, folder: Path) -> dict[str, LowRank]:
    """Puts adapters of values that the file's number type can hold on a model, and saves them."""
    adapters = add_adapters(model.module, 4, 6.0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for adapter in adapters.values():
            for part in (adapter.lora_A, adapter.lora_B):
                part.copy_((torch.randn_like(part) * 0.1).bfloat16())
    save_adapter(adapters, folder, alpha=6.0, base=model.name)
    return adapters


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt_neox"])
@torch.no_grad()
def test_merged_gives_the_logits_of_training(tiny: Tiny, family: str, tmp_path: Path) -> None:
    trained, merged = tiny(family), tiny(family)
    plain = merged.module(IDS).logits
    save_random(trained, tmp_path)
    merge_adapter(merged.module, tmp_path)
    expected = trained.module(IDS).logits
    assert (plain - expected).abs().max() > 0.05
    assert torch.allclose(merged.module(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_peft_reads_what_training_saves(tiny: Tiny, tmp_path: Path) -> None:
    save_random(tiny(), tmp_path)
    module, base = tiny().module, tiny().module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        theirs: nn.Module = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    merge_adapter(module, tmp_path)
    ours = module.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(tensor, ours[name], rtol=1e-5, atol=1e-6), name
