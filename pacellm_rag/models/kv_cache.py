"""The KV cache of one sequence: parts that others share, and a block of its own.

What has been read lies in `Block`s, buffers that only ever grow at their end. A `Part` is a stretch
of a block that is complete, so that any number of sequences may read it at once; a sequence's
cache is a chain of such parts and one block of its own that it appends to. Branching therefore
copies nothing, and nothing that others see is ever written to.

`RowLayer` is that cache for one layer, as transformers sees it. While `attention.attending` is
active it hands out the new keys only and attention goes over the parts one by one; without it,
all keys are joined, which is right for any attention function and costs a copy per call.
`BatchLayer` puts several sequences into one forward pass of one new token each.

Layers of other kinds (sliding windows, recurrent states) stay transformers' own. Knows nothing of
tokens or models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.attention import attend, attend_rows, is_attending

__all__ = [
    "BatchLayer",
    "Block",
    "KVCacheKind",
    "KVStorage",
    "Part",
    "RowLayer",
    "batch_cache",
    "cache_blocks",
    "frozen_layer",
    "grow",
    "is_stateful",
    "layers_bytes",
    "new_cache",
]

_GROWTH = 1024  # tokens: long answers become short chains of parts, and little room is wasted

_FP8 = torch.float8_e4m3fn

KeysValues = tuple[torch.Tensor, torch.Tensor]
KVCacheKind = Literal["auto", "full", "fp8", "offload"]


@dataclass(frozen=True)
class KVStorage:
    """How keys and values are held between forward passes.

    Attributes:
        dtype: the type to hold them in; None for the type that they come in.
        device: where to; None for where they come from.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, kind: KVCacheKind) -> KVStorage:
        """The storage of a name.

        "auto" and "full" hold them as they are; "fp8" in 8-bit floating point (e4m3), half of
        bfloat16's bytes, with 3 bits of mantissa; "offload" in main memory while a GPU computes.

        Raises:
            ConfigurationError: an unknown name.
        """
        known = {
            "auto": cls(),
            "full": cls(),
            "fp8": cls(dtype=_FP8),
            "offload": cls(device=torch.device("cpu")),
        }
        if kind not in known:
            raise ConfigurationError(f"kv_cache is {kind!r}; use {', '.join(known)}.")
        return known[kind]

    def held(self, states: torch.Tensor) -> torch.Tensor:
        """States as they can be written into a buffer."""
        # beyond its range this type has no infinity, and would hold "not a number"
        return states.clamp(-448, 448) if self.dtype is _FP8 else states


