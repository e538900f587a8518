"""LoRA adapters: found by name, and merged into a model's weights, so that they cost nothing later.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685): a weight W
becomes W + scale B A. Reads the files that peft writes, without peft. What it can not merge exactly
it refuses, and a model is changed as a whole or not at all. Knows transformers' modules, maps
of experts and the model hub; knows nothing of how models are loaded, of banks or of documents.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pacellm_rag.errors import ModelError
from pacellm_rag.models.expert_watch import experts_file
from pacellm_rag.pace.architectures import find_feed_forwards

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "adapter_name", "find_adapter", "merge_adapter"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_MERGED = "pacellm_adapters"  # in a model's configuration: hashes of what was merged into it
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Fields of the configuration that are read here, or tell only how the adapter was trained.
_KNOWN = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out "
    "inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout "
    "megatron_core peft_type peft_version qalora_group_size r rank_pattern revision runtime_config "
    "target_modules task_type use_rslora".split()
)
# Fields of the configuration that must have one of these values, where they are there.
_REQUIRED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # others change the weights under the adapter too, or add in another way
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_ELSEWHERE = (
    "Merge it with peft (merge_and_unload), save the result, and name that folder as the model."
)


def adapter_name(name: str | Path) -> str:
    """What to call an adapter: the last part of its path or id."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else path.name


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter, downloaded if it is not on this machine.

    Args:
        name: a folder, or an id of the model hub, owner/name. A `Path` is always a folder.

    Raises:
        ModelError: there is no such folder, or the hub's files are neither here nor to be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file. Name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}."
        )
    text = str(name)
    if isinstance(name, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise ModelError(
            f"There is no adapter at {path}: no such folder. Name a folder that holds "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, or an id of the model hub, owner/name."
        )
    try:
        return Path(snapshot_download(text, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (OSError, ValueError) as error:  # of the hub, of the network, of a name it can not have
        raise ModelError(
            f"Could not get the adapter {text}: {error}\n"
            "There is no such folder. Check the name; for an adapter of the hub this machine needs "
            "the network once (or the adapter in its cache)."
        ) from error


def merge_adapter(module: PreTrainedModel, folder: Path) -> None:
    """Merges a LoRA adapter into a model's weights, in place.

    The product is computed and added in float32 (float64 for weights in float64) and rounded once
    to the weight's number type. The model's configuration notes the adapter's hash, so that what
    is kept for a set of weights is never taken for another's, however little they differ.

    Args:
        module: the model; its weights on any device, in floating point.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`, as peft saves them.

    Raises:
        ModelError: a file is missing or damaged, or the adapter can not be merged exactly into
            this model. The model is as it was.
    """
    config = _read_config(folder)
    additions = list(_match(module, _read_tensors(folder), config))
    _check_targets(module, config, {each.layer for each in additions})
    _check_order(module, additions, folder)
    merged = [*getattr(module.config, _MERGED, []), _hash(folder)]
    with torch.no_grad():
        for each in additions:
            if not each.is_finite():
                raise ModelError(
                    f"With the adapter {folder}, {each.layer} would hold numbers that are not "
                    f"finite in {str(each.weight.dtype).removeprefix('torch.')}. Load the model "
                    "with dtype float32, or name another adapter."
                )
        for each in additions:
            each.weight.copy_(each.merged())
    setattr(module.config, _MERGED, merged)


@dataclass(frozen=True)
class _Config:
    """What an adapter's configuration says of merging: its folder, and all its fields."""

    folder: Path
    fields: Mapping[str, Any]

    def rank(self, layer: str) -> int:
        """How many rows A of a layer has."""
        return int(self._of(layer, "rank_pattern", "r"))

    def scale(self, layer: str) -> float:
        """What B A of a layer is multiplied by."""
        rank, alpha = self.rank(layer), float(self._of(layer, "alpha_pattern", "lora_alpha"))
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _of(self, layer: str, patterns: str, common: str) -> Any:
        """The value of the first pattern that fits, as peft matches them, or the common one."""
        for pattern, value in (self.fields.get(patterns) or {}).items():
            if _pattern(pattern).match(layer):
                return value
        return self.fields[common]

    @property
    def base(self) -> str:
        """The model that it was made for, for messages."""
        return str(self.fields.get("base_model_name_or_path") or "another model")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({text})$")


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG_FILE
    fields = _read_object(path)
    for name, value in fields.items():
        allowed = value in _REQUIRED[name] if name in _REQUIRED else not value or name in _KNOWN
        if not allowed:
            raise ModelError(
                f"The adapter {folder} has {name} = {value!r}, which can not be merged here: only "
                f"plain LoRA on linear layers can. {_ELSEWHERE}"
            )
    try:
        if "peft_type" not in fields:
            raise KeyError("peft_type")
        for common, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            for value in (fields[common], *(fields.get(patterns) or {}).values()):
                _check_number(common, value)
            for pattern in fields.get(patterns) or {}:
                _pattern(pattern)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, re.error) as error:
        raise ModelError(
            f"{path} is damaged ({error!r}). It must be as peft writes it: get the adapter again."
        ) from error
    return _Config(folder, fields)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError("not an object")
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} is no adapter: it holds no {path.name}. Name a folder as peft saves "
            "it, or none for the model as it is."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can not be read ({error}). Get the adapter again.") from error
    return fields


def _check_number(name: str, value: Any) -> None:
    whole = name == "r"
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (whole and value < 1):
        raise ValueError(f"{name} is {value!r}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = path.with_suffix(".bin")
        advice = (
            f"Its {pickled.name} is a pickle, which can run any code and is never opened: convert "
            "it where you trust it (peft's save_pretrained writes safetensors)."
            if pickled.is_file()
            else "Get the adapter again, whole."
        )
        raise ModelError(f"The adapter {folder} holds no {path.name}. {advice}")
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged ({error}). Get the adapter again.") from error
    if not tensors:
        raise ModelError(f"{path} holds no tensors. Get the adapter again.")
    return tensors


@dataclass(frozen=True)
class _Addition:
    """The low-rank part of one layer.

    Attributes:
        layer: dotted path of the layer.
        weight: of the layer; shape (out, in), or (in, out) where `transposed`.
        down: A, shape (rank, in).
        up: B, shape (out, rank).
        scale: what their product is multiplied by.
        transposed: whether the layer is transformers' `Conv1D`.
    """

    layer: str
    weight: nn.Parameter
    down: Tensor
    up: Tensor
    scale: float
    transposed: bool

    def merged(self) -> Tensor:
        """W + scale B A, in the weight's shape and number type."""
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        down, up = (each.to(self.weight.device, exact) for each in (self.down, self.up))
        left, right = (down.T, up.T) if self.transposed else (up, down)
        added = torch.addmm(self.weight.to(exact), left, right, alpha=self.scale)
        return added.to(self.weight.dtype)

    def is_finite(self) -> bool:
        """Whether `merged` is; computes it only where its parts are too large to tell by them."""
        base, down, up = (_largest(each) for each in (self.weight, self.down, self.up))
        most = base + max(abs(self.scale), 1.0) * len(self.down) * down * up
        if most < torch.finfo(self.weight.dtype).max:
            return True
        return bool(torch.isfinite(self.merged()).all())


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; not finite where one number is not."""
    return float(torch.linalg.vector_norm(tensor, math.inf)) if tensor.numel() else 0.0


def _match(
    module: PreTrainedModel, tensors: dict[str, Tensor], config: _Config
) -> Iterator[_Addition]:
    """Finds each part's layer, and refuses what does not fit."""
    folder = config.folder
    for key, tensor in tensors.items():
        if not key.startswith(_PREFIX) or not key.endswith((_DOWN, _UP)):
            raise ModelError(
                f"The adapter {folder} holds {key}, which is no low-rank part of a linear layer "
                f"(but of embeddings, DoRA, a bias or a whole module). {_ELSEWHERE}"
            )
        if tensor.dtype not in _FLOATS or not math.isfinite(_largest(tensor)):
            raise ModelError(
                f"The adapter {folder} is damaged: {key} holds what is no finite number. Get or "
                "train it again."
            )
    layers = dict(module.named_modules(remove_duplicate=False))
    users = _users(module)
    parts = {key.removeprefix(_PREFIX).removesuffix(_DOWN).removesuffix(_UP) for key in tensors}
    for part in sorted(parts):
        down, up = (tensors.get(f"{_PREFIX}{part}{end}") for end in (_DOWN, _UP))
        if down is None or up is None:
            raise ModelError(
                f"The adapter {folder} is damaged: of {part} it holds one of lora_A and lora_B "
                "only. Get the adapter again."
            )
        if part not in layers:
            raise ModelError(
                f"The adapter {folder} is for {config.base}: it changes {part}, which this "
                f"{type(module).__name__} does not have. Load the model it was made for, or name "
                "another adapter, or none."
            )
        layer = layers[part]
        weight = _plain_weight(layer, part, folder)
        sharers = [name for name in users[weight.data_ptr()] if name != f"{part}.weight"]
        if sharers:
            raise ModelError(
                f"The adapter {folder} changes {part} alone, but its weights are those of "
                f"{', '.join(sharers)} too (tied), so they can not take it. Name an adapter that "
                "leaves this layer out."
            )
        transposed = isinstance(layer, Conv1D)
        wide, narrow = reversed(weight.shape) if transposed else weight.shape
        rank = config.rank(part)
        if tuple(down.shape) != (rank, narrow) or tuple(up.shape) != (wide, rank):
            raise ModelError(
                f"The adapter {folder} does not fit {part}: its parts are {tuple(up.shape)} and "
                f"{tuple(down.shape)}, this model needs {(wide, rank)} and {(rank, narrow)}. It "
                f"is for {config.base}; load that, or name another adapter, or none."
            )
        yield _Addition(part, weight, down, up, config.scale(part), transposed)


def _users(module: nn.Module) -> Mapping[int, list[str]]:
    """The names of the parameters at each address; several where weights are tied."""
    users: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if type(parameter) is nn.Parameter:  # of quantised ones, not all can tell where they are
            users[parameter.data_ptr()].append(name)
    return users


def _plain_weight(layer: nn.Module, name: str, folder: Path) -> nn.Parameter:
    """The weight of a layer that computes with it and with nothing else."""
    weight = getattr(layer, "weight", None)
    if type(layer) not in (nn.Linear, Conv1D) or type(weight) is not nn.Parameter:
        raise ModelError(
            f"The adapter {folder} changes {name}, a {type(layer).__name__} that is no plain "
            "linear layer; only these take one exactly. If the model is quantised, load it without "
            f"that. Or else: {_ELSEWHERE}"
        )
    if weight.dtype not in _FLOATS:
        raise ModelError(
            f"The adapter {folder} changes {name}, whose weights are {weight.dtype}. Load the "
            "model without quantisation, in bfloat16, float16 or float32."
        )
    if weight.device.type == "meta":
        raise ModelError(
            f"The adapter {folder} changes {name}, whose weights are not in memory (meta, or "
            "offloaded). Load the model whole: on one device, or without offloading."
        )
    return weight


def _check_targets(module: PreTrainedModel, config: _Config, found: set[str]) -> None:
    """Refuses an adapter that leaves out layers of those it says it is for."""
    fields = config.fields
    targets = fields.get("target_modules")
    chosen = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if not isinstance(targets, list) or any(fields.get(name) for name in chosen):
        return
    ends = tuple(f".{target}" for target in targets)
    for name, _ in module.named_modules():
        if f".{name}".endswith(ends) and name not in found:
            raise ModelError(
                f"The adapter {config.folder} is for all {name.rpartition('.')[2]} of a model, but "
                f"has nothing for {name}: it is incomplete, or for {config.base}. Get it again, or "
                "load the model it was made for."
            )


def _check_order(module: PreTrainedModel, additions: list[_Addition], folder: Path) -> None:
    """Refuses to change neurons that are in another order than the adapter's."""
    if experts_file(module) is None:
        return
    sorted_ones = {
        id(projection)
        for each in find_feed_forwards(module)
        for projection in (each.gate, each.up, each.down)
    }
    for each in additions:
        if id(module.get_submodule(each.layer)) in sorted_ones:
            raise ModelError(
                f"The adapter {folder} changes {each.layer}, whose neurons `pacellm-rag cluster` "
                "has put into another order. Lay it on the model before that: pacellm-rag cluster "
                "MODEL OUT --adapter NAME."
            )


def _hash(folder: Path) -> str:
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
    digest.update((folder / WEIGHTS_FILE).read_bytes())
    return digest.hexdigest()
