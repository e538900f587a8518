"""Keeps queries of chosen layers while a model answers.

From them the answer's attention to the prompt is computed afterwards (retrieval_heads.py), so that
nothing is read a second time. Knows nothing of attention functions, which call `record_queries`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["QueryRecorder", "record_queries", "recording"]


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
        """Keeps a row's last queries of a layer; `query` has shape (heads, tokens, head_dim)."""
        kept = query[:, -self.newest :].transpose(0, 1)
        self.queries.setdefault(layer, []).append(kept.clone())
        self.scaling[layer] = scaling if scaling is not None else query.shape[-1] ** -0.5


_recorders: contextvars.ContextVar[Sequence[QueryRecorder | None]] = contextvars.ContextVar(
    "pacellm_query_recorders", default=()
)


@contextlib.contextmanager
def recording(*recorders: QueryRecorder | None) -> Iterator[None]:
    """Makes recorders active, one for each row, for this thread's forward passes in the block."""
    token = _recorders.set(recorders)
    try:
        yield
    finally:
        _recorders.reset(token)


def record_queries(layer: int, query: torch.Tensor, scaling: float | None) -> None:
    """Hands queries of shape (rows, heads, tokens, head_dim) to the recorders that are active."""
    for row, recorder in enumerate(_recorders.get()):
        if recorder is not None and layer in recorder.layers:
            recorder.record(layer, query[row], scaling)
