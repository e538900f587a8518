"""Reading a prompt in windows, and decoding an answer as one generator that the caller pulls.

`prefill` reads a token prefix into a `PrefixState`. A question runs on a branch of that state:
the state itself is never written to, so asking A, B, A gives the same A twice. Everything happens
in the thread that pulls; closing the generation stops the work and frees the branch. A cancel
signal is looked at between windows and between tokens.

Knows token ids and tensors; knows nothing of documents, prompts or citations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pacellm_rag.errors import CancelledError, ContextOverflowError
from pacellm_rag.models.attention import QueryRecorder, recording
from pacellm_rag.models.kv_cache import branch_cache, detach_cache, new_cache, rewindable
from pacellm_rag.models.retrieval_heads import RetrievalHeads, attention_to_spans
from pacellm_rag.models.text_stream import TextStream
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.pace.cache import close_windows, set_phase
from pacellm_rag.protocols import (
    CancelSignal,
    FinishReason,
    GenerationOptions,
    ProgressCallback,
    ReadProgress,
)

__all__ = ["Branch", "Generation", "PrefixState", "prefill"]


class PrefixState:
    """The KV cache of a token prefix that has been read (`protocols.ContextState`).

    Questions branch off it. The first branch uses the free room behind the prefix, so it costs no
    copy; a branch taken while that one lives gets buffers of its own.
    """

    def __init__(self, token_ids: Sequence[int], cache: Cache, config: PretrainedConfig) -> None:
        self._token_ids = tuple(token_ids)
        self._cache = cache
        self._config = config
        self._room = threading.Lock()

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens read, in order."""
        return self._token_ids

    def reusable(self, token_ids: Sequence[int]) -> int:
        """How many tokens of a prompt need not be read again; at least one always must be."""
        limit = min(len(self._token_ids), len(token_ids) - 1)
        common = next(
            (i for i in range(limit) if self._token_ids[i] != token_ids[i]),
            limit,
        )
        whole = common == len(self._token_ids)
        return common if whole or rewindable(self._cache) else 0

    def branch(self, length: int, capacity: int) -> Branch:
        """A cache that continues after the first `length` tokens, with room for `capacity`."""
        if length == 0:
            return Branch(new_cache(self._config, capacity), None)
        cache = branch_cache(self._cache, length)
        if length == len(self._token_ids) and self._room.acquire(blocking=False):
            return Branch(cache, self._room)
        detach_cache(cache, capacity)
        return Branch(cache, None)


