"""The loss of known answers behind documents that are read once: what settings are judged by.

The answers are put into the model's mouth token by token, as it would decode them itself. Knows
tokens and decoders; knows nothing of documents, templates or files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from pacellm_rag.errors import CancelledError, ConfigurationError, ModelError
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.config import PaceConfig

__all__ = ["CancelSignal", "Measured", "Sample", "answer_losses", "measure"]


class CancelSignal(Protocol):
    """Anything that can say "stop": a `threading.Event` fits."""

    def is_set(self) -> bool:
        """Whether the work should stop."""
        ...


@dataclass(frozen=True)
class Sample:
    """Documents as tokens, and questions about them with their answers.

    Attributes:
        prefix: the documents, as every question shares them.
        turns: for each question its tokens, from the end of the prefix to where the answer begins,
            and the tokens of the answer.

    Raises:
        ConfigurationError: a part has no tokens.
    """

    prefix: tuple[int, ...]
    turns: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if not self.prefix or not self.turns or not all(q and a for q, a in self.turns):
            raise ConfigurationError(
                "A sample has a prefix, a question or an answer without tokens, or no questions; "
                "each needs one token or more."
            )


@dataclass(frozen=True)
class Measured:
    """What a setting gives on some samples.

    Attributes:
        losses: for each answer the mean negative log likelihood of its tokens, in nats.
        acted: share of the documents' tokens that a bank changed, over the layers with one.
    """

    losses: tuple[float, ...]
    acted: float


def measure(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    config: PaceConfig | None,
    *,
    window: int = 1024,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelSignal | None = None,
) -> Measured:
    """Reads the samples' documents with a setting, and what loss it gives their answers.

    Reading and answering go as in the reading engine: the documents are a segment, a question is
    read on a copy of what they left, each token of its answer is decoded. The size of the pieces
    that are read does not matter.

    Args:
        model: a causal language model without PaceLLM.
        samples: documents, questions and answers.
        config: the settings; None for the plain model.
        window: tokens per forward pass while reading.
        progress: called with answers done and answers in all.
        cancel: looked at before every document and question.

    Raises:
        ModelError: the model has PaceLLM attached.
        CancelledError: `cancel` was set.
    """
    if getattr(model, "_pacellm_handle", None) is not None:
        raise ModelError("This model has PaceLLM attached; detach it before calibrating.")
    if window < 1:
        raise ConfigurationError(f"window is {window}; it must be 1 token or more.")
    total = sum(len(sample.turns) for sample in samples)
    losses: list[float] = []
    acted = looked_up = 0
    attached = nullcontext() if config is None else attach(model, config)
    with attached, _evaluating(model), torch.no_grad():
        for sample in samples:
            _check(cancel, len(losses), total)
            cache = PaceCache(model.config)
            cache.reading()
            _read(model, cache, sample.prefix, window)
            cache.end_segment()
            for memory in cache.memories.values():
                acted += int(memory.stats.high + memory.stats.middle)
                looked_up += int(memory.stats.tokens)
            for question, answer in sample.turns:
                _check(cancel, len(losses), total)
                branch = copy.deepcopy(cache)
                losses.append(_answer_loss(model, branch, question, answer, window))
                if progress is not None:
                    progress(len(losses), total)
    return Measured(tuple(losses), acted / max(looked_up, 1))


def answer_losses(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    config: PaceConfig | None,
    *,
    window: int = 1024,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelSignal | None = None,
) -> list[float]:
    """The losses that `measure` finds: one per answer, in nats, in the order of the samples."""
    found = measure(model, samples, config, window=window, progress=progress, cancel=cancel)
    return list(found.losses)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and each module back in its mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(cancel: CancelSignal | None, done: int, total: int) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError(f"Cancelled while calibrating (answer {done} of {total}).")


def _read(model: PreTrainedModel, cache: PaceCache, tokens: Sequence[int], window: int) -> None:
    """Runs tokens through the decoder and computes no logits."""
    for start in range(0, len(tokens), window):
        ids = torch.tensor([tokens[start : start + window]], device=model.device)
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)


def _answer_loss(
    model: PreTrainedModel,
    cache: PaceCache,
    question: Sequence[int],
    answer: Sequence[int],
    window: int,
) -> float:
    """Mean loss of an answer's tokens; what is read goes into the cache."""
    cut = (len(question) - 1) // window * window
    _read(model, cache, question[:cut], window)
    feed: Sequence[int] = question[cut:]
    logits = []
    for token in answer:
        ids = torch.tensor([feed], device=model.device)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits.append(output.logits[0, -1].float())
        feed = [token]
        cache.decoding()  # each token of the answer is a window of its own
    wanted = torch.tensor(answer, device=logits[0].device)
    return float(torch.nn.functional.cross_entropy(torch.stack(logits), wanted))
