from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import StaticCache

from pacellm_rag.models import attention as attention_module
from pacellm_rag.models.attention import IMPLEMENTATION, _attention_mask, causal_attention
from pacellm_rag.models.model import PaceModel

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
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, tokens, 16, generator=generator).to(dtype)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "fallback"])
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
