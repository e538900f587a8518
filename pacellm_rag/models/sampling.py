"""Choosing the next token. Knows logits; knows nothing of models or texts."""

from __future__ import annotations

from typing import cast

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pacellm_rag.protocols import GenerationOptions

__all__ = ["Sampler"]


class Sampler:
    """Chooses tokens for one answer: greedily, or drawn with a random generator of its own.

    Args:
        options: temperature, top_p, top_k and seed count.
        device: where the logits are.
    """

    def __init__(self, options: GenerationOptions, device: torch.device) -> None:
        self._greedy = options.temperature == 0
        warpers = LogitsProcessorList()
        if not self._greedy:
            warpers.append(TemperatureLogitsWarper(float(options.temperature)))
            if options.top_k:
                warpers.append(TopKLogitsWarper(options.top_k))
            if options.top_p < 1:
                warpers.append(TopPLogitsWarper(options.top_p))
        self._warpers = warpers
        self._random = torch.Generator(device=device)
        if options.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """The next token, from logits of shape (1, vocabulary)."""
        if self._greedy:
            return int(logits.argmax(dim=-1))
        scores = self._warpers(
            cast("torch.LongTensor", torch.empty(1, 0, dtype=torch.long)),
            cast("torch.FloatTensor", logits.float()),
        )
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._random)
        return int(drawn)
