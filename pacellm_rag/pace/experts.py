"""The experts of a model: which neurons they are, what they react to, and where in a text.

An `ExpertMap` names for every layer the expert of each neuron; `clustering` makes it and reorders
the neurons by it, which changes no output (CE is a permutation, and the placebo arm of every
evaluation). Here the map is kept, recognised in weights, and used: `expert_activity` measures how
strongly each expert reacts to a text and to each page of it, `label_experts` names each by the
tokens that excite it most. Both only watch, by forward pre-hooks on the output projections that
are gone when the function returns.

The map is tied to the content of the weights, in either order of the neurons, by a fingerprint for
each layer; nothing else tells which order a model is in. (Over 400 lines: what a map is, how it is
recognised and how it is used need each other.) Knows no documents: pages are spans of tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers.pytorch_utils import Conv1D

from pacellm_rag.errors import ConfigurationError, ContextOverflowError, ModelError
from pacellm_rag.pace.architectures import FeedForward, find_feed_forwards

__all__ = [
    "EXPERTS_FILE",
    "NUMBER_TYPES",
    "ExpertActivity",
    "ExpertLabel",
    "ExpertMap",
    "LayerExperts",
    "MappedLayer",
    "expert_activity",
    "fingerprint_of",
    "first_rows",
    "is_applied",
    "label_experts",
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
_ROWS_AT_ONCE = 1024


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


@dataclass(frozen=True, eq=False)
class ExpertActivity:
    """How strongly experts react to a text: the mean magnitude of their neurons' activations.

    Attributes:
        layers: indices of the layers, in the order of the tensors.
        mean: over all tokens, shape (layers, experts).
        spans: over the tokens of each span, shape (layers, spans, experts); None without spans.
    """

    layers: tuple[int, ...]
    mean: Tensor
    spans: Tensor | None


@dataclass(frozen=True)
class ExpertLabel:
    """The tokens that excite an expert most.

    Attributes:
        layer: index of the decoder layer.
        expert: index of the expert.
        tokens: as text, the most exciting first.
        scores: for each token, how many times its usual share of a token's activity the expert
            has there.
    """

    layer: int
    expert: int
    tokens: tuple[str, ...]
    scores: tuple[float, ...]


class TokenDecoder(Protocol):
    """A tokenizer, as far as it is needed here; those of transformers fit."""

    def decode(self, token_ids: Any, /) -> Any:
        """The text of tokens."""
        ...


def expert_activity(
    model: nn.Module,
    token_ids: Sequence[int] | Tensor,
    expert_map: ExpertMap,
    *,
    spans: Sequence[tuple[int, int]] | None = None,
    layers: Iterable[int] | None = None,
) -> ExpertActivity:
    """Measures the experts' activity on a text, which is read in one forward pass.

    The first token of a text draws activations that dwarf all others in many models; start the
    first span after it to compare spans.

    Args:
        model: the model of the map, its neurons in either order.
        token_ids: the text, shape (tokens,).
        expert_map: the experts.
        spans: [start, end) tokens of parts of the text, such as its pages.
        layers: indices of the layers to watch; None takes all of the map.

    Raises:
        ModelError: the map does not belong to the model.
        ConfigurationError: a layer is not in the map, or a span is empty or beyond the text.
        ContextOverflowError: the text is longer than the model's context window.
    """
    length = len(token_ids)
    for start, end in spans or ():
        if not 0 <= start < end <= length:
            raise ConfigurationError(
                f"The span [{start}, {end}) is empty or not within the {length} tokens."
            )
    found = _token_activity(model, token_ids, expert_map, layers)
    stacked = torch.stack(list(found.values()))
    return ExpertActivity(
        layers=tuple(found),
        mean=stacked.mean(1),
        spans=(
            torch.stack([stacked[:, start:end].mean(1) for start, end in spans], dim=1)
            if spans
            else None
        ),
    )


def label_experts(
    model: nn.Module,
    tokenizer: TokenDecoder,
    token_ids: Sequence[int] | Tensor,
    expert_map: ExpertMap,
    *,
    top: int = 5,
    fewest: int = 2,
    layers: Iterable[int] | None = None,
) -> dict[int, tuple[ExpertLabel, ...]]:
    """Names each expert by the tokens of a text that excite it most.

    An expert is excited by a token as far as it takes more than its usual share of the activity
    there; shares, because some tokens stir all experts.

    Args:
        model: the model of the map, its neurons in either order.
        tokenizer: of the model.
        token_ids: the text, shape (tokens,); the more of it, the better the names.
        expert_map: the experts.
        top: most tokens of a label.
        fewest: how often a token must occur in the text to count.
        layers: indices of the layers to label; None takes all of the map.

    Returns:
        For each layer the labels of its experts, by expert.

    Raises:
        ModelError: the map does not belong to the model.
        ConfigurationError: a layer is not in the map.
        ContextOverflowError: the text is longer than the model's context window.
    """
    found = _token_activity(model, token_ids, expert_map, layers)
    kinds, kind_of, counts = (
        torch.as_tensor(token_ids).cpu().unique(return_inverse=True, return_counts=True)
    )
    often = counts >= fewest
    texts = [str(tokenizer.decode([token])) for token in kinds[often].tolist()]
    labels = {}
    for layer, activity in found.items():
        share = activity / activity.sum(1, keepdim=True).clamp(min=torch.finfo().tiny)
        total = torch.zeros(len(kinds), share.shape[1]).index_add_(0, kind_of, share)
        usual = share.mean(0).clamp(min=torch.finfo().tiny)
        scores = (total / counts[:, None] / usual)[often]
        best, places = scores.topk(min(top, len(texts)), dim=0)
        labels[layer] = tuple(
            ExpertLabel(
                layer,
                expert,
                tuple(texts[place] for place in places[:, expert].tolist()),
                tuple(best[:, expert].tolist()),
            )
            for expert in range(expert_map.n_experts)
        )
    return labels


@torch.no_grad()
def _token_activity(
    model: nn.Module,
    token_ids: Sequence[int] | Tensor,
    expert_map: ExpertMap,
    layers: Iterable[int] | None,
) -> dict[int, Tensor]:
    """By layer, each expert's mean magnitude at each token, shape (tokens, experts)."""
    ids = torch.as_tensor(token_ids, dtype=torch.long)
    if ids.dim() != 1 or not len(ids):
        raise ConfigurationError(
            f"token_ids has shape {tuple(ids.shape)}; give the tokens of one text, at least one."
        )
    _check_length(model, len(ids))
    mapped = match_layers(find_feed_forwards(model), expert_map, layers)
    reordered = False not in possible_states(mapped)
    stop = not hasattr(model, "hf_device_map")  # accelerate's hooks want to see the pass end
    with _watching(mapped, reordered, stop=stop) as found, suppress(_AllSeen):
        place = next(model.parameters()).device
        model(input_ids=ids[None].to(place), **_last_logits_only(model))
    for feed_forward, _ in mapped:
        if len(found[feed_forward.layer]) != len(ids):
            raise ModelError(
                f"{feed_forward.path} saw {len(found[feed_forward.layer])} of {len(ids)} tokens; "
                "activity can only be measured where it sees each token once."
            )
    return found


