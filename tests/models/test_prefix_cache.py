"""The radix tree against a dictionary of everything that was added."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transformers.cache_utils import CacheLayerMixin

from pacellm_rag.models.kv_cache import Block
from pacellm_rag.models.prefix_cache import Node, PrefixCache, Snapshot, Tokens, common_length

Prefix = tuple[int, ...]

# few tokens, so that prompts meet and part everywhere; negative ones begin or end messages
texts = st.lists(st.sampled_from([1, 2, -3]), min_size=1, max_size=9).map(tuple)
BYTES_A_TOKEN = 16
SNAPSHOT_BYTES = 8


def tokens_of(prefix: Prefix) -> Tokens:
    return np.array(prefix, dtype=np.int64)


def mark(prefix: Prefix) -> int:
    """What the state behind a prefix looks like: another number for every prefix."""
    value = 0
    for token in prefix:
        value = value * 4 + token % 4 + 1
    return value


def block_of(text: Prefix, start: int) -> Block:
    """Keys that depend on their place and on all tokens before, as real ones do."""
    marks = torch.tensor([mark(text[: end + 1]) for end in range(start, len(text))])
    block = Block(len(marks))
    states = marks.reshape(1, 1, -1, 1)
    for buffer, new in zip(block.of(0, states, -states), (states, -states), strict=True):
        buffer.copy_(new)
    return block


def snapshot_of(prefix: Prefix) -> Snapshot:
    layer = SimpleNamespace(state=torch.tensor(mark(prefix)), length=len(prefix))
    return Snapshot(layers={0: cast("CacheLayerMixin", layer)})


def text_of(node: Node) -> Prefix:
    return tuple(int(token) for each in node.path() for token in each.tokens)


class Tree(RuleBasedStateMachine):
    """Adds, matches, pins and forgets in any order."""

    stateful = False

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(stateful=self.stateful, limit_bytes=10**6)
        self.known: dict[Prefix, None] = {}  # prefixes that reading can go on from
        self.pinned: list[tuple[Node, Prefix]] = []

    def naive(self, text: Prefix, limit: int) -> int:
        return max(
            (n for n in range(min(limit, len(text)) + 1) if text[:n] in self.known), default=0
        )

    def check(self, node: Node, text: Prefix) -> None:
        """That a node holds what reading `text` up to its end would have left."""
        assert text_of(node) == text[: node.end]
        parts = node.parts()
        assert sum(map(len, parts)) == node.end
        if parts:
            keys, values = (
                torch.cat(states, 2) for states in zip(*(p.states(0) for p in parts), strict=True)
            )
            wanted = [mark(text[: end + 1]) for end in range(node.end)]
            assert keys.flatten().tolist() == wanted
            assert values.flatten().tolist() == [-each for each in wanted]
        for one, two in itertools.pairwise(parts):
            assert not (one.block is two.block and one.end == two.start)  # else they were one
        if self.stateful and node.end:
            assert node.snapshot is not None
        if node.snapshot is not None:
            assert vars(node.snapshot.layers[0])["state"] == mark(text[: node.end])

    @rule(text=texts, data=st.data())
    def read(self, text: Prefix, data: st.DataObject) -> None:
        base = self.cache.match(tokens_of(text), len(text))
        if base.end == len(text):
            return
        inside = st.integers(base.end + 1, len(text))
        ends = sorted(data.draw(st.sets(inside, min_size=1, max_size=3)))
        points = [(end, snapshot_of(text[:end]) if self.stateful else None) for end in ends]
        node = self.cache.add(tokens_of(text), base.end, block_of(text, base.end), points)
        self.known.update(
            dict.fromkeys(text[:n] for n in (ends if self.stateful else range(1, ends[-1] + 1)))
        )
        assert node.end == ends[-1]
        self.check(node, text)

    @rule(text=texts, data=st.data())
    def read_without_looking(self, text: Prefix, data: st.DataObject) -> None:
        """As two do who read the same at the same time: from the root, though more is known."""
        ends = sorted(data.draw(st.sets(st.integers(1, len(text)), min_size=1, max_size=3)))
        points = [(end, snapshot_of(text[:end]) if self.stateful else None) for end in ends]
        node = self.cache.add(tokens_of(text), 0, block_of(text, 0), points)
        self.known.update(
            dict.fromkeys(text[:n] for n in (ends if self.stateful else range(1, ends[-1] + 1)))
        )
        self.check(node, text)

    @rule(text=texts, limit=st.integers(0, 9))
    def match(self, text: Prefix, limit: int) -> None:
        limit = min(limit, len(text))
        assert self.cache.known(tokens_of(text)) == self.naive(text, len(text))
        node = self.cache.match(tokens_of(text), limit)
        assert node.end == self.naive(text, limit)
        self.check(node, text)
        assert self.cache.known(tokens_of(text)) == self.naive(text, len(text))

    @rule(text=texts)
    def pin(self, text: Prefix) -> None:
        node = self.cache.match(tokens_of(text), len(text))
        self.cache.pin(node)
        self.pinned.append((node, text))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.pinned) - 1))
        self.cache.unpin(self.pinned.pop(index)[0])

    @rule(limit=st.integers(0, 40 * BYTES_A_TOKEN))
    def shrink(self, limit: int) -> None:
        before = list(self.cache.nodes())
        leaves = [node for node in before if not node.children and not node.pins]
        fitted = self.cache.nbytes <= limit
        count = self.cache.shrink(limit)
        left = list(self.cache.nodes())
        gone = [node for node in before if node not in left]
        assert len(gone) == count
        assert not (fitted and gone)
        assert not any(node.pins for node in gone)
        kept = [node.used for node in leaves if node in left]
        assert max((node.used for node in gone), default=0) <= min(kept, default=10**9)
        if self.cache.nbytes > limit:  # then nothing could be forgotten
            assert all(node.children or node.pins for node in left)
        self.known = {}
        for node in left:
            text = text_of(node)
            if self.stateful and node.snapshot is not None:
                self.known[text] = None
            elif not self.stateful:
                self.known.update(dict.fromkeys(text[:n] for n in range(1, len(text) + 1)))

    @invariant()
    def pinned_ones_are_there_and_whole(self) -> None:
        for node, text in self.pinned:
            assert node.end == 0 or node in list(self.cache.nodes())
            self.check(node, text)

    @invariant()
    def the_tree_is_sound(self) -> None:
        blocks, total = set(), 0
        for node in self.cache.nodes():
            assert node.parent is not None
            assert node.part is not None
            assert node.parent.children[int(node.tokens[0])] is node
            assert (
                node.end == node.parent.end + len(node.tokens) == node.parent.end + len(node.part)
            )
            assert node.used <= max(
                [node.parent.used, *(10**9 for _ in [0] if not node.parent.parent)]
            )
            blocks.add(node.part.block)
            total += SNAPSHOT_BYTES * (node.snapshot is not None)
        total += BYTES_A_TOKEN * sum(block.capacity for block in blocks)
        assert self.cache.nbytes == total
        assert self.cache.spare_bytes <= total
        if not self.pinned:
            snapshots = SNAPSHOT_BYTES * sum(n.snapshot is not None for n in self.cache.nodes())
            assert self.cache.spare_bytes == total - snapshots


class StatefulTree(Tree):
    """As `Tree`, where only snapshots can be gone on from."""

    stateful = True


FEW = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestTree = Tree.TestCase
TestTree.settings = FEW
TestStatefulTree = StatefulTree.TestCase
TestStatefulTree.settings = FEW


def test_all_that_nobody_has_pinned_goes_and_takes_its_bytes_along() -> None:
    cache = PrefixCache(stateful=False, limit_bytes=0)
    for text in ((1, 2, 1), (1, 2, 2), (2,)):
        base = cache.match(tokens_of(text), len(text))
        cache.add(tokens_of(text), base.end, block_of(text, base.end), [(len(text), None)])
    node = cache.match(tokens_of((1, 2)), 2)
    cache.pin(node)
    assert cache.shrink() == 3
    assert [text_of(each) for each in cache.nodes()] == [(1, 2)]
    cache.unpin(node)
    assert cache.shrink() == 1
    assert cache.nbytes == 0


def test_the_common_beginning_is_counted_to_the_shorter_one() -> None:
    one, two = tokens_of((1, 2, 3)), tokens_of((1, 2, 3, 4))
    assert common_length(one, two) == common_length(two, one) == 3
    assert common_length(one, tokens_of((1, 5, 3))) == 1
    assert common_length(one, one[:0]) == 0
