"""Which token prefixes have been read: a radix tree over the points that reading can go on from.

Every node stands for the tokens from the root to its end, and holds the KV cache of its own
stretch of them as a `Part`. Where keys and values are all the state there is, reading can go on
from any token, and edges are split wherever a new prompt leaves them. Where there is more
(memory banks, sliding windows), it can go on only from nodes with a `Snapshot` of that state.

What nobody uses is forgotten, least recently used leaves first, when the tree holds more bytes
than its limit; what is pinned is not. Every node knows which documents were begun by its end, for
each reading that went through it: when the documents of all of them are to be forgotten, it goes.
Knows token ids and tensors; knows nothing of models.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers.cache_utils import CacheLayerMixin

from pacellm_rag.models.kv_cache import Block, Part, layers_bytes
from pacellm_rag.pace.layer_memory import LayerMemory
from pacellm_rag.protocols import ONE_MESSAGE, PromptLayout

__all__ = ["Node", "PrefixCache", "Snapshot", "Tokens", "common_length"]

Tokens = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a sequence's state is, at one token, beside its keys and values.

    Attributes:
        memories: by layer, PaceLLM's memory.
        layers: by layer, cache layers of transformers' own, frozen.
    """

    memories: Mapping[int, LayerMemory] = field(default_factory=dict)
    layers: Mapping[int, CacheLayerMixin] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(m.nbytes for m in self.memories.values()) + layers_bytes(self.layers.values())


