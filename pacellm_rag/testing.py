"""Test doubles for users of this package: no network, no downloads, no luck.

`ScriptedModel` says what a test tells it to; `tiny_model` builds a random decoder of a real
architecture in memory in milliseconds; `byte_tokenizer` gives every byte a token of its own.
Importing this module imports no torch; `tiny_model` does.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pacellm_rag.errors import CancelledError, ContextOverflowError
from pacellm_rag.messages import Message, Tool
from pacellm_rag.protocols import (
    ONE_MESSAGE,
    CancelSignal,
    ContextState,
    EncodedPrompt,
    FinishReason,
    GenerationOptions,
    ProgressCallback,
    PromptLayout,
    ReadingCost,
    ReadProgress,
)
from pacellm_rag.tool_format import IN_WORDS, ToolFormat, tools_in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from pacellm_rag.models.engine_limits import EngineLimits
    from pacellm_rag.models.kv_cache import KVCacheKind
    from pacellm_rag.models.model import PaceModel
    from pacellm_rag.pace.config import PaceConfig

__all__ = [
    "FAMILIES",
    "ScriptedGeneration",
    "ScriptedModel",
    "WordTokenizer",
    "byte_tokenizer",
    "tiny_model",
]

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


class WordTokenizer:
    """Words, runs of blanks and signs as tokens, with the same ids in every instance.

    The chat format has a line with the role, then the content, for every turn.
    """

    def __init__(self, context_window: int = 8192, name: str = "scripted") -> None:
        self.name = name
        self.context_window = context_window

    def count_tokens(self, text: str) -> int:
        """Number of words, runs of blanks and signs."""
        return len(_TOKEN.findall(text))

    @property
    def tool_format(self) -> ToolFormat:
        """Tools are put into words."""
        return IN_WORDS

    def encode_messages(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> EncodedPrompt:
        """Renders and encodes a conversation."""
        messages = tools_in_words(messages, tools)
        text = "".join(f"<{m.role}>\n{m.content}\n" for m in messages) + "<assistant>\n"
        matches = list(_TOKEN.finditer(text))
        starts, behind, token = [], 0, 0
        for message in messages:
            behind = text.index("\n", behind) + 1
            while token < len(matches) and matches[token].start() < behind:
                token += 1
            starts.append(token)
            behind += len(message.content) + 1
        return replace(self.encode_text(text), message_starts=tuple(starts))

    def encode_text(self, text: str) -> EncodedPrompt:
        """Encodes a prompt that is rendered already."""
        matches = list(_TOKEN.finditer(text))
        ids = tuple(zlib.crc32(match.group().encode()) for match in matches)
        return EncodedPrompt(text, ids, tuple(match.span() for match in matches))


@dataclass(frozen=True)
class _ScriptedState:
    token_ids: Sequence[int]
    tokens_reused: int = 0


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))


class ScriptedGeneration:
    """An answer that was written beforehand, given out word by word."""

    def __init__(
        self,
        answer: str,
        options: GenerationOptions,
        cancel: CancelSignal | None,
        reused: int,
        read: int,
        attention: Sequence[float] | None,
    ) -> None:
        pieces = [match.group() for match in re.finditer(r"\s*\S+|\s+$", answer)]
        self._pieces = pieces[: options.max_new_tokens]
        self._cut = len(pieces) > options.max_new_tokens
        self._cancel = cancel
        self._attention = attention
        self._ends: list[int] = []
        self.closed = False
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self.tokens_reused = reused
        self.tokens_read = read

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.finish_reason is not None:
            raise StopIteration
        if self._cancel is not None and self._cancel.is_set():
            self.close()
            raise CancelledError("Cancelled while answering.")
        if len(self._ends) == len(self._pieces):
            self.finish_reason = "length" if self._cut else "stop"
            raise StopIteration
        piece = self._pieces[len(self._ends)]
        self._ends.append((self._ends[-1] if self._ends else 0) + len(piece))
        self.completion_tokens += 1
        return piece

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def start(self) -> None:
        """Does nothing: the answer is there."""

    def close(self) -> None:
        """Ends the answer."""
        self.closed = True
        if self.finish_reason is None:
            self.finish_reason = "closed"

    @property
    def token_ends(self) -> Sequence[int]:
        """Characters of the answer known after each word."""
        return tuple(self._ends)

    def span_attention(self) -> list[list[float]] | None:
        """The scripted attention, the same for every word."""
        if self._attention is None:
            return None
        return [list(self._attention) for _ in self._ends]


@dataclass
class ScriptedModel:
    """A `protocols.TextModel` that answers from a list and remembers what it was asked.

    Attributes:
        answers: what to say, one after the other; the last is said again when they run out.
        context_window: tokens of `WordTokenizer` that it takes.
        window: tokens per step of reading.
        attention: for `span_attention`: one weight per span asked for, or None.
        free_bytes: memory that it says is free, or None.
        prompts: the prompts answered so far, as text.
        prefills: the token prefixes read so far.
        generations: the answers given so far.
    """

    answers: Sequence[str] = ("Yes.",)
    context_window: int = 8192
    window: int = 1024
    attention: Sequence[float] | None = None
    free_bytes: int | None = None
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    prefills: list[tuple[int, ...]] = field(default_factory=list)
    generations: list[ScriptedGeneration] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = WordTokenizer(self.context_window)
        self._lock = threading.Lock()  # callers may be many threads, and each gets its own answer

    @property
    def name(self) -> str:
        """Always "scripted"."""
        return self.tokenizer.name

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        layout: PromptLayout = ONE_MESSAGE,
        note: str = "",
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> ContextState:
        """Pretends to read, window by window."""
        known = self._known(token_ids)
        total = len(token_ids)
        for done in range(0, total + 1, self.window):
            if cancel is not None and cancel.is_set():
                raise CancelledError(f"Cancelled while reading (token {done} of {total}).")
            if progress is not None:
                progress(ReadProgress(done, total, 1000.0, (total - done) / 1000.0))
        if progress is not None:
            progress(ReadProgress(total, total, 1000.0, 0.0))
        self.prefills.append(tuple(token_ids))
        return _ScriptedState(tuple(token_ids), known)

    def _known(self, token_ids: Sequence[int]) -> int:
        """The longest beginning that was read."""
        return max((_common(read, token_ids) for read in self.prefills), default=0)

    def stream(
        self,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        layout: PromptLayout = ONE_MESSAGE,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> ScriptedGeneration:
        """Starts the next scripted answer."""
        needed = len(token_ids) + options.max_new_tokens
        if needed > self.context_window:
            raise ContextOverflowError(
                f"{needed} tokens needed, {self.context_window} available.",
                needed_tokens=needed,
                available_tokens=self.context_window,
            )
        reused = min(self._known(token_ids), len(token_ids) - 1)
        attention = self.attention if attend_to else None
        with self._lock:
            answer = self.answers[min(len(self.generations), len(self.answers) - 1)]
            generation = ScriptedGeneration(
                answer, options, cancel, reused, len(token_ids) - reused, attention
            )
            self.prompts.append(tuple(token_ids))
            self.generations.append(generation)
        return generation

    def cost(
        self,
        token_ids: Sequence[int],
        new_tokens: int,
        *,
        layout: PromptLayout = ONE_MESSAGE,
    ) -> ReadingCost:
        """One byte a token, of `free_bytes`."""
        known = self._known(token_ids)
        unread = len(token_ids) - known
        return ReadingCost(known, unread, unread + new_tokens, 0, self.free_bytes, None)


_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(chat_template: str | None = _CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A transformers tokenizer of 256 byte tokens and four special ones, built in memory.

    Ids: `<s>` 0 (BOS), `</s>` 1, `<|im_start|>` 2, `<|im_end|>` 3 (EOS), then the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = chat_template
    return fast


# For each family its configuration class and what differs from the common small sizes.
_SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 3,
    "pad_token_id": 1,
}
_GPT2_SIZES: dict[str, Any] = {
    "n_embd": 32, "n_inner": 64, "n_layer": 3, "n_head": 4, "n_positions": 4096,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": 64}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 64}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 64}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {}),
    "gpt2": ("GPT2Config", _GPT2_SIZES),
    "gpt_neox": ("GPTNeoXConfig", {}),
}


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    attention: str = "auto",
    window: int = 1024,
    pace: PaceConfig | None = None,
    limits: EngineLimits | None = None,
    store_bytes: int = 0,
    kv_cache: KVCacheKind = "auto",
    **changes: Any,
) -> PaceModel:
    """A random decoder of three layers of a real architecture, with the byte tokenizer.

    Args:
        family: one of `FAMILIES`.
        seed: of the weights.
        dtype: "float32" or "bfloat16".
        attention: as for `load_model`.
        window: tokens per forward pass while reading.
        pace: settings of activation memory banks to attach.
        limits: as for `load_model`.
        store_bytes: as for `wrap_module`.
        kv_cache: as for `load_model`.
        changes: fields of the family's configuration.
    """
    import torch
    import transformers

    from pacellm_rag.models.loading import wrap_module
    from pacellm_rag.models.tokenizer import ChatTokenizer

    config_class, own = FAMILIES[family]
    sizes = {**_SIZES, **own, **changes}
    if family == "gpt2":
        sizes = {
            k: v for k, v in sizes.items() if k.startswith("n_") or k.endswith(("id", "vocab_size"))
        }
        sizes["vocab_size"] = 260
    config = getattr(transformers, config_class)(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():  # larger than initialised: logits that differ
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    for parameter in module.parameters():  # and no buffers, as from_pretrained does
        parameter.data = parameter.data.to(getattr(torch, dtype))
    name = f"tiny-{family}"
    window_size = config.max_position_embeddings
    tokenizer = ChatTokenizer(byte_tokenizer(), name=name, context_window=window_size)
    return wrap_module(
        module,
        tokenizer,
        attention=attention,
        window=window,
        pace=pace,
        limits=limits,
        store_bytes=store_bytes,
        kv_cache=kv_cache,
    )
