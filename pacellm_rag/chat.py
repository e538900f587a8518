"""One turn of a conversation with a model: text, and calls of tools in the model's own format.

What frameworks and servers are built on: messages and tools go in, pieces of text and of calls
come out, sync or async. Knows the protocol of models only; needs no torch.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pacellm_rag.constraints import JsonConstraint, ToolConstraint
from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.messages import Message, Tool, ToolCall
from pacellm_rag.protocols import (
    CancelSignal,
    EncodedPrompt,
    GenerationOptions,
    ProgressCallback,
    PromptLayout,
    TextGeneration,
    TextModel,
)
from pacellm_rag.tool_format import CallPiece, ToolCallParser

__all__ = ["ChatDelta", "ChatFinishReason", "ChatStream", "InvalidToolCall", "start_chat"]

ChatFinishReason = Literal["stop", "length", "tool_calls", "closed"]

_OPTIONS: Final = GenerationOptions()
_AHEAD: Final = 16  # tokens: more than any template writes between two messages
_CUT: Final = "The answer ended in the middle of this call."


@dataclass(frozen=True)
class ChatDelta:
    """What has come since the last one.

    Attributes:
        text: a piece of text.
        calls: pieces of calls; `ChatStream.call_ids` has their ids.
    """

    text: str = ""
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True)
class InvalidToolCall:
    """A call that is cut off, or whose arguments are no JSON object.

    Attributes:
        name: the tool's.
        arguments: what was written.
        error: what is wrong with it.
        id: names the call.
    """

    name: str
    arguments: str
    error: str
    id: str


def start_chat(
    model: TextModel,
    messages: Sequence[Message],
    *,
    options: GenerationOptions = _OPTIONS,
    tools: Sequence[Tool] = (),
    tool_choice: str = "auto",
    parallel_tool_calls: bool = True,
    progress: ProgressCallback | None = None,
    cancel: CancelSignal | None = None,
) -> ChatStream:
    """Answers a conversation. Nothing is done before the first piece is asked for.

    Args:
        model: what answers.
        messages: the turns, the one to answer last.
        options: how to decode. With a `JsonConstraint` and tools, the answer is either.
        tools: what the model may call.
        tool_choice: "auto" lets the model choose, "none" forbids calls, "required" makes it call
            some tool, a tool's name makes it call that one.
        parallel_tool_calls: whether an answer may have several calls.
        progress: called while the prompt is read.
        cancel: looked at between windows and tokens.

    Raises:
        ConfigurationError: there are no messages, or `tool_choice` names no tool of `tools`.
        ContextOverflowError: prompt and answer exceed the context window.
    """
    if not messages:
        raise ConfigurationError("There are no messages to answer; pass at least one.")
    constraint = options.constraint
    if not tools and tool_choice not in ("auto", "none"):
        raise ConfigurationError(
            f"tool_choice is {tool_choice!r}, but there are no tools; pass some."
        )
    if tool_choice == "none":
        tools = ()
    elif tools:
        constraint = _tool_constraint(tools, tool_choice, parallel_tool_calls, options)
    prompt = model.tokenizer.encode_messages(messages, tools)
    options = replace(options, constraint=constraint)
    generation = _stream(model, prompt, options, progress, cancel)
    parser = ToolCallParser(model.tokenizer.tool_format) if tools else None
    return ChatStream(generation, parser, len(prompt.token_ids))


def _tool_constraint(
    tools: Sequence[Tool], choice: str, parallel: bool, options: GenerationOptions
) -> ToolConstraint:
    if choice in ("auto", "required"):
        form = options.constraint
        otherwise = form if isinstance(form, JsonConstraint) else None
        return ToolConstraint(tuple(tools), choice == "required", parallel, otherwise)
    chosen = tuple(tool for tool in tools if tool.name == choice)
    if not chosen:
        names = ", ".join(tool.name for tool in tools)
        raise ConfigurationError(
            f"tool_choice is {choice!r}; it must be auto, none, required or one of: {names}."
        )
    return ToolConstraint(chosen, required=True, parallel=False)


def _stream(
    model: TextModel,
    prompt: EncodedPrompt,
    options: GenerationOptions,
    progress: ProgressCallback | None,
    cancel: CancelSignal | None,
) -> TextGeneration:
    needed = len(prompt.token_ids) + options.max_new_tokens
    if needed > model.context_window:
        raise ContextOverflowError(
            f"The messages have {len(prompt.token_ids):,} tokens and the answer may take "
            f"{options.max_new_tokens:,}, together {needed:,}; {model.name} takes "
            f"{model.context_window:,}. Leave out documents or pages, or ask for a shorter answer.",
            needed_tokens=needed,
            available_tokens=model.context_window,
        )
    return model.stream(
        prompt.token_ids,
        options,
        layout=_layout(prompt),
        progress=progress,
        cancel=cancel,
    )


def _layout(prompt: EncodedPrompt) -> PromptLayout:
    """Where messages begin, and points before that where other conversations may part.

    The first sign of a message can change the token before it, which is the template's: a line
    break of the template and one of the message are one token. So each message's beginning has a
    point a few tokens ahead of it, from which another message can go on.
    """
    starts = prompt.message_starts
    return PromptLayout(starts, tuple(s - _AHEAD for s in starts if s > 2 * _AHEAD))


class ChatStream:
    """An answer in the making: iterate it (`for` or `async for`); closing it stops the work.

    Attributes:
        prompt_tokens: tokens of the prompt.
        text: all text that has come so far.
        call_ids: ids of the calls that have begun.
        tool_calls: the calls, once the answer has ended.
        invalid_tool_calls: calls that can not be made, once the answer has ended.
    """

    def __init__(
        self, generation: TextGeneration, parser: ToolCallParser | None, prompt_tokens: int
    ) -> None:
        self._generation = generation
        self._parser = parser
        self._names: list[str] = []
        self._arguments: list[str] = []
        self._whole: list[bool] = []
        self._over = False
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.call_ids: list[str] = []
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.invalid_tool_calls: tuple[InvalidToolCall, ...] = ()

    def __iter__(self) -> Iterator[ChatDelta]:
        return self

    def __next__(self) -> ChatDelta:
        while not self._over:
            try:
                piece = next(self._generation)
            except StopIteration:
                delta = self._end()
            else:
                delta = self._take(piece)
            if delta is not None:
                return delta
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[ChatDelta]:
        return self

    async def __anext__(self) -> ChatDelta:
        while not self._over:
            try:
                piece = await anext(self._generation)
            except StopAsyncIteration:
                delta = self._end()
            else:
                delta = self._take(piece)
            if delta is not None:
                return delta
        raise StopAsyncIteration

    def _take(self, piece: str) -> ChatDelta | None:
        text, calls = (piece, []) if self._parser is None else self._parser.feed(piece)
        self.text += text
        for call in calls:
            if call.name is not None:
                self.call_ids.append(f"call_{uuid.uuid4().hex[:24]}")
                self._names.append(call.name)
                self._arguments.append("")
                self._whole.append(False)
            self._arguments[call.index] += call.arguments
            self._whole[call.index] |= call.complete
        return ChatDelta(text, tuple(calls)) if text or calls else None

    def _end(self) -> ChatDelta | None:
        self._over = True
        text = "" if self._parser is None else self._parser.flush()
        self.text += text
        good, bad = [], []
        for name, written, whole, call_id in zip(
            self._names, self._arguments, self._whole, self.call_ids, strict=True
        ):
            try:
                arguments = json.loads(written)
                if not name:
                    raise ValueError("The call names no tool.")
                if not isinstance(arguments, dict):
                    raise ValueError("The arguments are no object.")
            except ValueError as error:
                told = str(error) if whole else _CUT
                bad.append(InvalidToolCall(name, written, told, call_id))
            else:
                good.append(ToolCall(name, arguments, call_id))
        if self._parser is not None and self._parser.cut_off and not self._is_cut(bad):
            bad.append(InvalidToolCall("", "", _CUT, f"call_{uuid.uuid4().hex[:24]}"))
        self.tool_calls, self.invalid_tool_calls = tuple(good), tuple(bad)
        return ChatDelta(text) if text else None

    @staticmethod
    def _is_cut(calls: Sequence[InvalidToolCall]) -> bool:
        """Whether the call that was cut off is among these: it was, once its name was there."""
        return any(call.error == _CUT for call in calls)

    def close(self) -> None:
        """Stops decoding; further pieces are not made. Safe to repeat."""
        self._over = True
        self._generation.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> ChatStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def finish_reason(self) -> ChatFinishReason | None:
        """Why the answer has ended; None while it has not."""
        reason = self._generation.finish_reason
        if reason in ("stop", "length") and self.tool_calls and not self.invalid_tool_calls:
            return "tool_calls"
        return reason

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, the end-of-turn token included."""
        return self._generation.completion_tokens

    @property
    def tokens_reused(self) -> int:
        """Prompt tokens that had been read before; known once the answer has begun."""
        return self._generation.tokens_reused

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that had to be read; known once the answer has begun."""
        return self._generation.tokens_read
