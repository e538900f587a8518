"""A KV cache whose buffers are allocated once, and that branches without copying.

transformers' `DynamicLayer` joins old and new keys into a fresh tensor at every token, which
copies the whole context each time. `PreallocatedLayer` writes into a buffer with room at its end
instead. A branch is a second layer over the same buffer with its own length: what lies before the
branching point is shared, what a branch adds lies behind it. Only one branch at a time may use
that room; `ContextState` (generation.py) sees to it and copies for the others.

Layers of other kinds (sliding windows, recurrent states) stay transformers' own and are copied
per branch. Knows nothing of tokens or models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = [
    "PreallocatedLayer",
    "branch_cache",
    "cache_bytes",
    "detach_cache",
    "new_cache",
    "rewindable",
]


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values in buffers with room to grow.

    Attributes:
        keys: shape (batch, kv_heads, tokens, head_dim): a view of the buffer's filled part.
        values: as `keys`.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self._length = 0
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates the buffers in the shape, type and place of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device

        def allocate(states: torch.Tensor) -> torch.Tensor:
            batch, heads, _, dim = states.shape
            return states.new_empty((batch, heads, self.capacity, dim))

        self._buffers = allocate(key_states), allocate(value_states)
        self.is_initialized = True
        self._set_length(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends states of shape (batch, kv_heads, new, head_dim); returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self.capacity:
            self.reserve(max(end, self.capacity + self.capacity // 4))
        self._set_length(end)
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values

    def _set_length(self, length: int) -> None:
        assert self._buffers is not None
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def reserve(self, capacity: int) -> None:
        """Moves to private buffers of at least `capacity` tokens."""
        self.capacity = max(capacity, self._length)
        if not self.is_initialized:
            return
        keys, values = self.keys, self.values
        self.lazy_initialization(keys, values)
        self._set_length(keys.shape[-2])
        self.keys.copy_(keys)
        self.values.copy_(values)

    def branch(self, length: int) -> PreallocatedLayer:
        """A layer over the same buffers that holds their first `length` tokens."""
        other = copy.copy(self)
        if self.is_initialized:
            other._set_length(length)
        return other

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._length

    def reset(self) -> None:
        """Forgets all tokens and the buffers."""
        self._buffers = None
        self._length = 0
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens (transformers passes a negative number)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, not {tokens_to_remove}.")
        if self.is_initialized:
            self._set_length(max(self._length + tokens_to_remove, 0))

    def _adopt(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._buffers = keys, values
        self.capacity = keys.shape[-2]
        self._set_length(self._length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row `repeats` times."""
        if self._length:
            self._adopt(
                self.keys.repeat_interleave(repeats, dim=0),
                self.values.repeat_interleave(repeats, dim=0),
            )

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows named by `indices`."""
        if self._length:
            self._adopt(self.keys[indices, ...], self.values[indices, ...])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the rows for beam search."""
        self.batch_select_indices(beam_idx.to(self.device))

    def offload(self) -> None:
        """Not offered: the buffers stay where the model computes."""
        raise NotImplementedError("A preallocated layer does not offload; use DynamicCache for it.")


def new_cache(config: PretrainedConfig, capacity: int) -> Cache:
    """A cache for one model with `capacity` tokens of room in its full-attention layers."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


def rewindable(cache: Cache) -> bool:
    """Whether the cache can be branched at an earlier length than its own.

    Not with sliding windows, nor where a layer carries PaceLLM's memory, which is of a class of
    its own: neither keeps what it was earlier.
    """
    return all(type(layer) is PreallocatedLayer for layer in cache.layers)


def branch_cache(cache: Cache, length: int) -> Cache:
    """A cache that continues from the first `length` tokens of another.

    Preallocated layers share their buffers, the rest is copied; so `length` must be the cache's
    own where `rewindable` is false.
    """
    other = copy.copy(cache)
    with torch.no_grad():
        other.layers = [
            layer.branch(length) if isinstance(layer, PreallocatedLayer) else copy.deepcopy(layer)
            for layer in cache.layers
        ]
    return other


def detach_cache(cache: Cache, capacity: int) -> None:
    """Gives a branch its own buffers of `capacity` tokens, so that others may use the old ones."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.reserve(capacity)


def cache_bytes(cache: Cache) -> int:
    """Bytes allocated by the cache's tensors."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            tensors: Iterable[object] = layer._buffers or ()
        else:
            tensors = vars(layer).values()
        total += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
    return total
