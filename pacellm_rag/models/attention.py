"""Causal attention over a long prefix without a mask and without copied KV heads.

When a prompt is read in windows, every window but the first attends to [everything read before,
all of it visible] and to [itself, causally]. transformers expresses that as a 4-D mask of
[window x context], which also makes it copy the KV heads of grouped-query models. Here the two
parts are computed apart, the query heads of a group folded into the rows of one KV head, and
merged exactly by their log-sum-exp (as in FlashAttention, Dao et al. 2022, section 3.1, and
Hydragen, Juravsky et al. 2024):

    o = (o1 exp(l1) + o2 exp(l2)) / (exp(l1) + exp(l2))

By the same equation a sequence attends to a prefix that lies in several places, and several
sequences attend to a prefix that they share in one product (`attend`, `attend_rows`). The engine
makes its cache known by `attending`, and the cache's layers call these functions.

Registered through transformers' own extension points, `AttentionInterface` and
`AttentionMaskInterface`, under the name `IMPLEMENTATION`. Whatever is not plain causal attention
(padding, sliding windows past their size, biases) gets transformers' mask and its SDPA function.

Knows nothing of tokenizers, prompts or documents, and of caches only that their layers can attend.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from pacellm_rag.models.query_recorder import record_queries

__all__ = [
    "IMPLEMENTATION",
    "AttendingLayer",
    "attend",
    "attend_rows",
    "attending",
    "causal_attention",
    "is_attending",
]

IMPLEMENTATION: Final = "pace_causal"

# Returns (output, log-sum-exp). Private to torch, hence looked up: without it, attention falls
# back to SDPA with a mask.
_FLASH_CPU: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)


@runtime_checkable
class AttendingLayer(Protocol):
    """A cache layer that computes the attention to what it holds."""

    def attend(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of the newest tokens, shape as `query`: (batch, heads, new, head_dim)."""
        ...

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, where attention is not plain and must be computed otherwise."""
        ...


_layers: contextvars.ContextVar[Sequence[Any] | None] = contextvars.ContextVar(
    "pacellm_attending_layers", default=None
)


@contextlib.contextmanager
def attending(layers: Sequence[Any]) -> Iterator[None]:
    """Lets the layers of a cache compute attention in this thread's forward passes in the block.

    Only for models that use `IMPLEMENTATION`, as the layers hand out no more than the new keys.
    """
    token = _layers.set(layers)
    try:
        yield
    finally:
        _layers.reset(token)


def is_attending() -> bool:
    """Whether an `attending` block is active."""
    return _layers.get() is not None


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


def _folded(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(rows, heads, tokens, dim) -> (1, kv_heads, rows * groups * tokens, dim)."""
    rows, heads, tokens, dim = query.shape
    if rows == 1:
        return query.reshape(1, kv_heads, heads // kv_heads * tokens, dim)
    grouped = query.view(rows, kv_heads, heads // kv_heads * tokens, dim).transpose(0, 1)
    return grouped.reshape(1, kv_heads, -1, dim)


def _unfolded(states: torch.Tensor, rows: int, heads: int) -> torch.Tensor:
    """Undoes `_folded`; `states` may lack the last dimension."""
    kv_heads, folded, *dim = states.shape[1:]
    tokens = folded * kv_heads // (rows * heads)
    if rows == 1:
        return states.reshape(1, heads, tokens, *dim)
    grouped = states.view(kv_heads, rows, heads // kv_heads * tokens, *dim).transpose(0, 1)
    return grouped.reshape(rows, heads, tokens, *dim)


def _seeing_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to every key, and its log-sum-exp.

    Args:
        query: shape (rows, heads, tokens, dim).
        key: shape (1, kv_heads, keys, dim), the same for all rows.
        value: as `key`.
        scale: factor applied to the products.

    Returns:
        Shapes (rows, heads, tokens, dim) and (rows, heads, tokens).
    """
    rows, heads = query.shape[:2]
    folded = _folded(query, key.shape[1])
    if _flash_applies(query, key, value):
        output, lse = _flash_with_lse(folded, key, value, causal=False, scale=scale)
    else:
        scores = torch.matmul(folded.float(), key.float().transpose(2, 3)) * scale
        lse = scores.logsumexp(dim=-1)
        output = torch.matmul((scores - lse[..., None]).exp(), value.float()).to(query.dtype)
    return _unfolded(output, rows, heads), _unfolded(lse, rows, heads)


def _merged(
    output: torch.Tensor,
    lse: torch.Tensor,
    other: torch.Tensor,
    other_lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys, of the attention over each."""
    # sigmoid(l2 - l1) = exp(l2) / (exp(l1) + exp(l2)), without overflow
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1).to(output.dtype)
    return torch.lerp(output, other, share), torch.logaddexp(lse, other_lse)


_MOST_SCORES = 2**24  # query-key products that may be held at once where no kernel avoids it


def attend(
    query: torch.Tensor,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor]],
    own: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Causal attention of the last tokens of a sequence whose keys lie in several places.

    Args:
        query: shape (1, heads, new, dim).
        shared: keys and values that come first, each of shape (1, kv_heads, tokens, dim).
        own: those that come last, the new tokens' among them.
        scale: factor applied to the products.

    Returns:
        Shape (1, heads, new, dim).
    """
    if not shared:
        return causal_attention(query, *own, scale)
    new = query.shape[2]
    before = sum(keys.shape[2] for keys, _ in shared) + own[0].shape[2] - new
    flash = _flash_applies(query, *own)
    if not flash and (new > 1 or query.shape[1] * before > _MOST_SCORES):
        every = [*shared, own]
        key, value = torch.cat([k for k, _ in every], 2), torch.cat([v for _, v in every], 2)
        return causal_attention(query, key, value, scale)
    if new == 1:
        output, lse = _seeing_all(query, *own, scale)
    else:
        output, lse = _causal_with_lse(query, *own, scale)
    for keys, values in shared:
        output, lse = _merged(output, lse, *_seeing_all(query, keys, values, scale))
    return output


def attend_rows(
    query: torch.Tensor,
    shared: Sequence[tuple[tuple[torch.Tensor, torch.Tensor], Sequence[int]]],
    own: Sequence[tuple[torch.Tensor, torch.Tensor]],
    scale: float,
) -> torch.Tensor:
    """Attention of one new token of each of several sequences that share parts of their keys.

    A part is gone over once for all sequences that have it, their queries stacked.

    Args:
        query: shape (rows, heads, 1, dim).
        shared: keys and values of shape (1, kv_heads, tokens, dim), and the rows that have them.
        own: what each row has for itself, its new token's among them.
        scale: factor applied to the products.

    Returns:
        Shape (rows, heads, 1, dim).
    """
    alone = [_seeing_all(query[i : i + 1], *states, scale) for i, states in enumerate(own)]
    output = torch.cat([found for found, _ in alone])
    lse = torch.cat([found for _, found in alone])
    for (keys, values), rows in shared:
        if len(rows) == len(own):
            output, lse = _merged(output, lse, *_seeing_all(query, keys, values, scale))
            continue
        at = torch.tensor(rows, device=query.device)
        seen = _seeing_all(query[at], keys, values, scale)
        output[at], lse[at] = _merged(output[at], lse[at], *seen)
    return output


def _causal_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of the last tokens by the flash kernel, and its log-sum-exp."""
    groups = query.shape[1] // key.shape[1]
    prefix = key.shape[2] - query.shape[2]
    output, lse = _flash_with_lse(
        query,
        _repeat_heads(key[:, :, prefix:], groups),
        _repeat_heads(value[:, :, prefix:], groups),
        causal=True,
        scale=scale,
    )
    if prefix:
        before = key[:, :, :prefix], value[:, :, :prefix]
        output, lse = _merged(output, lse, *_seeing_all_rows(query, *before, scale))
    return output, lse


def _seeing_all_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_seeing_all` by the flash kernel, with keys of their own for each row."""
    batch, heads, new, dim = query.shape
    folded = query.reshape(batch, key.shape[1], -1, dim)
    output, lse = _flash_with_lse(folded, key, value, causal=False, scale=scale)
    return output.reshape(batch, heads, new, dim), lse.reshape(batch, heads, new)


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
    heads, new = query.shape[1:3]
    kv_heads, total = key.shape[1], key.shape[2]
    groups, prefix = heads // kv_heads, total - new
    if _flash_applies(query, key, value):
        if new == 1:
            return _seeing_all_rows(query, key, value, scale)[0]
        return _causal_with_lse(query, key, value, scale)[0]
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
    layer = getattr(module, "layer_idx", None)
    if layer is not None and not torch.compiler.is_compiling():
        record_queries(layer, query, scaling)
    plain = (
        attention_mask is None
        and dropout == 0.0
        and kwargs.get("position_bias") is None
        and kwargs.get("is_causal") is not False
    )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layers = None if layer is None or torch.compiler.is_compiling() else _layers.get()
    if layers is not None and layer is not None and isinstance(layers[layer], AttendingLayer):
        if plain:
            return layers[layer].attend(query, scale).transpose(1, 2), None
        key, value = (states.to(query) for states in layers[layer].joined())
    if not plain:
        if attention_mask is None and query.shape[2] > 1 and key.shape[2] > query.shape[2]:
            # our mask function left it out; transformers' function would align it wrongly
            attention_mask = torch.ones(
                query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
            ).tril(key.shape[2] - query.shape[2])[None, None]
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
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
