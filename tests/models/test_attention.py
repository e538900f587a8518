from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import StaticCache

from pacellm_rag.models import attention as attention_module
from pacellm_rag.models.attention import (
    IMPLEMENTATION,
    _attention_mask,
    attend,
    attend_rows,
    attending,
    causal_attention,
    is_attending,
)
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.query_recorder import QueryRecorder, recording

Tiny = Callable[..., PaceModel]
FLASH = attention_module._FLASH_CPU


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    new, total = query.shape[2], key.shape[2]
    scores = query.float() @ key.float().repeat_interleave(groups, 1).transpose(2, 3) * scale
    hidden = torch.ones(new, total, dtype=torch.bool).triu(total - new + 1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return weights @ value.float().repeat_interleave(groups, 1)


def states(batch: int, heads: int, tokens: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed % 2**32)
    return torch.randn(batch, heads, tokens, 16, generator=generator).to(dtype)


flash_or_not = pytest.mark.parametrize("flash", [True, False], ids=["flash", "fallback"])


@flash_or_not
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    new=st.integers(1, 40),
    prefix=st.integers(0, 90),
    half=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_windowed_attention_equals_attention_with_a_mask(
    flash: bool, batch: int, kv_heads: int, groups: int, new: int, prefix: int, half: bool
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    query = states(batch, kv_heads * groups, new, 1, dtype)
    key = states(batch, kv_heads, prefix + new, 2, dtype)
    value = states(batch, kv_heads, prefix + new, 3, dtype)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if not flash:
            patch.setattr(attention_module, "_FLASH_CPU", None)
        result = causal_attention(query, key, value, 0.25)
    expected = naive(query, key, value, 0.25)
    tolerance = 2e-2 if half else 1e-5
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


dimensions = {
    "kv_heads": st.integers(1, 3),
    "groups": st.integers(1, 3),
    "half": st.booleans(),
}


def kept_from_flash(patch: pytest.MonkeyPatch, flash: bool, most_scores: int | None = None) -> None:
    if not flash:
        patch.setattr(attention_module, "_FLASH_CPU", None)
    if most_scores is not None:
        patch.setattr(attention_module, "_MOST_SCORES", most_scores)


@flash_or_not
@given(
    shared=st.lists(st.integers(1, 60), max_size=5),
    own=st.integers(0, 50),
    new=st.one_of(st.just(1), st.integers(1, 40)),
    most_scores=st.sampled_from([None, 0]),
    **dimensions,
)
@settings(max_examples=80, deadline=None)
def test_attention_over_parts_equals_attention_over_all(
    flash: bool,
    shared: list[int],
    own: int,
    new: int,
    most_scores: int | None,
    kv_heads: int,
    groups: int,
    half: bool,
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    lengths = [*shared, own + new]
    query = states(1, kv_heads * groups, new, 1, dtype)
    key = states(1, kv_heads, sum(lengths), 2, dtype)
    value = states(1, kv_heads, sum(lengths), 3, dtype)
    # views into the middle of other buffers, as blocks hand them out
    *parts, last = zip(key.split(lengths, 2), value.split(lengths, 2), strict=True)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        kept_from_flash(patch, flash, most_scores)
        result = attend(query, parts, last, 0.25)
    assert result.shape == query.shape
    assert result.dtype == dtype
    tolerance = 3e-2 if half else 1e-5
    expected = naive(query, key, value, 0.25)
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@flash_or_not
@given(data=st.data(), **dimensions)
@settings(max_examples=80, deadline=None)
def test_rows_that_share_parts_attend_as_if_each_were_alone(
    flash: bool, data: st.DataObject, kv_heads: int, groups: int, half: bool
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    rows = data.draw(st.integers(1, 5))
    parts = data.draw(
        st.lists(
            st.tuples(
                st.integers(1, 60), st.sets(st.integers(0, rows - 1), min_size=1).map(sorted)
            ),
            max_size=5,
        )
    )
    own_lengths = [data.draw(st.integers(1, 30)) for _ in range(rows)]
    query = states(rows, kv_heads * groups, 1, 1, dtype)
    shared = []
    for seed, (length, members) in enumerate(parts, 10):
        pair = states(1, kv_heads, length, seed, dtype), states(1, kv_heads, length, -seed, dtype)
        shared.append((pair, members))
    own = [
        (states(1, kv_heads, n, 100 + i, dtype), states(1, kv_heads, n, 200 + i, dtype))
        for i, n in enumerate(own_lengths)
    ]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        kept_from_flash(patch, flash)
        result = attend_rows(query, shared, own, 0.25)
    assert result.shape == query.shape
    assert result.dtype == dtype
    tolerance = 3e-2 if half else 1e-5
    for row in range(rows):
        theirs = [*(pair for pair, members in shared if row in members), own[row]]
        key, value = (torch.cat(each, 2) for each in zip(*theirs, strict=True))
        expected = naive(query[row : row + 1], key, value, 0.25)
        found = result[row : row + 1].float()
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@flash_or_not
@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_a_part_that_outweighs_the_others_by_far_overflows_nothing(
    flash: bool, offset: float
) -> None:
    """The exponentials of these products are beyond what float32 can hold."""
    query = torch.ones(1, 2, 1, 16)
    key, value = states(1, 1, 30, 2, torch.float32), states(1, 1, 30, 3, torch.float32)
    key[:, :, :10] += offset
    pairs = [(key[:, :, a:b], value[:, :, a:b]) for a, b in ((0, 10), (10, 20), (20, 30))]
    expected = naive(query, key, value, 0.25)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        kept_from_flash(patch, flash)
        alone = attend(query, pairs[:2], pairs[2], 0.25)
        rows = attend_rows(
            query.expand(2, -1, -1, -1), [(pairs[0], [0, 1]), (pairs[1], [0])],
            [pairs[2], pairs[2]], 0.25,
        )  # fmt: skip
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows[:1], expected, atol=1e-4, rtol=1e-4)


def test_attention_over_parts_does_not_write_to_them() -> None:
    query = states(2, 4, 1, 1, torch.float32)
    part = states(1, 2, 9, 2, torch.float32), states(1, 2, 9, 3, torch.float32)
    own = [(states(1, 2, 3, i, torch.float32), states(1, 2, 3, -i, torch.float32)) for i in (4, 5)]
    everything = [query, *part, *(state for pair in own for state in pair)]
    before = [state.clone() for state in everything]
    with torch.inference_mode():
        attend_rows(query, [(part, [1])], own, 0.25)
        attend(query[:1], [part], own[0], 0.25)
    assert all(torch.equal(a, b) for a, b in zip(everything, before, strict=True))


def test_layers_attend_only_inside_of_the_block_and_only_in_this_thread() -> None:
    from threading import Thread

    seen: list[bool] = []
    assert not is_attending()
    with attending([]):
        assert is_attending()
        other = Thread(target=lambda: seen.append(is_attending()))
        other.start()
        other.join()
    assert not is_attending()
    assert seen == [False]


def test_each_row_has_a_recorder_of_its_own(tiny: Tiny) -> None:
    model = tiny("llama").module
    ids = torch.tensor([list(range(10, 20)), list(range(30, 40)), list(range(50, 60))])

    def alone(row: int, layers: list[int], newest: int) -> QueryRecorder:
        recorder = QueryRecorder(layers, newest=newest)
        with torch.inference_mode(), recording(recorder):
            model(ids[row : row + 1])
        return recorder

    first, last = QueryRecorder([0, 2], newest=1), QueryRecorder([1], newest=4)
    with torch.inference_mode(), recording(first, None, last):
        model(ids)
        assert last.queries[1][0].shape == (4, 4, 8)
    with torch.inference_mode():
        model(ids)  # nobody listens any more
    for found, wanted in ((first, alone(0, [0, 2], 1)), (last, alone(2, [1], 4))):
        assert set(found.queries) == set(wanted.queries)
        assert found.scaling == wanted.scaling
        for layer, queries in found.queries.items():
            assert len(queries) == 1
            torch.testing.assert_close(queries[0], wanted.queries[layer][0])


def test_this_torch_has_the_op_that_returns_the_log_sum_exp() -> None:
    assert FLASH is not None


def test_attention_can_be_differentiated() -> None:
    query = states(1, 4, 5, 1, torch.float32).requires_grad_()
    key, value = states(1, 2, 9, 2, torch.float32), states(1, 2, 9, 3, torch.float32)
    causal_attention(query, key, value, 0.25).sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


def test_no_mask_is_built_where_attention_is_plain_causal() -> None:
    assert _attention_mask(1, 5, 9, q_offset=4) is None
    assert _attention_mask(1, 5, 9, q_offset=4, attention_mask=torch.ones(1, 9).bool()) is None
    assert _attention_mask(1, 5, 9, q_offset=4, local_size=9) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.tensor([[False] + [True] * 8])},  # padding
        {"local_size": 4},  # a window shorter than the context
        {"q_offset": 0},  # a static cache: keys behind the newest query
        {"allow_is_causal_skip": False},  # a caller with a mask of its own
    ],
)
def test_a_mask_is_built_where_attention_is_anything_else(arguments: dict[str, object]) -> None:
    given_arguments: dict[str, object] = {"q_offset": 4, **arguments}
    mask = _attention_mask(1, 5, 9, **given_arguments)  # type: ignore[arg-type]
    assert mask is not None
    assert mask.shape[-2:] == (5, 9)


