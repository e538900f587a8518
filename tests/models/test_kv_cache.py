"""Keys and values in shared parts. A few lines over 400, as its claims share how parts are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import Cache, DynamicLayer

from pacellm_rag.models.attention import attending
from pacellm_rag.models.kv_cache import (
    BatchLayer,
    Block,
    Part,
    RowLayer,
    batch_cache,
    cache_blocks,
    frozen_layer,
    grow,
    is_stateful,
    layers_bytes,
    new_cache,
)
from pacellm_rag.models.model import PaceModel

Tiny = Callable[..., PaceModel]
KeysValues = tuple[torch.Tensor, torch.Tensor]
HEADS, DIM = 3, 4


def states(tokens: int, seed: int, rows: int = 1) -> KeysValues:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, HEADS, tokens, DIM, generator=generator)
    return keys, -keys


def dynamic() -> DynamicLayer:
    return DynamicLayer()  # type: ignore[no-untyped-call]


def same(one: KeysValues, two: KeysValues) -> bool:
    return torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def held(layer: DynamicLayer) -> KeysValues:
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


def addresses(stretches: Sequence[KeysValues]) -> list[tuple[int, int]]:
    return [(keys.data_ptr(), values.data_ptr()) for keys, values in stretches]


def filled(block: Block, tokens: int, seed: int) -> KeysValues:
    """Writes a block full from its beginning, as a sequence of its own."""
    given_states = states(tokens, seed)
    RowLayer(0, (), block).append(*given_states)
    return given_states


# (capacity of the block, where the part begins and ends in it): drawn, then put into range
part_shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 11), st.integers(1, 12)))


def drawn_parts(shapes: Sequence[tuple[int, int, int]]) -> tuple[list[Part], DynamicLayer]:
    """Parts of blocks, and what transformers' layer holds when it is given the same states."""
    theirs, parts = dynamic(), []
    for seed, (capacity, first, length) in enumerate(shapes):
        start = first % capacity
        end = min(start + length, capacity)
        block = Block(capacity)
        keys, values = filled(block, capacity, 100 + seed)
        parts.append(Part(block, start, end))
        theirs.update(keys[:, :, start:end], values[:, :, start:end])
    return parts, theirs