def _ready(states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """States as attention takes them; nothing is copied where they are held so."""
    return states.to(device=like.device, dtype=like.dtype)


class Block:
    """Buffers for the keys and values of consecutive tokens, for all layers with full attention.

    Attributes:
        capacity: tokens that there is room for.
        storage: how they are held.
        buffers: by layer, keys and values of shape (1, kv_heads, capacity, head_dim); a layer has
            them from its first tokens on.
    """

    def __init__(self, capacity: int, storage: KVStorage = KVStorage()) -> None:
        self.capacity = capacity
        self.storage = storage
        self.buffers: dict[int, KeysValues] = {}

    def of(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """A layer's buffers, made for the given states."""
        if layer not in self.buffers:

            def room(states: torch.Tensor) -> torch.Tensor:
                return torch.empty(
                    (1, states.shape[1], self.capacity, states.shape[3]),
                    dtype=self.storage.dtype or states.dtype,
                    device=self.storage.device or states.device,
                )

            self.buffers[layer] = room(keys), room(values)
        return self.buffers[layer]

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.buffers.values())


@dataclass(frozen=True, eq=False)
class Part:
    """The tokens [start, end) of a block; what they hold does not change any more."""

    block: Block
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def key(self) -> tuple[int, int, int]:
        """Equal for parts that are the same."""
        return id(self.block), self.start, self.end

    def states(self, layer: int) -> KeysValues:
        """A layer's keys and values, shape (1, kv_heads, tokens, head_dim)."""
        keys, values = self.block.buffers[layer]
        return keys[:, :, self.start : self.end], values[:, :, self.start : self.end]


def _not_offered(what: str) -> NoReturn:
    raise NotImplementedError(
        f"The reading engine's cache does not {what}; give generate() a DynamicCache for that."
    )


def _joined(stretches: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """`torch.cat`, also of 8-bit types, which it does not take everywhere."""
    if stretches[0].dtype is not _FP8:
        return torch.cat(list(stretches), dim=dim)
    return torch.cat([each.view(torch.uint8) for each in stretches], dim=dim).view(_FP8)


class RowLayer(DynamicLayer):
    """One layer's keys and values of one sequence.

    Attributes:
        index: of the layer.
        parts: what it shares with others, in order.
        block: where it appends.
        own: tokens in `block`.
    """

    def __init__(self, index: int, parts: Sequence[Part], block: Block) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = index
        self.parts = tuple(parts)
        self.block = block
        self.own = 0
        self.shared = [part.states(index) for part in self.parts]
        self._before = sum(map(len, self.parts))
        self.is_initialized = True  # nothing to be done at the first update

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Takes states of shape (1, kv_heads, new, head_dim)."""
        end = self.own + keys.shape[2]
        if end > self.block.capacity:
            raise RuntimeError(
                f"Layer {self.index} has room for {self.block.capacity} tokens of its own, and "
                f"{end} came; grow() makes room."
            )
        own_keys, own_values = self.block.of(self.index, keys, values)
        held = self.block.storage.held
        own_keys[:, :, self.own : end] = held(keys)
        own_values[:, :, self.own : end] = held(values)
        self.own = end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeysValues:
        """Appends states; returns these alone while attention goes over parts, else all."""
        self.append(key_states, value_states)
        if is_attending():
            return key_states, value_states
        keys, values = self.joined()
        return _ready(keys, key_states), _ready(values, value_states)

    def own_states(self) -> KeysValues:
        """What lies in its own block, shape (1, kv_heads, own, head_dim)."""
        keys, values = self.block.buffers[self.index]
        return keys[:, :, : self.own], values[:, :, : self.own]

    def joined(self) -> KeysValues:
        """All keys and values, as they are held: shape (1, kv_heads, tokens, head_dim)."""
        stretches = [*self.shared, self.own_states()] if self.own else self.shared
        if len(stretches) == 1:
            return stretches[0]
        keys, values = zip(*stretches, strict=True)
        return _joined(keys, 2), _joined(values, 2)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.block.buffers[self.index][0].shape[1]

    def head_keys(self, head: int, tokens: int) -> torch.Tensor:
        """The first keys of one KV head as they are held: shape (1, tokens, head_dim)."""
        stretches = [*self.shared, self.own_states()] if self.own else self.shared
        return _joined([keys[:, head] for keys, _ in stretches], 1)[:, :tokens]

    def attend(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Causal attention of the newest tokens; `query` has shape (1, heads, new, head_dim)."""
        shared = [(_ready(keys, query), _ready(values, query)) for keys, values in self.shared]
        keys, values = self.own_states()
        return attend(query, shared, (_ready(keys, query), _ready(values, query)), scale)

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._before + self.own

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys after the next update, and the first one's position."""
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """Not offered."""
        _not_offered("forget tokens")

    def crop(self, tokens_to_remove: int) -> None:
        """Not offered."""
        _not_offered("take tokens back")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Not offered."""
        _not_offered("search with beams")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Not offered."""
        _not_offered("repeat rows")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Not offered."""
        _not_offered("select rows")


class BatchLayer(DynamicLayer):
    """One layer of several sequences that each get one new token.

    Only of use while `attention.attending` is active: the sequences have different lengths, so
    there is no one tensor of their keys.
    """

    def __init__(self, rows: Sequence[RowLayer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = tuple(rows)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeysValues:
        """Appends to each sequence its row of the states (rows, kv_heads, 1, head_dim)."""
        if not is_attending():
            self.joined()
        for place, row in enumerate(self.rows):
            row.append(key_states[place : place + 1], value_states[place : place + 1])
        return key_states, value_states

    def joined(self) -> NoReturn:
        """Not offered."""
        _not_offered("join sequences of different lengths")

    def attend(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of each row's new token; `query` has shape (rows, heads, 1, head_dim)."""
        shared: dict[tuple[int, int, int], tuple[KeysValues, list[int]]] = {}
        for place, row in enumerate(self.rows):
            for part, (keys, values) in zip(row.parts, row.shared, strict=True):
                if part.key not in shared:
                    shared[part.key] = (_ready(keys, query), _ready(values, query)), []
                shared[part.key][1].append(place)
        states = [row.own_states() for row in self.rows]
        own = [(_ready(keys, query), _ready(values, query)) for keys, values in states]
        return attend_rows(query, list(shared.values()), own, scale)

    def get_seq_length(self) -> int:
        """Tokens of the longest sequence."""
        return max(row.get_seq_length() for row in self.rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all were as long as the longest: no mask is needed for one token a row."""
        return self.get_seq_length() + query_length, 0


def new_cache(config: PretrainedConfig, parts: Sequence[Part], block: Block) -> Cache:
    """The cache of one sequence that continues `parts` and appends to `block`.

    Layers that are not of full attention come empty: where there are parts, the caller gives
    them the state that they had.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RowLayer(index, parts, block) if type(layer) is DynamicLayer else layer
        for index, layer in enumerate(cache.layers)
    ]
    return cache


def grow(cache: Cache, tokens: int) -> None:
    """Makes room for `tokens` more tokens: what lies in the full block becomes a part."""
    rows = [layer for layer in cache.layers if isinstance(layer, RowLayer)]
    if not rows or rows[0].own + tokens <= rows[0].block.capacity:
        return
    first = rows[0]
    parts = (*first.parts, Part(first.block, 0, first.own)) if first.own else first.parts
    block = Block(max(tokens, _GROWTH), first.block.storage)
    for row in rows:
        if row.own:
            row.shared = [*row.shared, row.own_states()]
        row.parts, row.block, row._before, row.own = parts, block, row._before + row.own, 0


def batch_cache(caches: Sequence[Cache]) -> Cache:
    """One cache for a forward pass of one new token of each of several sequences.

    Every layer of theirs must be a `RowLayer`.
    """
    together = copy.copy(caches[0])
    together.layers = [
        BatchLayer([cache.layers[index] for cache in caches])  # type: ignore[misc]
        for index in range(len(caches[0].layers))
    ]
    return together


def is_stateful(cache: Cache) -> bool:
    """Whether some layer's state at an earlier token can not be had from its state at a later one.

    So it is with sliding windows and recurrent layers.
    """
    return not all(isinstance(layer, RowLayer) for layer in cache.layers)


def frozen_layer(layer: Any) -> Any:
    """A copy of a layer of transformers' own that shares no tensor with it."""
    other = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor):
            setattr(other, name, value.clone())
    return other


def cache_blocks(cache: Cache) -> set[Block]:
    """The blocks that a sequence's cache holds, those it shares included."""
    found: set[Block] = set()
    for layer in cache.layers:
        if isinstance(layer, RowLayer):
            found |= {part.block for part in layer.parts} | {layer.block}
    return found


def layers_bytes(layers: Iterable[Any]) -> int:
    """Bytes of the tensors of layers of transformers' own."""
    return sum(
        value.nbytes
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    )