@dataclass
class Branch:
    """A cache that continues a state; leaving the `with` block gives its room back.

    Attributes:
        cache: holds the state's tokens and takes new ones.
        room: the lock on the room behind the state's tokens, where this branch uses it.
    """

    cache: Cache
    room: threading.Lock | None

    def __enter__(self) -> Branch:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the room behind the prefix back. Safe to repeat."""
        if self.room is not None:
            self.room.release()
            self.room = None


def _check_cancel(cancel: CancelSignal | None, doing: str) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError(f"Cancelled while {doing}.")


def _read(
    model: PreTrainedModel,
    cache: Cache,
    token_ids: Sequence[int],
    window: int,
    progress: ProgressCallback | None,
    cancel: CancelSignal | None,
) -> None:
    """Runs tokens through the decoder, window by window, and computes no logits."""
    total, started = len(token_ids), time.perf_counter()
    if progress is not None:
        progress(ReadProgress(0, total, 0.0, None))
    for start in range(0, total, window):
        _check_cancel(cancel, f"reading (token {start} of {total})")
        ids = torch.tensor([token_ids[start : start + window]], device=model.device)
        before = time.perf_counter()
        with torch.inference_mode():
            model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        if progress is not None:
            now, done = time.perf_counter(), min(start + window, total)
            # the last window's pace: each window costs a little more than the one before
            pace = (now - before) / (done - start)
            progress(ReadProgress(done, total, done / (now - started), pace * (total - done)))


def prefill(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    window: int,
    reserve: int = 0,
    progress: ProgressCallback | None = None,
    cancel: CancelSignal | None = None,
) -> PrefixState:
    """Reads a token prefix into a new state.

    Args:
        model: the decoder.
        token_ids: at least one token.
        window: tokens per forward pass.
        reserve: further tokens to allocate room for.
        progress: called before the first and after every window.
        cancel: looked at before every window.

    Raises:
        CancelledError: `cancel` was set.
    """
    cache = new_cache(model.config, len(token_ids) + reserve)
    set_phase(cache, "read")
    _read(model, cache, token_ids, window, progress, cancel)
    close_windows(cache)  # what follows is another message: the bank's windows start anew
    return PrefixState(token_ids, cache, model.config)


class _Sampler:
    """Chooses the next token from logits of shape (1, vocabulary)."""

    def __init__(self, options: GenerationOptions, device: torch.device) -> None:
        self._greedy = options.temperature == 0
        warpers = LogitsProcessorList()
        if not self._greedy:
            warpers.append(TemperatureLogitsWarper(options.temperature))
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
        if self._greedy:
            return int(logits.argmax(dim=-1))
        scores = self._warpers(
            cast("torch.LongTensor", torch.empty(1, 0, dtype=torch.long)),
            cast("torch.FloatTensor", logits.float()),
        )
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._random)
        return int(drawn)


class Generation:
    """An answer in the making (`protocols.TextGeneration`): iterate it, or close it.

    Raises:
        ContextOverflowError: on construction, when prompt and answer exceed `context_window`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        state: PrefixState,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        window: int,
        stop_ids: frozenset[int],
        cancel: CancelSignal | None = None,
        heads: RetrievalHeads | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> None:
        needed = len(token_ids) + options.max_new_tokens
        if needed > tokenizer.context_window:
            raise ContextOverflowError(
                f"The prompt has {len(token_ids)} tokens and the answer may take "
                f"{options.max_new_tokens}, together {needed}; {tokenizer.name} takes "
                f"{tokenizer.context_window}. Leave out documents, or lower max_new_tokens.",
                needed_tokens=needed,
                available_tokens=tokenizer.context_window,
            )
        self._model = model
        self._state = state
        self._token_ids = tuple(token_ids)
        self._options = options
        self._window = window
        self._stop_ids = stop_ids
        self._cancel = cancel
        self._heads = heads
        self._attend_to = tuple(attend_to)
        self._recorder = QueryRecorder(heads.layers) if heads is not None else None
        self._stream = TextStream(tokenizer.decode, options.stop)
        self._span_attention: list[list[float]] | None = None
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self.tokens_reused = state.reusable(token_ids)
        self.tokens_read = len(token_ids) - self.tokens_reused
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stops decoding and frees the branch."""
        self._pieces.close()
        if self.finish_reason is None:
            self.finish_reason = "closed"

    @property
    def token_ends(self) -> Sequence[int]:
        """For each generated token, the characters of the answer known after it."""
        return tuple(self._stream.ends)

    def span_attention(self) -> list[list[float]] | None:
        """Attention of the answer to the spans given as `attend_to`, once it has ended."""
        return self._span_attention

    def _run(self) -> Generator[str, None, None]:
        options, prompt = self._options, self._token_ids
        capacity = len(prompt) + options.max_new_tokens
        with self._state.branch(self.tokens_reused, capacity) as branch:
            try:
                yield from self._decode(branch.cache)
            finally:
                if self._recorder is not None and self._heads is not None:
                    self._span_attention = attention_to_spans(
                        self._heads, self._recorder, branch.cache, len(prompt), self._attend_to
                    )

    def _decode(self, cache: Cache) -> Iterator[str]:
        options = self._options
        rest = self._token_ids[self.tokens_reused :]
        cut = (len(rest) - 1) // self._window * self._window
        set_phase(cache, "read")
        _read(self._model, cache, rest[:cut], self._window, None, self._cancel)
        sample = _Sampler(options, self._model.device)
        feed = rest[cut:]
        while True:
            _check_cancel(self._cancel, f"answering (token {self.completion_tokens})")
            token = sample(self._step(cache, feed))
            self.completion_tokens += 1
            if token in self._stop_ids:
                self.finish_reason = "stop"
                break
            piece = self._stream.feed(token)
            if piece:
                yield piece
            if self._stream.stopped:
                self.finish_reason = "stop"
                return
            if self.completion_tokens >= options.max_new_tokens:
                self.finish_reason = "length"
                break
            feed = (token,)
            set_phase(cache, "decode")
        tail = self._stream.flush()
        if tail:
            yield tail

    def _step(self, cache: Cache, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits after the given tokens, shape (1, vocabulary)."""
        ids = torch.tensor([token_ids], device=self._model.device)
        with torch.inference_mode(), recording(self._recorder):
            output = self._model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits
