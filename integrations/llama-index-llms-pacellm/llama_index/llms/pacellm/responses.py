"""An answer in the making as LlamaIndex' responses: growing messages, calls of tools, and usage.

Knows the engine's stream of pieces; starts and stops nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import TypeAdapter, ValidationError
from llama_index.core.llms.llm import ToolSelection

from pacellm_rag.chat import ChatDelta, ChatStream
from pacellm_rag.errors import ModelError

__all__ = ["GrowingAnswer", "object_so_far", "tool_selections", "without_value_errors"]

_INVALID = "invalid_tool_calls"
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


@contextlib.contextmanager
def without_value_errors() -> Iterator[None]:
    """Turns ValueError and TypeError, which LlamaIndex takes for an empty answer, into ModelError.

    `ConfigurationError` is one of them.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ModelError(str(error)) from error


@dataclass
class GrowingAnswer:
    """What has come of an answer so far: iterate it (`for` or `async for`) within `with`.

    Leaving the block stops the work.

    Args:
        stream: where it comes from.
        model: the model's name.
    """

    stream: ChatStream
    model: str
    _names: list[str] = field(default_factory=list)
    _arguments: list[str] = field(default_factory=list)

    def __enter__(self) -> GrowingAnswer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stream.close()
        if isinstance(error, (ValueError, TypeError)):
            with without_value_errors():
                raise error

    def __iter__(self) -> Iterator[ChatDelta]:
        return self

    def __next__(self) -> ChatDelta:
        return self._take(next(self.stream))

    def __aiter__(self) -> AsyncIterator[ChatDelta]:
        return self

    async def __anext__(self) -> ChatDelta:
        return self._take(await anext(self.stream))

    def _take(self, delta: ChatDelta) -> ChatDelta:
        for call in delta.calls:
            if call.name is not None:
                self._names.append(call.name)
                self._arguments.append("")
            self._arguments[call.index] += call.arguments
        return delta

    def chat_so_far(self, delta: str) -> ChatResponse:
        """The message as it stands; calls that have not ended have their arguments as text."""
        calls = [
            ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments)
            for call_id, name, arguments in zip(
                self.stream.call_ids, self._names, self._arguments, strict=True
            )
        ]
        return ChatResponse(message=self._message(calls), delta=delta)

    def chat(self) -> ChatResponse:
        """The whole message, with usage; for when the answer has ended."""
        calls = [
            ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=dict(c.arguments))
            for c in self.stream.tool_calls
        ]
        message = self._message(calls)
        if self.stream.invalid_tool_calls:
            message.additional_kwargs[_INVALID] = [
                {"id": c.id, "name": c.name, "arguments": c.arguments, "error": c.error}
                for c in self.stream.invalid_tool_calls
            ]
        return ChatResponse(
            message=message, delta="", raw=self._raw(), additional_kwargs=self._counts()
        )

    def completion_so_far(self, delta: str) -> CompletionResponse:
        """The text as it stands."""
        return CompletionResponse(text=self.stream.text, delta=delta)

    def completion(self) -> CompletionResponse:
        """The whole text, with usage; for when the answer has ended."""
        return CompletionResponse(
            text=self.stream.text, delta="", raw=self._raw(), additional_kwargs=self._counts()
        )

    def _message(self, calls: list[ToolCallBlock]) -> ChatMessage:
        text = self.stream.text
        blocks: list[Any] = [TextBlock(text=text)] if text or not calls else []
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *calls])
        if calls:
            message.additional_kwargs["tool_calls"] = [_listed(call) for call in calls]
        return message

    def _counts(self) -> dict[str, int]:
        read, written = self.stream.prompt_tokens, self.stream.completion_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def _raw(self) -> dict[str, Any]:
        cached = {"cached_tokens": self.stream.tokens_reused}
        return {
            "model": self.model,
            "finish_reason": self.stream.finish_reason,
            "usage": {**self._counts(), "prompt_tokens_details": cached},
        }


def _listed(call: ToolCallBlock) -> dict[str, Any]:
    """A call as OpenAI's API writes it, which is what LlamaIndex' older parts look for."""
    arguments = call.tool_kwargs
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.tool_call_id,
        "type": "function",
        "function": {"name": call.tool_name, "arguments": arguments},
    }


def tool_selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls of a response; of one that still grows, with the arguments as far as they are.

    Args:
        response: what the model answered.
        required: whether no call is an error.

    Raises:
        ModelError: a call can not be read, or there is none where one is required.
    """
    message = response.message
    for call in message.additional_kwargs.get(_INVALID) or ():
        raise ModelError(
            f"The call of {call['name']!r} can not be made: {call['error']} Its arguments are "
            f"{call['arguments']!r}. Raise max_tokens where it was cut off."
        )
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if required and not blocks:
        raise ModelError(
            f"The answer calls no tool; it is {message.content!r}. Pass tool_required=True."
        )
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=_partial(block.tool_kwargs),
        )
        for block in blocks
    ]


def _partial(arguments: dict[str, Any] | str) -> dict[str, Any]:
    return object_so_far(arguments) if isinstance(arguments, str) else arguments


def object_so_far(text: str) -> dict[str, Any]:
    """What a JSON object that may not be complete holds; {} where that can not be told."""
    try:
        return _OBJECT.validate_json(text, experimental_allow_partial="trailing-strings")
    except ValidationError:
        return {}
