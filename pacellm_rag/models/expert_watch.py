"""What a model's experts do with the ranges of a text, and which words name them.

`ExpertWatch` sees stretches of a text go through the model, by forward pre-hooks that are there
during a stretch only, and keeps sums: the magnitude of each expert on each range, and its share of
the activity at each kind of token. The measure is that of `pacellm_rag.pace.experts`, which reads
a text in one pass; this is for texts that come in pieces. Knows expert maps and hooks; knows
nothing of caches or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from pacellm_rag.errors import ModelError
from pacellm_rag.models.inspection import ExpertReport
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.expert_map import (
    EXPERTS_FILE,
    ExpertMap,
    match_layers,
    possible_states,
)

__all__ = ["ExpertWatch", "experts_file"]

_FEWEST = 3  # times that a token must occur to name an expert
_WORDS = 6  # tokens of a name
_ROWS_AT_ONCE = 1024


def experts_file(module: PreTrainedModel) -> Path | None:
    """The map of the experts in the folder that a model was loaded from; None without one."""
    folder = module.name_or_path
    path = Path(folder) / EXPERTS_FILE if folder else None
    return path if path is not None and path.is_file() else None


@dataclass(eq=False)
class _LayerWatch:
    """What was seen of one layer's experts."""

    down: nn.Module  # reads the activations
    averaging: Tensor  # (width, experts): means over the neurons of each expert
    sums: Tensor  # (ranges, experts): of the magnitude at each token
    shares: Tensor  # (kinds, experts): of each expert in a token's activity
    seen: list[Tensor] = field(default_factory=list)


class ExpertWatch:
    """Sums up what experts do with the tokens of ranges.

    Args:
        module: the model.
        expert_map: its experts.
        token_ids: the text.
        ranges: [start, end) tokens of the text that are compared.

    Raises:
        ModelError: the map is of other weights, or these are quantised.
    """

    def __init__(
        self,
        module: nn.Module,
        expert_map: ExpertMap,
        token_ids: Sequence[int],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        mapped = match_layers(find_feed_forwards(module), expert_map)
        try:
            reordered = False not in possible_states(mapped)
        except ModelError as error:
            dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
            raise ModelError(
                f"{error} If the weights were stored in another number type than {dtype}, in which "
                "they are loaded now, load them in their own (dtype)."
            ) from error
        inside = [token for start, end in ranges for token in token_ids[start:end]]
        kinds, counts = torch.tensor(inside, dtype=torch.long).unique(return_counts=True)
        often = counts >= _FEWEST
        self._kinds, self._counts = kinds[often], counts[often]
        self._ranges = tuple(ranges)
        self._token_ids = token_ids
        self._layers: dict[int, _LayerWatch] = {}
        for feed_forward, experts in mapped:
            labels = experts.labels[experts.permutation] if reordered else experts.labels
            self._layers[feed_forward.layer] = _LayerWatch(
                feed_forward.down,
                one_hot(labels, experts.n_experts).float() / experts.sizes,
                torch.zeros(len(ranges), experts.n_experts),
                torch.zeros(len(self._kinds), experts.n_experts),
            )

    @contextmanager
    def seeing(self, start: int, end: int, place: int) -> Iterator[None]:
        """Takes in what the forward passes of the block do with the tokens of a stretch.

        Args:
            start: the stretch's first token.
            end: the one behind its last.
            place: index of the range that it is of.
        """
        handles = [
            layer.down.register_forward_pre_hook(partial(_see, layer))
            for layer in self._layers.values()
        ]
        try:
            yield
            self._take(start, end, place)
        finally:
            for layer, handle in zip(self._layers.values(), handles, strict=True):
                handle.remove()
                layer.seen.clear()

    def _take(self, start: int, end: int, place: int) -> None:
        ids = torch.tensor(self._token_ids[start:end], dtype=torch.long)
        known = torch.isin(ids, self._kinds)
        at = torch.searchsorted(self._kinds, ids[known])
        for layer in self._layers.values():
            activity = torch.cat(layer.seen).cpu()
            layer.sums[place] += activity.sum(0)
            share = activity / activity.sum(1, keepdim=True).clamp(min=torch.finfo().tiny)
            layer.shares.index_add_(0, at, share[known])

    def liveliest(self, top: int, text_of: Callable[[int], str]) -> tuple[ExpertReport, ...]:
        """The experts that differ most from range to range; none with fewer than two ranges.

        Args:
            top: most of them.
            text_of: the text of a token.
        """
        sizes = torch.tensor([end - start for start, end in self._ranges], dtype=torch.float)
        if int((sizes > 0).sum()) < 2:
            return ()
        layers = list(self._layers)
        relative = [self._relative(layer, sizes) for layer in self._layers.values()]
        spread = torch.stack([each[sizes > 0].std(0) for each in relative])
        found = []
        for flat in spread.flatten().topk(min(top, spread.numel())).indices.tolist():
            place, expert = divmod(flat, spread.shape[1])
            activity = tuple(relative[place][:, expert].tolist())
            words = self._words(self._layers[layers[place]], expert, text_of)
            found.append(ExpertReport(layers[place], expert, activity, words))
        return tuple(found)

    @staticmethod
    def _relative(layer: _LayerWatch, sizes: Tensor) -> Tensor:
        """How far each range lies above the mean of all, shape (ranges, experts)."""
        usual = (layer.sums.sum(0) / sizes.sum()).clamp(min=torch.finfo().tiny)
        relative = layer.sums / sizes.clamp(min=1)[:, None] / usual - 1
        relative[sizes == 0] = 0
        return relative

    def _words(
        self, layer: _LayerWatch, expert: int, text_of: Callable[[int], str]
    ) -> tuple[str, ...]:
        """The tokens at which the expert has the largest share of the activity.

        Shares, because some tokens stir all experts.
        """
        shares = layer.shares[:, expert] / self._counts
        words: list[str] = []
        for place in shares.argsort(descending=True).tolist():
            word = text_of(int(self._kinds[place])).strip()
            if word and word not in words:
                words.append(word)
            if len(words) == _WORDS:
                break
        return tuple(words)


def _see(layer: _LayerWatch, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    activations: Tensor = inputs[0].detach()
    layer.averaging = layer.averaging.to(activations.device)
    for rows in activations.reshape(-1, activations.shape[-1]).split(_ROWS_AT_ONCE):
        layer.seen.append(rows.float().abs() @ layer.averaging)