@given(shapes=part_shapes, appended=st.lists(st.integers(1, 9), max_size=8), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_row_holds_what_a_dynamic_layer_holds(
    shapes: list[tuple[int, int, int]], appended: list[int], seed: int
) -> None:
    parts, theirs = drawn_parts(shapes)
    shown = [tuple(state.clone() for state in part.states(0)) for part in parts]
    ours = RowLayer(0, parts, Block(sum(appended)))
    for step, tokens in enumerate(appended):
        assert ours.get_mask_sizes(tokens) == theirs.get_mask_sizes(tokens)
        new = states(tokens, 50 * seed + step)
        returned = ours.update(*new)
        expected = theirs.update(*new)
        assert same(returned, expected)
        assert same(ours.joined(), held(theirs))
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.own == sum(appended[: step + 1])
    if parts and not appended:
        assert same(ours.joined(), held(theirs))
        assert ours.get_seq_length() == theirs.get_seq_length()
    for part, before in zip(parts, shown, strict=True):
        assert same(part.states(0), before)  # type: ignore[arg-type]
    if ours.get_seq_length() and appended:
        for head in range(HEADS):
            for tokens in (1, ours.get_seq_length()):
                wanted = held(theirs)[0][:, head, :tokens]
                assert torch.equal(ours.head_keys(head, tokens), wanted)


@given(
    shapes=part_shapes,
    appended=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=2, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_sequences_that_share_parts_never_see_each_others_tokens(
    shapes: list[tuple[int, int, int]], appended: list[list[int]]
) -> None:
    parts, _ = drawn_parts(shapes)
    rows = [RowLayer(0, parts, Block(sum(steps))) for steps in appended]
    references = [drawn_parts(shapes)[1] for _ in appended]
    for turn in range(max(map(len, appended))):
        for place, steps in enumerate(appended):
            if turn < len(steps):
                new = states(steps[turn], 1000 * place + turn)
                rows[place].update(*new)
                references[place].update(*new)
        for row, reference in zip(rows, references, strict=True):
            assert same(row.joined(), held(reference))


def test_parts_that_are_branched_from_are_not_copied() -> None:
    block = Block(20)
    writer = RowLayer(0, (), block)
    writer.append(*states(12, 0))
    part = Part(block, 2, 12)
    keys, values = part.states(0)
    whole, _ = block.buffers[0]
    assert keys.data_ptr() == whole[:, :, 2:].data_ptr()
    readers = [RowLayer(0, (part,), Block(5)) for _ in range(3)]
    for reader in readers:
        reader.append(*states(5, 1))
        assert addresses(reader.shared) == addresses([(keys, values)])
    before = keys.clone()
    writer.append(*states(8, 2))  # behind the part, in the same block
    assert torch.equal(keys, before)
    assert len(part) == 10


def test_within_its_capacity_nothing_is_moved() -> None:
    block = Block(20)
    layer = RowLayer(0, (), block)
    layer.append(*states(8, 0))
    before = addresses([layer.own_states()])
    layer.append(*states(12, 1))
    assert addresses([layer.own_states()]) == before
    assert layer.joined()[0].data_ptr() == before[0][0]  # one stretch needs no joining


@pytest.mark.parametrize(
    "tokens",
    [
        1,
        2,
        5,
    ],
)
def test_what_does_not_fit_is_never_dropped_silently(tokens: int) -> None:
    layer = RowLayer(0, (), Block(4))
    layer.append(*states(4, 0))
    with pytest.raises(RuntimeError):
        layer.append(*states(tokens, 1))  # `grow` must come first
    assert layer.get_seq_length() == 4


def test_blocks_take_the_type_of_what_they_hold_and_only_for_layers_that_write() -> None:
    block = Block(6)
    assert block.nbytes == 0
    keys, values = (state.bfloat16() for state in states(2, 0))
    RowLayer(3, (), block).append(keys, values)
    assert set(block.buffers) == {3}
    assert {state.dtype for state in block.buffers[3]} == {torch.bfloat16}
    assert block.nbytes == 2 * HEADS * 6 * DIM * 2


def test_keys_and_values_may_differ_in_width() -> None:
    keys, values = states(4, 0)[0], torch.randn(1, HEADS, 4, 2 * DIM)
    layer = RowLayer(0, (), Block(4))
    layer.append(keys, values)
    assert same(layer.joined(), (keys, values))


def row_cache(layers: int, parts: Sequence[Part], capacity: int) -> Cache:
    """A cache of some layers of full attention, without a model."""
    block = Block(capacity)
    return Cache(layers=[RowLayer(index, parts, block) for index in range(layers)])


def append_all(cache: Cache, tokens: int, seed: int) -> None:
    for index, layer in enumerate(cache.layers):
        layer.append(*states(tokens, 10 * seed + index))


@given(
    capacity=st.integers(0, 20),
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    shapes=part_shapes,
)
@settings(max_examples=60, deadline=None)
def test_growing_keeps_everything_and_copies_nothing(
    capacity: int, steps: list[int], shapes: list[tuple[int, int, int]]
) -> None:
    parts, theirs = drawn_parts(shapes)
    layer = RowLayer(0, parts, Block(capacity))
    cache = Cache(layers=[layer])
    for step, tokens in enumerate(steps):
        before = addresses([*layer.shared, layer.own_states()] if layer.own else layer.shared)
        length = layer.get_seq_length()
        grow(cache, tokens)
        after = addresses([*layer.shared, layer.own_states()] if layer.own else layer.shared)
        assert after == before
        assert layer.get_seq_length() == length
        assert layer.own + tokens <= layer.block.capacity
        assert sum(map(len, layer.parts)) == length - layer.own
        for part, shared in zip(layer.parts, layer.shared, strict=True):
            assert addresses([part.states(0)]) == addresses([shared])
        new = states(tokens, step)
        layer.append(*new)
        theirs.update(*new)
        assert same(layer.joined(), held(theirs))


def test_growing_does_nothing_where_there_is_room() -> None:
    cache = row_cache(2, (), 10)
    append_all(cache, 9, 0)
    block = cache.layers[0].block
    grow(cache, 1)
    assert all(layer.block is block and layer.parts == () for layer in cache.layers)


def test_all_layers_grow_into_the_same_block_and_long_answers_are_no_chain_of_crumbs() -> None:
    cache = row_cache(3, (), 10)
    append_all(cache, 10, 0)
    for step in range(3000):
        grow(cache, 1)
        append_all(cache, 1, step)
    first = cache.layers[0]
    assert {id(layer.block) for layer in cache.layers} == {id(first.block)}
    assert {layer.get_seq_length() for layer in cache.layers} == {3010}
    sizes = [len(part) for part in first.parts]
    assert sizes == sorted(sizes)  # no block is shorter than the one before
    assert min(sizes[1:]) >= 256
    assert cache_blocks(cache) == {first.block, *(part.block for part in first.parts)}


def test_what_was_grown_over_can_be_shared_with_others() -> None:
    cache = row_cache(2, (), 5)
    append_all(cache, 5, 0)
    before = [tuple(state.clone() for state in layer.joined()) for layer in cache.layers]
    grow(cache, 1)
    parts = cache.layers[0].parts
    append_all(cache, 1, 1)
    other = row_cache(2, parts, 3)
    for layer, wanted in zip(other.layers, before, strict=True):
        assert same(layer.joined(), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("reset", (), "forget tokens"),
        ("crop", (-1,), "take tokens back"),
        ("reorder_cache", (torch.tensor([0]),), "search with beams"),
        ("batch_repeat_interleave", (2,), "repeat rows"),
        ("batch_select_indices", (torch.tensor([0]),), "select rows"),
    ],
)
def test_what_the_engine_never_needs_is_refused_in_words(
    verb: str, arguments: tuple[object, ...], message: str
) -> None:
    layer = RowLayer(0, (), Block(4))
    layer.append(*states(4, 0))
    before = layer.joined()
    with pytest.raises(NotImplementedError, match=rf"{message}.*DynamicCache"):
        getattr(layer, verb)(*arguments)
    assert same(layer.joined(), before)


def rows_of(lengths: Sequence[tuple[int, int]]) -> list[RowLayer]:
    """Sequences that share one part of some tokens, with some of their own."""
    rows = []
    block = Block(20)
    filled(block, 20, 0)
    for seed, (shared, own) in enumerate(lengths, 1):
        row = RowLayer(0, (Part(block, 0, shared),) if shared else (), Block(own + 4))
        if own:
            row.append(*states(own, seed))
        rows.append(row)
    return rows


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=5),
    steps=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_appends_to_each_row_only_its_own(
    lengths: list[tuple[int, int]], steps: int
) -> None:
    rows, references = rows_of(lengths), [dynamic() for _ in lengths]
    for row, reference in zip(rows, references, strict=True):
        if row.get_seq_length():
            reference.update(*row.joined())
    batch = BatchLayer(rows)
    assert batch.get_seq_length() == max(map(sum, lengths))
    for step in range(steps):
        keys, values = states(1, 99 + step, rows=len(rows))
        with attending([batch]):
            assert same(batch.update(keys, values), (keys, values))
        for place, reference in enumerate(references):
            reference.update(keys[place : place + 1], values[place : place + 1])
    for row, reference in zip(rows, references, strict=True):
        assert same(row.joined(), held(reference))
    longest = max(reference.get_seq_length() for reference in references)
    assert batch.get_seq_length() == longest
    assert batch.get_mask_sizes(1) == (longest + 1, 0)


def test_a_batch_without_attention_over_parts_is_refused_before_it_writes() -> None:
    rows = rows_of([(3, 1), (5, 2)])
    batch = BatchLayer(rows)
    with pytest.raises(NotImplementedError, match="different lengths"):
        batch.update(*states(1, 7, rows=2))
    with pytest.raises(NotImplementedError, match="different lengths"):
        batch.joined()
    assert [row.own for row in rows] == [1, 2]


def test_a_batch_is_a_view_of_its_caches() -> None:
    caches = [row_cache(3, (), 8) for _ in range(2)]
    for seed, cache in enumerate(caches):
        append_all(cache, 2 + seed, seed)
    together = batch_cache(caches)
    assert together is not caches[0]
    assert [type(layer) for layer in together.layers] == [BatchLayer] * 3
    for index, layer in enumerate(together.layers):
        assert layer.rows == tuple(cache.layers[index] for cache in caches)
    assert all(isinstance(layer, RowLayer) for cache in caches for layer in cache.layers)
    assert together.get_seq_length() == 3


def test_reading_writes_only_behind_what_is_shared(tiny: Tiny) -> None:
    model = tiny("llama")
    decoder, block = model.engine.runner.decoder, Block(64)
    origin = decoder.open((), None, block)
    decoder.read(origin, list(range(20, 40)))
    before = [tuple(state.clone() for state in pair) for pair in block.buffers.values()]
    branch = decoder.open((Part(block, 0, 10),), None, Block(30))
    decoder.read(branch, list(range(50, 70)))
    for now, then in zip(block.buffers.values(), before, strict=True):
        assert same(tuple(s[:, :, :20] for s in now), tuple(s[:, :, :20] for s in then))  # type: ignore[arg-type]
    assert (branch.get_seq_length(), origin.get_seq_length()) == (30, 20)
    assert cache_blocks(branch) == {block, branch.layers[0].block}