def test_left_padded_rows_are_generated_as_if_alone(tiny: Tiny) -> None:
    model = tiny("llama").module
    assert model.config._attn_implementation == IMPLEMENTATION
    long, short = list(range(10, 40)), list(range(50, 62))
    padded = torch.tensor([long, [1] * (len(long) - len(short)) + short])
    mask = torch.tensor([[1] * 30, [0] * 18 + [1] * 12])
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    together = model.generate(padded, attention_mask=mask, **arguments)[1, 30:]
    alone = model.generate(torch.tensor([short]), **arguments)[0, 12:]
    assert together.tolist()[: len(alone)] == alone.tolist()


def test_static_caches_of_transformers_give_the_same_tokens(tiny: Tiny) -> None:
    model = tiny("qwen2").module
    ids = torch.tensor([list(range(10, 60))])
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    plain = model.generate(ids, **arguments)
    static = model.generate(
        ids, past_key_values=StaticCache(model.config, max_cache_len=100), **arguments
    )
    assert static.tolist() == plain.tolist()


def test_gqa_is_not_copied_into_more_heads_when_decoding() -> None:
    query, key = states(1, 6, 1, 1, torch.float32), states(1, 2, 50, 2, torch.float32)
    with torch.inference_mode():
        result = causal_attention(query, key, key, 0.25)
        wanted = scaled_dot_product_attention(query, key, key, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(result, wanted)
