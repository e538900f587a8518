"""From the prefix cache to disk and back: what is kept of a reading, and under which names.

Writing happens in a thread of its own, so that nobody waits for it; a process ends only when it
is done. Knows nodes, their tensors and the store; knows nothing of requests.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicSlidingWindowLayer

from pacellm_rag.errors import ModelError
from pacellm_rag.models.kv_cache import Block, KVStorage, Part
from pacellm_rag.models.prefix_cache import Node, PrefixCache, Snapshot, Tokens
from pacellm_rag.models.state_store import StateStore
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory
from pacellm_rag.protocols import ONE_MESSAGE, PromptLayout

__all__ = ["ReadingArchive"]

logger = logging.getLogger(__name__)

_Piece = tuple[int, Part, Snapshot | None]  # its end, and what is known there

_LEAST = 256  # tokens up to a node's end: shorter texts are read faster than they are found


@dataclass(eq=False)
class _Path:
    """What is to be written: nodes from the first token on."""

    pieces: list[_Piece]
    tokens: Tokens
    note: str
    layout: PromptLayout
    left_out: frozenset[str] = frozenset()  # documents that were forgotten meanwhile

    def leave_out(self, documents: frozenset[str]) -> None:
        self.left_out |= documents


class ReadingArchive:
    """Keeps what a model has read.

    Args:
        store: where to.
        model: the model's name, for people.
        config: of the model, to make cache layers by.
        pace: settings of the memory banks; None without.
        device: where the model computes.
        storage: how keys and values are held.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        model: str,
        config: PretrainedConfig,
        pace: PaceConfig | None,
        device: torch.device,
        storage: KVStorage,
    ) -> None:
        self._store = store
        self._model = model
        self._config = config
        self._pace = pace
        self._device = device
        self._storage = storage
        self._waiting: deque[_Path] = deque()
        self._lock = threading.Lock()
        self._written = threading.Condition(self._lock)
        self._writing: _Path | None = None
        self._writer: threading.Thread | None = None

    def keep(
        self, node: Node, tokens: Tokens, note: str, layout: PromptLayout = ONE_MESSAGE
    ) -> None:
        """Writes a node and those before it, as far as they are not on disk, soon."""
        if node.end < _LEAST:
            return
        # now, as the nodes may be split while the writer is at work
        path = [(each.end, cast("Part", each.part), each.snapshot) for each in node.path()]
        with self._lock:
            self._waiting.append(_Path(path, tokens, note, layout))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="pacellm-store")
                self._writer.start()

    def flush(self) -> None:
        """Waits until everything is written."""
        writer = self._writer
        if writer is not None:
            writer.join()

    def forget(self, documents: Collection[str]) -> None:
        """Writes nothing of some documents that waits to be written, nor of what is being written.

        Waits for the piece that is under way; what is on disk stays there.
        """
        names = frozenset(documents)
        with self._lock:
            for each in self._waiting:
                each.leave_out(names)
            writing = self._writing
            if writing is not None:
                writing.leave_out(names)
                self._written.wait_for(lambda: self._writing is not writing)

    def _write(self) -> None:
        while True:
            with self._lock:
                self._writing = None
                self._written.notify_all()
                if not self._waiting:
                    self._writer = None
                    return
                path = self._writing = self._waiting.popleft()
            try:
                self._write_path(path)
            except Exception:  # the answer must not depend on it
                logger.warning(
                    "A reading could not be stored; it is kept in memory only.", exc_info=True
                )
            del path  # not held until the next comes

    def _write_path(self, path: _Path) -> None:
        for end, part, snapshot in path.pieces:
            sources = path.layout.sources_before(end)
            tensors = _tensors_of(part, snapshot)
            if tensors is None or sources & path.left_out:
                return
            # one that is there already costs nothing, and others may have removed it
            if not self._store.save(
                path.tokens[:end],
                end - len(part),
                tensors,
                model=self._model,
                note=path.note,
                documents=sources,
            ):
                return

    def known(self, tokens: Tokens) -> int:
        """How many of the first tokens are on disk."""
        chain = self._store.chain(tokens, len(tokens))
        return chain[-1].end if chain else 0

    def restore(
        self, cache: PrefixCache, tokens: Tokens, limit: int, layout: PromptLayout = ONE_MESSAGE
    ) -> int:
        """Brings what is on disk of a prompt, beyond what is in memory, into the prefix cache.

        Returns:
            Tokens that came from disk.
        """
        known = min(cache.known(tokens), limit)
        before = known
        for piece in self._store.chain(tokens, limit):
            if piece.end <= known:
                continue
            tensors = self._store.load(piece)
            if tensors is None:
                break
            try:
                block, snapshot = self._block_of(tensors, piece.end - piece.start)
            except (KeyError, ValueError, IndexError, ModelError) as error:
                logger.warning("A stored reading does not fit the model (%s); read again.", error)
                break
            cache.add(tokens, piece.start, block, [(piece.end, snapshot)], layout)
            known = piece.end
        return known - before

    def _block_of(
        self, tensors: Mapping[str, torch.Tensor], tokens: int
    ) -> tuple[Block, Snapshot | None]:
        block = Block(tokens, self._storage)
        place = self._storage.device or self._device
        memories: dict[int, dict[str, torch.Tensor]] = {}
        others: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, index, part = name.split(".", 2)
            if kind == "memory":
                memories.setdefault(int(index), {})[part] = tensor.to(self._device)
            elif kind == "layer":
                others.setdefault(int(index), {})[part] = tensor
            elif part == "keys":
                values = tensors[f"kv.{index}.values"]
                if tensor.shape[2] != tokens or values.shape[2] != tokens:
                    raise ValueError(f"layer {index} has keys of {tensor.shape[2]} tokens")
                block.buffers[int(index)] = tensor.to(place), values.to(place)
        if not memories and not others:
            return block, None
        if memories and self._pace is None:
            raise ValueError("it has memory banks")
        pace = self._pace
        return block, Snapshot(
            {i: LayerMemory.from_tensors(t, pace) for i, t in memories.items()} if pace else {},
            {i: self._sliding_layer(i, t) for i, t in others.items()},
        )

    def _sliding_layer(self, index: int, tensors: Mapping[str, torch.Tensor]) -> CacheLayerMixin:
        layer = DynamicCache(config=self._config).layers[index]
        if not isinstance(layer, DynamicSlidingWindowLayer):
            raise ValueError(f"layer {index} is no sliding window")
        layer.lazy_initialization(tensors["keys"], tensors["values"])
        layer.keys = tensors["keys"].to(self._device)
        layer.values = tensors["values"].to(self._device)
        layer.cumulative_length = int(tensors["length"])
        return layer


def _tensors_of(part: Part, snapshot: Snapshot | None) -> dict[str, torch.Tensor] | None:
    """What is written of a node; None where it has state of a kind that is not kept."""
    tensors: dict[str, torch.Tensor] = {}
    for index in sorted(part.block.buffers):
        keys, values = part.states(index)
        tensors[f"kv.{index}.keys"], tensors[f"kv.{index}.values"] = keys, values
    if snapshot is None:
        return tensors
    for index, memory in snapshot.memories.items():
        tensors |= {f"memory.{index}.{name}": t for name, t in memory.tensors().items()}
    for index, layer in snapshot.layers.items():
        if not isinstance(layer, DynamicSlidingWindowLayer):
            return None
        tensors[f"layer.{index}.keys"] = cast("torch.Tensor", layer.keys)
        tensors[f"layer.{index}.values"] = cast("torch.Tensor", layer.values)
        tensors[f"layer.{index}.length"] = torch.tensor(layer.cumulative_length)
    return tensors
