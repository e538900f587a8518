"""Adapters as peft saves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

RANK = 4
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "owner/base",
    "r": RANK,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": None,
}


def layers_of(module: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    return [name for name, _ in module.named_modules() if name.rpartition(".")[2] in targets]


def random_parts(
    module: PreTrainedModel, layers: Sequence[str], *, rank: int = RANK, size: float = 0.1
) -> dict[str, Tensor]:
    """Parts of these layers, the same every time, under the keys of the file."""
    generator = torch.Generator().manual_seed(3)
    parts: dict[str, Tensor] = {}
    for name in layers:
        layer = module.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        wide, narrow = reversed(weight.shape) if isinstance(layer, Conv1D) else weight.shape
        for part, shape in (("lora_A", (rank, narrow)), ("lora_B", (wide, rank))):
            parts[f"base_model.model.{name}.{part}.weight"] = (
                torch.randn(shape, generator=generator) * size
            )
    return parts


def write_adapter(folder: Path, parts: dict[str, Tensor], **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(parts, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | fields), encoding="utf-8")
    return folder


def weights(module: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
