"""What experts react to, and where in a text.

`expert_activity` measures how strongly each expert reacts to a text and to each page of it;
`label_experts` names each by the tokens that excite it most. Both only watch, by forward pre-hooks
on the output projections that are gone when the function returns. Knows no documents: pages are
spans of tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pacellm_rag.errors import ConfigurationError, ContextOverflowError, ModelError
from pacellm_rag.pace.architectures import FeedForward, find_feed_forwards
from pacellm_rag.pace.expert_map import (
    ExpertMap,
    LayerExperts,
    MappedLayer,
    match_layers,
    possible_states,
)

__all__ = ["ExpertActivity", "ExpertLabel", "expert_activity", "label_experts"]

_ROWS_AT_ONCE = 1024


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
