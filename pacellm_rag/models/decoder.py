"""Forward passes of a decoder on the caches of sequences.

`Decoder` knows which of this package's ways a model allows: attention over parts, several
sequences in one pass, going on from any token. Where it does not allow them, transformers' own
ways are taken, which are slower and as right. Knows tensors and tokens; knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from pacellm_rag.models.attention import IMPLEMENTATION, attending
from pacellm_rag.models.kv_cache import (
    Block,
    Part,
    RowLayer,
    batch_cache,
    frozen_layer,
    grow,
    is_stateful,
    new_cache,
)
from pacellm_rag.models.prefix_cache import Snapshot
from pacellm_rag.models.query_recorder import QueryRecorder, recording
from pacellm_rag.pace.cache import (
    close_windows,
    join_memories,
    memories_of,
    phase_said,
    set_memory,
    set_phase,
    split_memories,
)

__all__ = ["Batch", "Decoder"]

_PROBE = 6  # tokens


class Decoder:
    """A model's forward passes. To be used by one thread at a time.

    Args:
        module: a causal language model of transformers.
        stateful: whether it has memory banks attached, so that going on needs snapshots.
    """

    def __init__(self, module: PreTrainedModel, *, stateful: bool) -> None:
        self.module = module
        empty = new_cache(module.config, (), Block(0))
        self.stateful = stateful or is_stateful(empty)
        self._rows_only = not is_stateful(empty)
        self._attends: bool | None = None
        self._probing = threading.Lock()

    @property
    def attends(self) -> bool:
        """Whether attention goes over the parts of a sequence's cache without joining them.

        Found out by reading a few tokens both ways, once.
        """
        with self._probing:
            if self._attends is None:
                ours = self.module.config._attn_implementation == IMPLEMENTATION
                self._attends = ours and self._ways_agree()
        return self._attends

    @property
    def batches(self) -> bool:
        """Whether several sequences of different lengths can share a forward pass."""
        return self._rows_only and self.attends and not self._rope_depends_on_length()

    def _rope_depends_on_length(self) -> bool:
        rope: Any = getattr(self.module.config.get_text_config(), "rope_parameters", None) or {}
        layouts = rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]
        return any(each.get("rope_type") in ("dynamic", "longrope") for each in layouts)

    def _ways_agree(self) -> bool:
        """Some models change what lies between cache and attention, or share keys of layers."""
        ids = list(range(1, _PROBE + 1))
        results = []
        for over_parts in (False, True):
            cache = self.open((), None, Block(_PROBE))
            try:
                self._forward(cache, ids[:-2], over_parts=over_parts)
                results.append(self._forward(cache, ids[-2:], over_parts=over_parts, logits=True))
            except (RuntimeError, KeyError, IndexError, NotImplementedError):
                if over_parts:
                    return False
                raise
        joined, parts = (logits.float() for logits in results if logits is not None)
        spread = float(joined.std()) + 1e-6
        return bool((joined - parts).abs().max() < 0.2 * spread)

    def open(self, parts: Sequence[Part], snapshot: Snapshot | None, block: Block) -> Cache:
        """The cache of a sequence that goes on from what is given, and appends to `block`."""
        cache = new_cache(self.module.config, parts, block)
        set_phase(cache, "read")
        if snapshot is not None:
            for index, layer in snapshot.layers.items():
                cache.layers[index] = frozen_layer(layer)
            for index, memory in snapshot.memories.items():
                set_memory(cache, index, memory)
        return cache

    def snapshot(self, cache: Cache) -> Snapshot | None:
        """What going on from here needs beside keys and values; None for nothing."""
        if not self.stateful:
            return None
        others = {
            index: frozen_layer(layer)
            for index, layer in enumerate(cache.layers)
            if not isinstance(layer, RowLayer)
        }
        return Snapshot(memories_of(cache), others)

    def close_windows(self, cache: Cache) -> None:
        """Ends a segment."""
        close_windows(cache)

    def read(self, cache: Cache, token_ids: Sequence[int]) -> None:
        """Runs tokens of a prompt and computes no logits."""
        over_parts = self.attends
        with self.undone_on_error([cache]):
            self._forward(cache, token_ids, over_parts=over_parts)

    def start(
        self, cache: Cache, token_ids: Sequence[int], recorder: QueryRecorder | None
    ) -> torch.Tensor:
        """Runs the last tokens of a prompt: logits of shape (1, vocabulary)."""
        over_parts = self.attends  # may be found out now, which is not to be recorded
        with self.undone_on_error([cache]):
            with recording(recorder):
                logits = self._forward(cache, token_ids, over_parts=over_parts, logits=True)
            set_phase(cache, "decode")
            close_windows(cache)
        assert logits is not None
        return logits

    def _forward(
        self,
        cache: Cache,
        token_ids: Sequence[int],
        *,
        over_parts: bool,
        logits: bool = False,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """One forward pass; with positions, of one token for each row."""
        ids = torch.tensor([token_ids], device=self.module.device)
        arguments: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if positions is not None:
            ids = ids.T
            arguments["position_ids"] = positions
        over = attending(cache.layers) if over_parts else contextlib.nullcontext()
        with torch.inference_mode(), over:
            if not logits:
                self.module.base_model(input_ids=ids, **arguments)
                return None
            output = self.module(input_ids=ids, logits_to_keep=1, **arguments)
        found: torch.Tensor = output.logits[:, -1]
        return found

    @contextlib.contextmanager
    def undone_on_error(self, caches: Sequence[Cache]) -> Iterator[None]:
        """Leaves caches as they were where the work on them fails in its middle."""
        before = [[_Before.of(layer) for layer in cache.layers] for cache in caches]
        phases = [phase_said(cache) for cache in caches]
        try:
            yield
        except BaseException:
            for cache, states, phase in zip(caches, before, phases, strict=True):
                cache.layers = [state.restored() for state in states]
                set_phase(cache, phase)
            raise


@dataclass(frozen=True)
class _Before:
    """A cache layer as it was: layers replace their tensors, so references are enough."""

    layer: Any
    kind: type
    state: dict[str, Any]

    @classmethod
    def of(cls, layer: Any) -> _Before:
        return cls(layer, type(layer), dict(vars(layer)))

    def restored(self) -> Any:
        self.layer.__class__ = self.kind
        vars(self.layer).clear()
        vars(self.layer).update(self.state)
        return self.layer


class Batch:
    """Sequences that decode together, one token each per step.

    Their memories are joined when the batch is made and given back by `close`.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[Cache]) -> None:
        self.caches = tuple(caches)
        self._decoder = decoder
        self._together: Cache | None = None
        if len(caches) > 1:
            self._together = batch_cache(caches)
            set_phase(self._together, "decode")
            join_memories(self._together, caches)

    def step(
        self,
        token_ids: Sequence[int],
        lengths: Sequence[int],
        recorders: Sequence[QueryRecorder | None],
    ) -> torch.Tensor:
        """Decodes one token for each sequence.

        Args:
            token_ids: each sequence's newest token.
            lengths: tokens before it.
            recorders: of the queries, or None.

        Returns:
            Logits, shape (sequences, vocabulary).
        """
        decoder, over_parts = self._decoder, self._decoder.attends
        for cache in self.caches:
            grow(cache, 1)
        everything = [*self.caches] if self._together is None else [*self.caches, self._together]
        with decoder.undone_on_error(everything), recording(*recorders):
            positions = torch.tensor(lengths, device=decoder.module.device)[:, None]
            logits = decoder._forward(
                self._together or self.caches[0],
                token_ids,
                over_parts=over_parts,
                logits=True,
                positions=positions if self._together is not None else None,
            )
        assert logits is not None
        return logits

    def close(self) -> None:
        """Gives every sequence its memory back. Safe to repeat."""
        if self._together is not None:
            split_memories(self._together, self.caches)
            self._together = None
