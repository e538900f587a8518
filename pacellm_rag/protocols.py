"""What the upper layers ask of a language model, in terms that need no torch.

The reader, the shell, the page and the integrations are written against these types only. They
are implemented by `pacellm_rag.models` (Hugging Face decoders) and by
`pacellm_rag.testing.ScriptedModel` (a test double). Knows nothing of documents or citations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from pacellm_rag.constraints import Constraint
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Message, Role, Tool
from pacellm_rag.tool_format import ToolFormat

__all__ = [
    "ONE_MESSAGE",
    "CancelSignal",
    "ContextState",
    "EncodedPrompt",
    "FinishReason",
    "GenerationOptions",
    "Message",
    "ProgressCallback",
    "PromptLayout",
    "PromptTokenizer",
    "ReadProgress",
    "ReadingCost",
    "Role",
    "TextGeneration",
    "TextModel",
]

FinishReason = Literal["stop", "length", "closed"]


class CancelSignal(Protocol):
    """Anything that can say "stop": a `threading.Event` fits."""

    def is_set(self) -> bool:
        """Whether the work should stop."""
        ...


@dataclass(frozen=True)
class EncodedPrompt:
    """A rendered prompt and its tokens.

    Attributes:
        text: the prompt as the chat template renders it.
        token_ids: its tokens, exactly one BOS among them where the model uses one.
        offsets: for each token the [start, end) characters of `text` that it covers; (0, 0) for a
            token that stands for no character.
        message_starts: for each turn but those that the template drops, the token with which its
            content begins, ascending. PaceLLM's windows are counted from there.
    """

    text: str
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    message_starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptLayout:
    """Where the parts of a prompt begin and end, in tokens.

    Attributes:
        message_starts: as in `EncodedPrompt`.
        document_ends: tokens up to the end of each document: where other prompts may go on
            otherwise, so that reading goes on from there.
        sources: ids of the documents, each with its first token: by these what has been read of
            them can be forgotten (`forget_readings`).
    """

    message_starts: tuple[int, ...] = ()
    document_ends: tuple[int, ...] = ()
    sources: tuple[tuple[str, int], ...] = ()

    def sources_before(self, end: int) -> frozenset[str]:
        """The documents that the first `end` tokens hold something of."""
        return frozenset(name for name, first in self.sources if first < end)


ONE_MESSAGE: Final = PromptLayout()
"""The layout of a prompt of which nothing is known."""


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is decoded.

    Attributes:
        max_new_tokens: most tokens to generate.
        temperature: 0 decodes greedily; above 0 samples from softmax(logits / temperature).
        top_p: sample among the most likely tokens that together hold this probability (1 = all).
        top_k: sample among this many most likely tokens (0 = all).
        seed: seed of the sampler; None draws a new one.
        stop: strings that end the answer; they are never part of it.
        timeout: seconds, from the request on, after which it ends with `DeadlineExceededError`.
        constraint: what the text must look like; None for anything.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigurationError(
                f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more."
            )
        if self.temperature < 0:
            raise ConfigurationError(f"temperature is {self.temperature}; it must be 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.top_k < 0:
            raise ConfigurationError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise ConfigurationError(
                f"stop is {self.stop!r}; it must be a tuple of non-empty strings."
            )
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigurationError(f"timeout is {self.timeout}; it must be above 0 seconds.")


@dataclass(frozen=True)
class ReadProgress:
    """How far the reading of a prompt has come.

    Attributes:
        tokens_done: tokens of the prompt that the model has read, those read before included.
        tokens_total: tokens of the prompt.
        tokens_per_second: rate so far; 0 before the first window.
        seconds_left: estimate for the rest; attention makes later tokens dearer, which it takes
            into account only as far as the last windows show it. None before the first window.
        queue_position: requests that are before this one, which has not begun; 0 once it has.
    """

    tokens_done: int
    tokens_total: int
    tokens_per_second: float
    seconds_left: float | None
    queue_position: int = 0


ProgressCallback = Callable[[ReadProgress], None]


@dataclass(frozen=True)
class ReadingCost:
    """What a prompt takes of the machine.

    Attributes:
        tokens_known: of its tokens, those that have been read before.
        tokens_to_read: the others.
        kv_bytes: keys and values of what is to be read and of the answer.
        bank_bytes: PaceLLM's memory banks.
        free_bytes: memory that is free for them; None where it can not be told.
        seconds: estimate of the time to read, by the rate measured so far; None without one.
    """

    tokens_known: int
    tokens_to_read: int
    kv_bytes: int
    bank_bytes: int
    free_bytes: int | None
    seconds: float | None

    @property
    def needed_bytes(self) -> int:
        """Keys, values and banks together."""
        return self.kv_bytes + self.bank_bytes

    @property
    def fits(self) -> bool:
        """Whether there is memory for it, as far as that can be told."""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes


class PromptTokenizer(Protocol):
    """Counts and renders prompts for one model; needs no weights."""

    @property
    def name(self) -> str:
        """The model's name or path."""
        ...

    @property
    def context_window(self) -> int:
        """Most tokens, prompt and answer together, that the model takes."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a bare text, without special tokens."""
        ...

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""
        ...

    def encode_text(self, text: str) -> EncodedPrompt:
        """Encodes a prompt that is rendered already, with one BOS where the model uses one."""
        ...

    def encode_messages(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> EncodedPrompt:
        """Renders a conversation, ready for the model to answer.

        Args:
            messages: the turns; the last is what to answer, mostly a user's.
            tools: what the model may call.
        """
        ...


class ContextState(Protocol):
    """A token prefix that has been read, and stays read as long as this object lives."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens read, in order."""
        ...

    @property
    def tokens_reused(self) -> int:
        """Of these, how many had been read before."""
        ...


@runtime_checkable
class TextGeneration(Protocol):
    """An answer in the making: iterate it for pieces of text; closing it stops the work.

    Nothing is done before the first piece is asked for, or `start` called.
    """

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...

    def __aiter__(self) -> AsyncIterator[str]: ...

    async def __anext__(self) -> str: ...

    def start(self) -> None:
        """Begins, and goes on without being asked for pieces. Safe to repeat."""
        ...

    def close(self) -> None:
        """Stops decoding and frees the branch; further pieces are not made. Safe to repeat."""
        ...

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended: None while it has not."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, the end-of-turn token included."""
        ...

    @property
    def tokens_reused(self) -> int:
        """Prompt tokens that had been read before; known once the answer has begun."""
        ...

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that this answer had to read itself."""
        ...

    @property
    def token_ends(self) -> Sequence[int]:
        """For each generated token, the characters of the answer known after it."""
        ...

    def span_attention(self) -> list[list[float]] | None:
        """How much the answer looked at the parts of the prompt named as `attend_to`.

        Returns:
            One list per generated token with, for each span, the attention probability of the
            model's retrieval heads, averaged over heads. None before the answer has ended, and
            where the model can not tell.
        """
        ...


class TextModel(Protocol):
    """A language model that reads a prompt once and answers many continuations of it."""

    @property
    def name(self) -> str:
        """The model's name or path."""
        ...

    @property
    def context_window(self) -> int:
        """Most tokens, prompt and answer together, that the model takes."""
        ...

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The tokenizer and chat template that belong to the weights."""
        ...

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
        """Reads a token prefix window by window, as far as it has not been read before.

        Args:
            token_ids: the prefix, at least one token.
            layout: where its messages begin and its documents end.
            note: what it is, for people who list what is stored.
            timeout: seconds after which it ends with an error.
            progress: called before the first and after every window.
            cancel: checked between windows.

        Raises:
            CancelledError: `cancel` was set.
            ContextOverflowError: more tokens than the context window.
            DeadlineExceededError: `timeout` is over.
            QueueFullError: too many requests wait.
            InsufficientMemoryError: the keys and values do not fit.
        """
        ...

    def stream(
        self,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        layout: PromptLayout = ONE_MESSAGE,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> TextGeneration:
        """Answers a prompt; what has been read of it before is not read again.

        Args:
            token_ids: the whole prompt.
            options: how to decode.
            layout: where its messages begin and its documents end.
            progress: called while the prompt is read.
            cancel: checked between windows and tokens.
            attend_to: [start, end) token ranges of the prompt for `span_attention`; empty when
                nobody will ask for it.

        Raises:
            ContextOverflowError: prompt and `max_new_tokens` exceed the context window.
            ConfigurationError: `options.constraint` can not be met.
            CancelledError: while iterating, as all the following: `cancel` was set.
            DeadlineExceededError: `options.timeout` is over.
            QueueFullError: too many requests wait.
            InsufficientMemoryError: the keys and values do not fit.
        """
        ...

    def cost(
        self,
        token_ids: Sequence[int],
        new_tokens: int,
        *,
        layout: PromptLayout = ONE_MESSAGE,
    ) -> ReadingCost:
        """What reading a prompt and answering it would take, without doing it."""
        ...
