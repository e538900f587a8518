"""Which neurons make an expert: the map, and how weights are recognised as the ones it is about.

`clustering` makes an `ExpertMap` and reorders the neurons by it, which changes no output (CE is a
permutation, and the placebo arm of every evaluation). The map is tied to the content of the
weights, in either order of the neurons, by a fingerprint for each layer; nothing else tells which
order a model is in. Knows no tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.pace.architectures import FeedForward, find_feed_forwards

__all__ = [
    "EXPERTS_FILE",
    "NUMBER_TYPES",
    "ExpertMap",
    "LayerExperts",
    "MappedLayer",
    "fingerprint_of",
    "first_rows",
    "is_applied",
    "match_layers",
    "possible_states",
    "weight_of",
]

EXPERTS_FILE = "experts.safetensors"
"""What a checkpoint folder calls its expert map."""

NUMBER_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What plain weights are made of."""

_FORMAT = 1
_METADATA = "pacellm_rag.experts"


@dataclass(frozen=True, eq=False)
class LayerExperts:
    """The experts of one layer.

    Attributes:
        layer: index of the decoder layer.
        n_experts: number of experts.
        labels: shape (width,): the expert of each neuron, neurons in their original order.
        fingerprint: hash of the rows that were clustered.

    Raises:
        ConfigurationError: the experts' sizes differ by more than one.
    """

    layer: int
    n_experts: int
    labels: Tensor
    fingerprint: str

    def __post_init__(self) -> None:
        fine = self.labels.dim() == 1 and len(self.labels) >= self.n_experts >= 1
        fine = fine and int(self.labels.min()) >= 0 and int(self.labels.max()) < self.n_experts
        if not fine or int(self.sizes.max()) - int(self.sizes.min()) > 1:
            raise ConfigurationError(
                f"The labels of layer {self.layer} do not name {self.n_experts} experts whose "
                "sizes differ by at most one."
            )

    @property
    def sizes(self) -> Tensor:
        """Neurons of each expert, shape (n_experts,)."""
        return torch.bincount(self.labels, minlength=self.n_experts)

    @property
    def permutation(self) -> Tensor:
        """For each new place the neuron that goes there: expert 0's, then expert 1's, ..."""
        return self.labels.argsort(stable=True)

    @property
    def inverse(self) -> Tensor:
        """For each neuron its new place; as a permutation it restores the original order."""
        return self.permutation.argsort()


