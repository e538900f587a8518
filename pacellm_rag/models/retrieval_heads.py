"""Where an answer comes from: the attention of a model's retrieval heads.

A few per cent of a decoder's attention heads copy from the context: while the model writes a
word of a passage they look at that word of the passage (Wu et al., "Retrieval Head
Mechanistically Explains Long-Context Factuality", 2024). `attention_to_spans` sums the attention
of such heads over parts of the prompt, from the queries of the answer's tokens and the cached
keys, so that nothing is read a second time.

Which heads these are is found once per model by a probe (head_probe.py). Knows token positions;
knows nothing of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from pacellm_rag.models.kv_cache import RowLayer
from pacellm_rag.models.query_recorder import QueryRecorder

__all__ = ["RetrievalHeads", "attention_to_spans", "head_attention"]

_BLOCK = 32  # answer tokens per block: bounds the transient (tokens x heads x context) matrix


@dataclass(frozen=True)
class RetrievalHeads:
    """The retrieval heads of one model.

    Attributes:
        heads: (layer, head) pairs, the best first.
    """

    heads: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> frozenset[int]:
        """Layers that hold at least one of the heads."""
        return frozenset(layer for layer, _ in self.heads)


def head_attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, first_visible: int
) -> torch.Tensor:
    """Attention probabilities of recorded queries over the cached keys, in float32.

    Args:
        queries: shape (steps, heads, head_dim), one per forward pass of an answer.
        keys: shape (kv_heads, tokens, head_dim), the prompt's keys and then the answer's.
        scaling: factor applied to the products.
        first_visible: keys that the first query sees; each later query sees one more.

    Returns:
        Shape (steps, heads, tokens).
    """
    steps, heads, dim = queries.shape
    kv_heads, tokens, _ = keys.shape
    grouped = queries.view(steps, kv_heads, heads // kv_heads, dim).transpose(0, 1)
    scores = torch.matmul(grouped.reshape(kv_heads, -1, dim).float(), keys.float().transpose(1, 2))
    scores = scores.view(kv_heads, steps, heads // kv_heads, tokens).transpose(0, 1)
    scores = scores.reshape(steps, heads, tokens) * scaling
    visible = first_visible + torch.arange(steps, device=keys.device)
    hidden = torch.arange(tokens, device=keys.device)[None] >= visible[:, None]
    return scores.masked_fill_(hidden[:, None], float("-inf")).softmax(dim=-1)


def attention_to_spans(
    heads: RetrievalHeads,
    recorder: QueryRecorder,
    cache: Cache,
    prompt_tokens: int,
    spans: Sequence[tuple[int, int]],
) -> list[list[float]] | None:
    """Attention mass of each answer token on parts of the prompt.

    Args:
        heads: whose attention to take.
        recorder: the queries recorded while answering.
        cache: the cache that the answer was written on.
        prompt_tokens: length of the prompt; the first query is its last token's.
        spans: [start, end) token ranges of the prompt.

    Returns:
        One list per answer token: for each span the probability that the heads, on average, put
        on it. None where a head's keys are no longer there (sliding windows).
    """
    steps = max((sum(map(len, queries)) for queries in recorder.queries.values()), default=0)
    if not steps or not spans:
        return [[0.0] * len(spans) for _ in range(steps)]
    starts = torch.tensor([start for start, _ in spans])
    ends = torch.tensor([end for _, end in spans])
    total = torch.zeros(steps, len(spans))
    with torch.inference_mode():
        for layer in sorted(heads.layers):
            cached = cache.layers[layer]
            if not isinstance(cached, RowLayer):
                return None
            members = [head for index, head in heads.heads if index == layer]
            queries = torch.cat(recorder.queries[layer])
            for first in range(0, steps, _BLOCK):
                visible = prompt_tokens + first
                block = queries[first : first + _BLOCK]
                weights = _member_attention(
                    block, cached, recorder.scaling[layer], visible, members
                )
                sums = torch.nn.functional.pad(weights.cumsum(dim=-1), (1, 0)).cpu()
                total[first : first + len(block)] += sums[:, ends] - sums[:, starts]
    rows: list[list[float]] = (total / len(heads.heads)).tolist()
    return rows


def _member_attention(
    queries: torch.Tensor, cached: RowLayer, scaling: float, visible: int, members: list[int]
) -> torch.Tensor:
    """Attention of some heads of a layer, summed: shape (steps, tokens)."""
    steps, heads = queries.shape[:2]
    tokens = visible + steps - 1
    total = torch.zeros(steps, tokens, device=queries.device)
    for head in members:
        keys = cached.head_keys(head // (heads // cached.kv_heads), tokens)
        total += head_attention(queries[:, head : head + 1], keys, scaling, visible)[:, 0]
    return total
