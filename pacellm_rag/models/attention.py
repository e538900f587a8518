"""Causal attention over a long prefix without a mask and without copied KV heads.

When a prompt is read in windows, every window but the first attends to [everything read before,
all of it visible] and to [itself, causally]. transformers expresses that as a 4-D mask of
[window x context], which also makes it copy the KV heads of grouped-query models. Here the two
parts are computed apart, the query heads of a group folded into the rows of one KV head, and
merged exactly by their log-sum-exp (as in FlashAttention, Dao et al. 2022, section 3.1, and
Hydragen, Juravsky et al. 2024):

    o = (o1 exp(l1) + o2 exp(l2)) / (exp(l1) + exp(l2))

Registered through transformers' own extension points, `AttentionInterface` and
`AttentionMaskInterface`, under the name `IMPLEMENTATION`. Whatever is not plain causal attention
(padding, sliding windows past their size, biases) gets transformers' mask and its SDPA function.

While a `QueryRecorder` is active it also keeps the query of the newest token of chosen layers,
from which the answer's attention to the prompt is computed afterwards. Knows nothing of
tokenizers, prompts or documents.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

__all__ = ["IMPLEMENTATION", "QueryRecorder", "causal_attention", "recording"]

IMPLEMENTATION: Final = "pace_causal"

# Returns (output, log-sum-exp). Private to torch, hence looked up: without it, attention falls
# back to SDPA with a mask.
_FLASH_CPU: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)


@dataclass
class QueryRecorder:
    """Keeps the newest tokens' queries of some layers.

    Attributes:
        layers: indices of the layers to record.
        newest: how many of a forward pass's last tokens to keep.
        queries: for each layer, tensors of shape (tokens, heads, head_dim), one per forward pass.
        scaling: for each layer, the factor applied to query-key products.
    """

    layers: Collection[int]
    newest: int = 1
    queries: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)

    def record(self, layer: int, query: torch.Tensor, scaling: float | None) -> None:
        """Keeps row 0's last queries of a layer; `query` has shape (batch, heads, tokens, dim)."""
        kept = query[0, :, -self.newest :].transpose(0, 1)
        self.queries.setdefault(layer, []).append(kept.clone())
        self.scaling[layer] = scaling if scaling is not None else query.shape[-1] ** -0.5


_recorder: contextvars.ContextVar[QueryRecorder | None] = contextvars.ContextVar(
    "pacellm_query_recorder", default=None
)


@contextlib.contextmanager
def recording(recorder: QueryRecorder | None) -> Iterator[None]:
    """Makes `recorder` active for the forward passes of this thread inside the block."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def _flash_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output and log-sum-exp, (batch, heads, tokens, dim) and (batch, heads, tokens)."""
    assert _FLASH_CPU is not None
    output, lse = _FLASH_CPU(query, key, value, 0.0, causal, scale=scale)
    return output, lse


def _repeat_heads(states: torch.Tensor, groups: int) -> torch.Tensor:
    """(batch, kv_heads, tokens, dim) -> (batch, kv_heads * groups, tokens, dim)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _flash_applies(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    return (
        _FLASH_CPU is not None
        and query.device.type == "cpu"
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and not torch.is_grad_enabled()
    )


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of the last tokens of a sequence to all of it, causally.

    Args:
        query: shape (batch, heads, new_tokens, dim).
        key: shape (batch, kv_heads, all_tokens, dim), the new tokens' keys last; `heads` must be
            a multiple of `kv_heads`.
        value: shape as `key`.
        scale: factor applied to the query-key products.

    Returns:
        Shape (batch, heads, new_tokens, dim).
    """
    batch, heads, new, dim = query.shape
    kv_heads, total = key.shape[1], key.shape[2]
    groups, prefix = heads // kv_heads, total - new
    if not _flash_applies(query, key, value):
        if new == 1 or prefix == 0:
            return scaled_dot_product_attention(
                query, key, value, scale=scale, is_causal=new > 1, enable_gqa=groups > 1
            )
        if query.device.type != "cpu":  # flash kernels align this mask without building it
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=causal_lower_right(new, total),
                scale=scale,
                enable_gqa=groups > 1,
            )
        visible = torch.ones(new, total, dtype=torch.bool).tril(prefix)
        return scaled_dot_product_attention(
            query,
            _repeat_heads(key, groups),
            _repeat_heads(value, groups),
            attn_mask=visible,
            scale=scale,
        )
    if new == 1:
        folded = query.reshape(batch, kv_heads, groups, dim)
        output, _ = _flash_with_lse(folded, key, value, causal=False, scale=scale)
        return output.reshape(batch, heads, 1, dim)
    own, own_lse = _flash_with_lse(
        query,
        _repeat_heads(key[:, :, prefix:], groups),
        _repeat_heads(value[:, :, prefix:], groups),
        causal=True,
        scale=scale,
    )
    if prefix == 0:
        return own
    folded = query.reshape(batch, kv_heads, groups * new, dim)
    seen, seen_lse = _flash_with_lse(
        folded, key[:, :, :prefix], value[:, :, :prefix], causal=False, scale=scale
    )
    seen = seen.reshape(batch, heads, new, dim)
    # sigmoid(l1 - l2) = exp(l1) / (exp(l1) + exp(l2)), without overflow
    weight = torch.sigmoid(seen_lse.reshape(batch, heads, new) - own_lse).unsqueeze(-1)
    return torch.lerp(own, seen, weight.to(own.dtype))


def _attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function: returns (batch, tokens, heads, dim) and no weights."""
    recorder = None if torch.compiler.is_compiling() else _recorder.get()
    if recorder is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is not None and layer in recorder.layers:
            recorder.record(layer, query, scaling)
    plain = attention_mask is None and dropout == 0.0 and kwargs.get("position_bias") is None
    if not plain or kwargs.get("is_causal") is False:
        if attention_mask is None and query.shape[2] > 1 and key.shape[2] > query.shape[2]:
            # our mask function left it out; transformers' function would align it wrongly
            attention_mask = torch.ones(
                query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
            ).tril(key.shape[2] - query.shape[2])[None, None]
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return causal_attention(query, key, value, scale).transpose(1, 2), None


def _attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Transformers' mask function: None exactly where attention is plain causal to the last key."""
    ends_together = (
        isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    )  # false for preallocated static caches, whose tail is not written yet
    within = local_size is None or kv_offset + kv_length <= local_size
    unpadded = attention_mask is None or bool(attention_mask.all())
    if allow_is_causal_skip and ends_together and within and unpadded:
        return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        **kwargs,
    )


AttentionInterface.register(IMPLEMENTATION, _attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, _attention_mask)