@dataclass(frozen=True, eq=False)
class ExpertMap:
    """The experts of a model's layers; made by `clustering.cluster_neurons`.

    Attributes:
        n_experts: experts of each layer.
        layers: the layers that were clustered, by rising index.
    """

    n_experts: int
    layers: tuple[LayerExperts, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of all weights that were clustered."""
        return _digest(*(f"{each.layer} {each.fingerprint}".encode() for each in self.layers))

    def save(self, path: str | Path) -> None:
        """Writes the map as a safetensors file with its metadata as JSON."""
        labels = {str(each.layer): each.labels.to(torch.int32) for each in self.layers}
        metadata = {
            "format": _FORMAT,
            "n_experts": self.n_experts,
            "fingerprints": {str(each.layer): each.fingerprint for each in self.layers},
            "checksum": _checksum(labels),
        }
        save_file(labels, path, metadata={_METADATA: json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | Path) -> ExpertMap:
        """Reads a map that `save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or no expert map.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})[_METADATA])
                labels = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["format"] != _FORMAT:
                raise ModelError(
                    f"The expert map {path} has format {metadata['format']}; this version reads "
                    f"{_FORMAT}. Make it again with cluster_neurons."
                )
            fingerprints: dict[str, str] = metadata["fingerprints"]
            if metadata["checksum"] != _checksum(labels) or set(labels) != set(fingerprints):
                raise ValueError("its checksum does not match its content")
            number = int(metadata["n_experts"])
            layers = [
                LayerExperts(int(name), number, tensor.long(), fingerprints[name])
                for name, tensor in labels.items()
            ]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelError(
                f"{path} can not be read as an expert map: {error}. Make it again with "
                "cluster_neurons, or pacellm-rag cluster."
            ) from error
        return cls(number, tuple(sorted(layers, key=lambda each: each.layer)))


def is_applied(model: nn.Module, expert_map: ExpertMap) -> bool:
    """Whether the model's neurons are in the map's order, told by the weights' content.

    Raises:
        ModelError: the weights are neither those that the map was made from nor these reordered.
    """
    feed_forwards = find_feed_forwards(model)
    return False not in possible_states(match_layers(feed_forwards, expert_map))


MappedLayer = tuple[FeedForward, LayerExperts]
"""A feed-forward network and its experts."""


def match_layers(
    feed_forwards: Sequence[FeedForward],
    expert_map: ExpertMap,
    layers: Iterable[int] | None = None,
) -> list[MappedLayer]:
    """The networks that the map is about, or those of some of its layers, with their experts.

    Raises:
        ConfigurationError: a layer is not in the map.
        ModelError: the model has fewer layers than the map.
    """
    experts = {each.layer: each for each in expert_map.layers}
    wanted = sorted(experts if layers is None else set(layers))
    missing = [layer for layer in wanted if layer not in experts]
    if missing or not wanted:
        raise ConfigurationError(
            f"The expert map has layers {sorted(experts)}; asked for was {missing or 'none'}."
        )
    if wanted[-1] >= len(feed_forwards):
        raise ModelError(
            f"The expert map does not belong to this model: it has experts of layer {wanted[-1]}, "
            f"the model layers 0 to {len(feed_forwards) - 1}. Make a map of this model with "
            "cluster_neurons."
        )
    return [(feed_forwards[layer], experts[layer]) for layer in wanted]


def possible_states(mapped: Sequence[MappedLayer]) -> set[bool]:
    """The answers to "is the map applied?" that fit all layers; both if nothing was to be moved.

    Raises:
        ModelError: no answer fits, since the map was made from other weights.
    """
    states = {True, False}
    for feed_forward, experts in mapped:
        rows = first_rows(feed_forward)
        fitting = set()
        if len(rows) == len(experts.labels):
            if fingerprint_of(rows) == experts.fingerprint:
                fitting.add(False)
            if fingerprint_of(rows[experts.inverse.to(rows.device)]) == experts.fingerprint:
                fitting.add(True)
        states &= fitting
        if not states:
            raise ModelError(
                f"The expert map does not belong to these weights: {feed_forward.path} holds "
                "neither the rows that it was made from nor these reordered. Make a map of this "
                "model with cluster_neurons."
            )
    return states


def first_rows(feed_forward: FeedForward) -> Tensor:
    """What is clustered: a row for each neuron, shape (width, hidden).

    Raises:
        ModelError: the weights are quantised or offloaded.
    """
    projection = feed_forward.up if feed_forward.gate is None else feed_forward.gate
    projection = getattr(projection, "base_layer", projection)  # PEFT's wrapper
    weight = weight_of(projection)
    rows = weight.T if isinstance(projection, Conv1D) else weight
    if rows.dim() != 2 or rows.dtype not in NUMBER_TYPES or rows.is_meta:
        raise ModelError(
            f"The neurons of {feed_forward.path} can not be told apart: its first projection is "
            f"a {type(projection).__name__} with {rows.dtype} weights of shape "
            f"{tuple(rows.shape)}. Load the model without quantisation and offloading."
        )
    return rows[: feed_forward.width].detach()


def weight_of(projection: nn.Module) -> Tensor:
    """The weights of a projection; an empty tensor where it has none under that name."""
    weight = getattr(projection, "weight", None)
    return weight if isinstance(weight, Tensor) else torch.empty(0)


def fingerprint_of(rows: Tensor) -> str:
    """Hash of the values: the same in every number type that holds them exactly."""
    values = rows.to("cpu", torch.float32).contiguous()
    return _digest(str(tuple(values.shape)).encode(), values.numpy().data)


def _checksum(labels: dict[str, Tensor]) -> str:
    parts = ((name.encode(), labels[name].contiguous().numpy().data) for name in sorted(labels))
    return _digest(*(part for pair in parts for part in pair))


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
