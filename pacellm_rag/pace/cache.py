"""The memory of a sequence lives where its KV cache lives.

Each cache layer of a patched model carries that layer's `LayerMemory`, so that whatever moves,
copies, reorders or forgets the KV cache does the same to the memory, and nobody has to reset
anything: a new cache is a new memory. A plain transformers cache becomes such a cache at its first
forward pass; `PaceCache` is one from the start. Knows transformers' caches; knows nothing of
models' modules.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from pacellm_rag.errors import ModelError
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory

__all__ = [
    "PaceCache",
    "Phase",
    "close_windows",
    "join_memories",
    "memories_of",
    "memory_of",
    "phase_of",
    "phase_said",
    "restore_memories",
    "set_memory",
    "set_phase",
    "snapshot_memories",
    "split_memories",
]

Phase = Literal["read", "decode"]

_NOT_TAKEN_BACK = (
    "taken back: PaceLLM writes them to its memory. Assisted and prompt-lookup decoding need that, "
    "so they do not work with PaceLLM; detach it, or copy the cache before the tokens "
    "(copy.deepcopy)."
)


@functools.cache
def _carrying(base: Any) -> Any:
    """The layer class that does what `base` does, and takes a memory along."""

    class Carrying(base):  # type: ignore[misc]
        _layer_type = None  # else it would take its base's place in transformers' tables
        carries_memory = True
        is_croppable = False
        pace_memory: LayerMemory | None
        pace_reading: bool  # said by the caller, not guessed

        def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
            super().reorder_cache(beam_idx)
            self._select(beam_idx)

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            super().batch_select_indices(indices)
            self._select(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            if self.pace_memory is not None:
                rows = torch.arange(self.pace_memory.pending.shape[0])
                self._select(rows.repeat_interleave(repeats))

        def reset(self) -> None:
            super().reset()
            self.pace_memory = None

        def crop(self, tokens_to_remove: int) -> None:
            if self.pace_memory is not None and tokens_to_remove:
                memory = self.pace_memory if self.pace_reading else None
                self.pace_memory = _without_last(memory, abs(tokens_to_remove))
            super().crop(tokens_to_remove)

        def _select(self, rows: torch.Tensor) -> None:
            if self.pace_memory is not None:
                if rows.dtype == torch.bool:
                    rows = rows.nonzero().flatten()
                self.pace_memory = self.pace_memory.select(rows)

    Carrying.__name__ = Carrying.__qualname__ = f"Pace{base.__name__}"
    return Carrying


def _without_last(memory: LayerMemory | None, tokens: int) -> LayerMemory:
    """Takes tokens back that are not written yet, where the caller said that they are a prompt's.

    Otherwise they may be the guesses of assisted decoding, which must not form windows.
    """
    shorter = memory.without_last(tokens) if memory is not None else None
    if shorter is None:
        raise ModelError(f"The last {tokens} tokens can not be {_NOT_TAKEN_BACK}")
    return shorter


def _layer(cache: Cache, layer: int) -> Any:
    """A layer of a cache, made where the cache makes its layers on the way."""
    replicated = cache.layer_class_to_replicate
    while replicated is not None and len(cache.layers) <= layer:
        cache.layers.append(replicated())
    return cache.layers[layer]


def memory_of(cache: Cache, layer: int) -> LayerMemory | None:
    """The memory of one layer; None before its first tokens."""
    memory: LayerMemory | None = getattr(_layer(cache, layer), "pace_memory", None)
    return memory


def set_memory(cache: Cache, layer: int, memory: LayerMemory | None) -> None:
    """Gives a layer its memory, and the layer the class that takes it along.

    Raises:
        ModelError: the layer is of a kind that can not carry one.
    """
    carrier = _layer(cache, layer)
    if not getattr(carrier, "carries_memory", False):
        if not isinstance(carrier, CacheLayerMixin):
            raise ModelError(
                f"Layer {layer} keeps its state in a {type(carrier).__name__}, which can not carry "
                "an activation memory bank. Choose layers with attention for PaceConfig(layers=)."
            )
        carrier.__class__ = _carrying(type(carrier))
    carrier.pace_memory = memory
    carrier.pace_reading = getattr(cache, "pace_phase", None) == "read"


def memories_of(cache: Cache) -> dict[int, LayerMemory]:
    """All memories of a cache by layer."""
    found = {i: getattr(layer, "pace_memory", None) for i, layer in enumerate(cache.layers)}
    return {layer: memory for layer, memory in found.items() if memory is not None}


def close_windows(cache: Cache) -> None:
    """Ends a segment: writes every pending window to its bank."""
    for layer, memory in memories_of(cache).items():
        set_memory(cache, layer, memory.close_window())


def set_phase(cache: Cache, phase: Phase | None) -> None:
    """Says whether the next tokens are read or decoded; None leaves it to be guessed.

    The guess: a single token behind others is a decoded one.
    """
    cache.pace_phase = phase  # type: ignore[attr-defined]


def phase_said(cache: Cache) -> Phase | None:
    """What `set_phase` said last."""
    said: Phase | None = getattr(cache, "pace_phase", None)
    return said


def phase_of(cache: Cache, tokens: int, seen: int) -> Phase:
    """Whether a forward pass of `tokens` tokens behind `seen` others reads or decodes."""
    said = phase_said(cache)
    if said is not None:
        return said
    return "decode" if tokens == 1 and seen else "read"


def snapshot_memories(cache: Cache) -> dict[str, torch.Tensor]:
    """The memories as plain tensors by name, which share nothing with the cache."""
    return {
        f"layers.{layer}.{name}": tensor.clone()
        for layer, memory in memories_of(cache).items()
        for name, tensor in memory.tensors().items()
    }


def restore_memories(cache: Cache, tensors: dict[str, torch.Tensor], config: PaceConfig) -> None:
    """Gives a cache the memories that `snapshot_memories` took.

    Raises:
        ModelError: tensors are missing.
    """
    for layer in sorted({int(name.split(".")[1]) for name in tensors}):
        prefix = f"layers.{layer}."
        parts = {
            n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)
        }
        set_memory(cache, layer, LayerMemory.from_tensors(parts, config))


def join_memories(together: Cache, caches: Sequence[Cache]) -> None:
    """Gives a cache the memories of several, whose rows become its rows; closes windows first."""
    for cache in caches:
        close_windows(cache)
    for layer in memories_of(caches[0]):
        memories = [memories_of(cache)[layer] for cache in caches]
        set_memory(together, layer, LayerMemory.joined(memories))


def split_memories(together: Cache, caches: Sequence[Cache]) -> None:
    """Gives each of several caches the memory of its row of another: undoes `join_memories`."""
    for layer, memory in memories_of(together).items():
        for row, cache in enumerate(caches):
            chosen = torch.tensor([row], device=memory.pending.device)
            set_memory(cache, layer, memory.select(chosen))


class PaceCache(DynamicCache):
    """A `DynamicCache` for a patched model, with the verbs for its memory at hand.

    Any transformers cache carries the memory of a patched model; this one is for callers that
    read in pieces of their own and must say where segments end.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)

    def end_segment(self) -> None:
        """Ends the window that is not full; the next token begins a new one."""
        close_windows(self)

    def reading(self) -> None:
        """Says that the next tokens are of a prompt, also where they come one by one."""
        set_phase(self, "read")

    def decoding(self) -> None:
        """Says that the next tokens are decoded ones."""
        set_phase(self, "decode")

    @property
    def memories(self) -> dict[int, LayerMemory]:
        """The memories by layer."""
        return memories_of(self)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """The memories as plain tensors."""
        return snapshot_memories(self)
