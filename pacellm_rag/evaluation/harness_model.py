"""A loaded model as EleutherAI's lm-evaluation-harness drives it (`lm_eval`, an extra).

Knows the harness's model class; knows nothing of its tasks. The model's banks, where it has some,
live on the cache of each request, so no request sees what another left; what differs from the
harness's own `HFLM` is said by `DEVIATIONS` and goes into every run's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.model import PaceModel

__all__ = ["DEVIATIONS", "HarnessModel"]

DEVIATIONS = (
    "Prompts that do not fit lose their middle: the first and the last half of what fits are kept. "
    "The harness keeps the end only, and so drops the instructions at the beginning.",
    "Requests run one at a time, and no logits are shared between them.",
    "Long prompts are read in windows.",
)

_Request = tuple[tuple[str, str], list[int], list[int]]


class HarnessModel(HFLM):  # type: ignore[misc]
    """`HFLM` around a loaded model: middle truncation, one request at a time.

    Args:
        model: the model, with or without banks.

    Attributes:
        tokens_left_out: tokens cut out of prompts since `forget_counts`.
        prompt_tokens: tokens of prompts since then, after the cut.
        completion_tokens: tokens generated since then.
    """

    def __init__(self, model: PaceModel) -> None:
        super().__init__(
            pretrained=model.module,
            tokenizer=model.tokenizer.hf,
            max_length=model.context_window,
            batch_size=1,
            logits_cache=False,
        )
        self._window = model.window
        self.forget_counts()

    def forget_counts(self) -> None:
        """Counts from 0 again."""
        self.tokens_left_out = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of a prompt, its middle cut out where it does not fit, and their mask."""
        ids, mask = super().tok_batch_encode(strings, padding_side=padding_side)
        if left_truncate_len is not None and ids.shape[1] > left_truncate_len:
            self.tokens_left_out += ids.shape[1] - left_truncate_len
            head, tail = _halves(left_truncate_len)
            ids = torch.cat([ids[:, :head], ids[:, ids.shape[1] - tail :]], 1)
            mask = torch.cat([mask[:, :head], mask[:, mask.shape[1] - tail :]], 1)
        return ids, mask

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **arguments: Any
    ) -> torch.Tensor:
        if context.shape[1] > self._window:
            arguments["prefill_chunk_size"] = self._window
        output: torch.Tensor = super()._model_generate(context, max_length, stop, **arguments)
        self.prompt_tokens += context.shape[1]
        self.completion_tokens += output.shape[1] - context.shape[1]
        return output

    def _loglikelihood_tokens(
        self, requests: list[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitting = [
            (text, self._cut(context, len(continuation)), continuation)
            for text, context, continuation in requests
        ]
        self.prompt_tokens += sum(len(context) + len(more) for _, context, more in fitting)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(
            fitting, disable_tqdm=disable_tqdm, override_bs=override_bs
        )
        return answers

    def _cut(self, context: Sequence[int], continuation: int) -> list[int]:
        """A context of which the middle is left out where it does not fit before a continuation.

        The last token of a continuation is never read, which leaves room for one more.
        """
        room = self.max_length + 1 - continuation
        if room < 1:
            raise ConfigurationError(
                f"An answer to choose from has {continuation} tokens; with one token of its "
                f"question it does not fit the model's window of {self.max_length}."
            )
        if len(context) <= room:
            return list(context)
        self.tokens_left_out += len(context) - room
        head, tail = _halves(room)
        return [*context[:head], *context[len(context) - tail :]]


def _halves(tokens: int) -> tuple[int, int]:
    """First and second half of so many tokens; the second gets the odd one."""
    return tokens // 2, tokens - tokens // 2