def test_bytes_are_those_of_the_buffers(tiny: Tiny) -> None:
    model = tiny("llama").module
    block = Block(100)
    cache = new_cache(model.config, (), block)
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    assert block.nbytes == 3 * 2 * (2 * 100 * 8) * 4  # layers, k+v, heads*tokens*dim, fp32


@pytest.mark.parametrize(
    ("family", "answer"),
    [("llama", False), ("gpt2", False), ("mistral", True), ("gemma2", True), ("gemma3", True)],
)
def test_sliding_windows_are_state_that_can_not_be_cut(
    tiny: Tiny, family: str, answer: bool
) -> None:
    cache = new_cache(tiny(family).module.config, (), Block(10))
    assert is_stateful(cache) is answer


def test_a_frozen_layer_shares_nothing_and_goes_on_as_the_first(tiny: Tiny) -> None:
    model = tiny("mistral").module
    cache = new_cache(model.config, (), Block(10))
    ids = torch.tensor([list(range(20, 120))])
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        layer = cache.layers[1]
        assert layer.is_sliding
        frozen = frozen_layer(layer)
        assert type(frozen) is type(layer)
        before = [held(frozen)[0].clone(), held(frozen)[1].clone()]
        twin = frozen_layer(frozen)
        new = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
        wanted = layer.update(*new)
        assert same(held(frozen), (before[0], before[1]))
        assert same(twin.update(*new), wanted)
    assert twin.get_seq_length() == layer.get_seq_length() == 103
    storages = {state.untyped_storage().data_ptr() for state in (*held(layer), *held(twin))}
    assert storages.isdisjoint(s.untyped_storage().data_ptr() for s in held(frozen))
    counters = layers_bytes([frozen]) - sum(state.nbytes for state in before)
    assert 0 <= counters <= 16  # its length may be a tensor