class _AllSeen(Exception):
    """Ends a forward pass whose further layers nobody watches."""


@contextmanager
def _watching(
    mapped: Sequence[MappedLayer], reordered: bool, *, stop: bool
) -> Iterator[dict[int, Tensor]]:
    """Collects each expert's mean magnitude at each token of a forward pass in the block.

    With `stop` the pass ends with `_AllSeen` at the last layer that is watched.
    """
    found: dict[int, Tensor] = {}
    handles = []

    def watch(feed_forward: FeedForward, experts: LayerExperts) -> None:
        labels = experts.labels[experts.permutation] if reordered else experts.labels
        averaging = one_hot(labels, experts.n_experts).float() / experts.sizes

        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            activations: Tensor = inputs[0].detach().reshape(-1, feed_forward.width)
            weights = averaging.to(activations.device)
            parts = [part.float().abs() @ weights for part in activations.split(_ROWS_AT_ONCE)]
            found[feed_forward.layer] = torch.cat(parts).cpu()
            if stop and len(found) == len(mapped):
                raise _AllSeen

        handles.append(feed_forward.down.register_forward_pre_hook(see))

    try:
        for feed_forward, experts in mapped:
            watch(feed_forward, experts)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check_length(model: nn.Module, length: int) -> None:
    config = getattr(model, "config", None)
    text_config = config.get_text_config(decoder=True) if config is not None else None
    window = getattr(text_config, "max_position_embeddings", None)
    if isinstance(window, int) and length > window:
        raise ContextOverflowError(
            f"The text has {length} tokens; the model takes {window}. Give a part of it at a time.",
            needed_tokens=length,
            available_tokens=window,
        )


def _last_logits_only(model: nn.Module) -> dict[str, int]:
    """The argument that keeps a model from computing logits that nobody reads."""
    base = getattr(model, "get_base_model", None)  # PEFT
    forward = (model if base is None else base()).forward
    return (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(forward).parameters else {}
    )


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
