"""Pieces of readings whose content follows from their tokens, for the tests of the state store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pacellm_rag.models.state_store import StateStore, StoredPiece

ROOM = 10**9
Tensors = dict[str, torch.Tensor]


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**40), 2**40, count, dtype=np.int64)


def tensors_of(tokens: np.ndarray, start: int) -> Tensors:
    """Tensors that follow from the tokens, of all kinds that caches have."""
    generator = torch.Generator().manual_seed(int(np.abs(tokens).sum() % 2**31) + start)
    keys = torch.randn(1, 2, len(tokens) + 3, 8, generator=generator)
    return {
        "keys": keys.to(torch.bfloat16)[:, :, start : len(tokens)],  # a view with gaps
        "values": keys.half()[:, :, start : len(tokens)].transpose(1, 2),
        "snapshot": keys[0, 0],
        "wide": keys[0, 1].double(),
        "ids": torch.from_numpy(tokens[start:].copy()),
        "mask": keys[0, 0, :, 0] > 0,
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "empty": torch.empty(0, 5, dtype=torch.float16),
        "not_a_number": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def same(one: Mapping[str, torch.Tensor] | None, two: Mapping[str, torch.Tensor]) -> bool:
    def content(tensor: torch.Tensor) -> tuple[object, ...]:
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tensor.dtype, tensor.shape, raw

    return one is not None and {n: content(t) for n, t in one.items()} == {
        n: content(t) for n, t in two.items()
    }


def keep(store: StateStore, tokens: np.ndarray, *ends: int) -> list[StoredPiece]:
    """Saves a chain with these ends, and returns it."""
    for start, end in zip((0, *ends), ends, strict=False):
        assert store.save(tokens[:end], start, tensors_of(tokens[:end], start), model="tiny")
    return store.chain(tokens, ends[-1])


def spans(pieces: list[StoredPiece]) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in pieces]


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.rglob("*") if path.is_file())