class Node:
    """The tokens from the root to `end`, of which the last `len(tokens)` are its own.

    Attributes:
        parent: what comes before; None for the root.
        tokens: its own tokens.
        part: their keys and values; None for the root.
        end: tokens from the root on.
        snapshot: the state at `end`; None where there is none, or none is needed.
        children: by their first token.
        readings: of each reading that went through it, the documents begun by its end.
    """

    def __init__(
        self, parent: Node | None, tokens: Tokens, part: Part | None, snapshot: Snapshot | None
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.part = part
        self.snapshot = snapshot
        self.end: int = len(tokens) + (parent.end if parent is not None else 0)
        self.children: dict[int, Node] = {}
        self.readings: set[frozenset[str]] = set()
        self.pins = 0
        self.used = 0

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def parts(self) -> list[Part]:
        """Where the keys and values from the root to here lie, in as few stretches as can be."""
        found: list[Part] = []
        for node in self.path():
            part = node.part
            assert part is not None
            last = found[-1] if found else None
            if last is not None and last.block is part.block and last.end == part.start:
                found[-1] = Part(part.block, last.start, part.end)
            else:
                found.append(part)
        return found


class PrefixCache:
    """What has been read. Safe to use from several threads.

    Args:
        stateful: whether going on needs a snapshot.
        limit_bytes: of keys, values and snapshots; pinned ones may exceed it.
    """

    def __init__(self, *, stateful: bool, limit_bytes: int) -> None:
        self.stateful = stateful
        self.limit_bytes = limit_bytes
        self.lock = threading.RLock()
        self.root = Node(None, np.empty(0, np.int64), None, None)
        self._clock = itertools.count(1)

    def match(self, tokens: Tokens, limit: int) -> Node:
        """The furthest node that reading `tokens` can go on from, not beyond `limit` tokens.

        The root where nothing is known. An edge that is left in its middle is split there.
        """
        with self.lock:
            best, node, at = self.root, self.root, 0
            while True:
                child = node.children.get(int(tokens[at])) if at < len(tokens) else None
                if child is None:
                    break
                common = common_length(child.tokens, tokens[at:limit])
                if common < len(child.tokens):
                    if not self.stateful and common:
                        best = self._split(child, common)
                    break
                node, at = child, at + common
                if self._usable(node):
                    best = node
            self._touch(best)
            return best

    def known(self, tokens: Tokens) -> int:
        """How many of the first tokens `match` would find; changes nothing."""
        with self.lock:
            found, node, at = 0, self.root, 0
            while at < len(tokens) and (child := node.children.get(int(tokens[at]))) is not None:
                common = common_length(child.tokens, tokens[at:])
                if not self.stateful:
                    found = at + common
                if common < len(child.tokens):
                    break
                node, at = child, at + common
                if self._usable(node):
                    found = at
            return found

    def _usable(self, node: Node) -> bool:
        return not self.stateful or node.snapshot is not None

    def _touch(self, node: Node) -> None:
        now = next(self._clock)
        for each in node.path():
            each.used = now

    def _split(self, node: Node, at: int) -> Node:
        """Puts a node in the middle of an edge, `at` tokens behind its beginning."""
        parent, part = node.parent, node.part
        assert parent is not None
        assert part is not None
        middle = part.start + at
        upper = Node(parent, node.tokens[:at], Part(part.block, part.start, middle), None)
        upper.used = node.used
        upper.readings = set(node.readings)
        parent.children[int(node.tokens[0])] = upper
        node.parent, node.tokens = upper, node.tokens[at:]
        node.part = Part(part.block, middle, part.end)
        upper.children[int(node.tokens[0])] = node
        return upper

    def add(
        self,
        tokens: Tokens,
        start: int,
        block: Block,
        points: Sequence[tuple[int, Snapshot | None]],
        layout: PromptLayout = ONE_MESSAGE,
    ) -> Node:
        """Adds what was read, up to the last of the points.

        Args:
            tokens: from the first token on.
            start: where `block` begins; everything before must be in the tree.
            block: holds the keys and values from `start` to the last point at least.
            points: token counts, ascending, at which nodes are to end, with their snapshots.
            layout: of the prompt, which tells the documents in it.

        Returns:
            The node of the last point.
        """
        with self.lock:
            node = self.root
            for end, snapshot in points:
                node = self._extend(node, tokens[:end], start, block)
                if snapshot is not None and node.snapshot is None:
                    node.snapshot = snapshot
            for each in node.path():
                each.readings.add(layout.sources_before(each.end))
            self._touch(node)
            return node

    def _extend(self, node: Node, tokens: Tokens, start: int, block: Block) -> Node:
        """The node that ends with `tokens`, below `node`; what is missing lies in `block`."""
        while (at := node.end) < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                part = Part(block, at - start, len(tokens) - start)
                child = Node(node, tokens[at:].copy(), part, None)
                node.children[int(tokens[at])] = child
            elif (common := common_length(child.tokens, tokens[at:])) < len(child.tokens):
                child = self._split(child, common)
            node = child
        return node

    def pin(self, node: Node) -> None:
        """Keeps a node, and so all before it, until it is unpinned as often."""
        with self.lock:
            node.pins += 1

    def unpin(self, node: Node) -> None:
        """Undoes one `pin`."""
        with self.lock:
            node.pins -= 1

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root, parents before their children."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    @property
    def nbytes(self) -> int:
        """Bytes held: blocks count whole, and once."""
        with self.lock:
            blocks: set[Block] = set()
            total = 0
            for node in self.nodes():
                if node.part is not None:
                    blocks.add(node.part.block)
                total += node.snapshot.nbytes if node.snapshot is not None else 0
            return total + sum(block.nbytes for block in blocks)

    @property
    def spare_bytes(self) -> int:
        """Bytes that would be free if all that is not pinned were forgotten."""
        with self.lock:
            kept = {each for node in self.nodes() if node.pins for each in node.path()}
            held = {node.part.block for node in kept if node.part is not None}
            free = {node.part.block for node in self.nodes() if node.part is not None} - held
            return sum(block.nbytes for block in free)

    def shrink(self, limit_bytes: int | None = None) -> int:
        """Forgets the least recently used leaves that nobody has pinned, down to a limit.

        Args:
            limit_bytes: None for the cache's own.

        Returns:
            Nodes forgotten.
        """
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        with self.lock:
            forgotten = self._drop_unwanted()
            while self.nbytes > limit:
                leaves = [n for n in self.nodes() if not n.children and not n.pins]
                if not leaves:
                    break
                self._drop(min(leaves, key=lambda node: node.used))
                forgotten += 1
            return forgotten

    def forget(self, documents: Collection[str]) -> int:
        """Forgets what only readings of some documents went through.

        What is pinned goes when it is not any more, at the next `shrink`.

        Returns:
            Nodes forgotten by now.
        """
        names = frozenset(documents)
        with self.lock:
            for node in self.nodes():
                node.readings = {each for each in node.readings if not each & names}
            return self._drop_unwanted()

    def _drop_unwanted(self) -> int:
        """Drops leaves that no reading goes through any more, until there are none."""
        dropped = 0
        for node in reversed(list(self.nodes())):  # children before their parents
            if not node.readings and not node.children and not node.pins:
                self._drop(node)
                dropped += 1
        return dropped

    @staticmethod
    def _drop(leaf: Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[int(leaf.tokens[0])]


def common_length(one: Tokens, two: Tokens) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(two))
    differing = np.flatnonzero(one[:length] != two[:length])
    return int(differing[0]) if len(differing) else length
