"""Low-rank adapters on linear layers, kept in float32 beside frozen weights, saved as peft does.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685): a weight W
becomes W + (alpha / r) B A, with B zero at first. `peft` itself computes the two products in the
adapter's own type, which on a CPU costs more than the frozen product in bfloat16; here they are
computed in the model's type, and only the master copy is float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["LowRank", "add_adapters", "save_adapter"]


class LowRank(nn.Module):
    """A frozen linear layer with a trainable low-rank addition.

    Args:
        linear: the layer; its weights are left as they are.
        rank: r.
        scale: alpha / r.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        bound = 1 / math.sqrt(linear.in_features)
        start = torch.empty(rank, linear.in_features).uniform_(-bound, bound)
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: shape (..., in_features)."""
        down = nn.functional.linear(x, self.lora_A.to(x.dtype))
        added = nn.functional.linear(down, (self.lora_B * self.scale).to(x.dtype))
        frozen: Tensor = self.linear(x)
        return frozen + added


def add_adapters(model: nn.Module, rank: int, alpha: float) -> dict[str, LowRank]:
    """Freezes a model and puts an adapter on every linear layer of its decoder, by name."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found: dict[str, LowRank] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            parent, _, own = name.rpartition(".")
            found[name] = LowRank(module, rank, alpha / rank)
            setattr(model.get_submodule(parent), own, found[name])
    return found


def save_adapter(adapters: dict[str, LowRank], folder: Path, *, alpha: float, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, in bfloat16, as peft does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(_tensors(adapters)), folder / "adapter_model.safetensors")
    rank = next(iter(adapters.values())).lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapters}),
    }
    text = json.dumps(config, indent=1, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _tensors(adapters: dict[str, LowRank]) -> Iterator[tuple[str, Tensor]]:
    for name, adapter in adapters.items():
        for part in ("lora_A", "lora_B"):
            tensor = getattr(adapter, part).detach().to(torch.bfloat16).contiguous()
            yield f"base_model.model.{name}.{part}.weight", tensor
