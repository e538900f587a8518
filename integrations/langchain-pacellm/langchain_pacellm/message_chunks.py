"""A chat's pieces as LangChain's chunks. Knows the shapes of both; starts and stops nothing."""

from __future__ import annotations

from collections.abc import Iterator

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from pacellm_rag.chat import ChatDelta, ChatStream, InvalidToolCall

__all__ = ["ChunkMaker"]


class ChunkMaker:
    """Makes the chunks of one answer.

    Args:
        chat: the answer.
        model_name: what `response_metadata` calls the model.
    """

    def __init__(self, chat: ChatStream, model_name: str) -> None:
        self._chat = chat
        self._model_name = model_name
        self._ahead = 0  # blocks of content ahead of the calls: with output_version="v1" text has 0
        self._called = False

    def piece(self, delta: ChatDelta) -> Iterator[ChatGenerationChunk]:
        """The chunks of a piece: its text, then its calls."""
        if delta.text:
            if not self._called:
                self._ahead = 1
            yield _chunk(AIMessageChunk(content=delta.text))
        if delta.calls:
            self._called = True
            calls = [self._call(index, delta) for index in sorted({c.index for c in delta.calls})]
            yield _chunk(AIMessageChunk(content="", tool_call_chunks=calls))

    def _call(self, index: int, delta: ChatDelta) -> ToolCallChunk:
        """All of one call in a piece: LangChain puts chunks together, but not within one chunk."""
        own = [piece for piece in delta.calls if piece.index == index]
        name = own[0].name
        return tool_call_chunk(
            name=name or None,
            args="".join(piece.arguments for piece in own),
            id=self._chat.call_ids[index] if name is not None else None,
            index=index + self._ahead,
        )

    def end(self) -> Iterator[ChatGenerationChunk]:
        """The chunks behind the last piece: the last of them tells usage and how it ended."""
        chat = self._chat
        spoilt = [self._spoilt(call) for call in chat.invalid_tool_calls]
        if spoilt:
            yield _chunk(AIMessageChunk(content="", tool_call_chunks=spoilt))
        metadata = {
            "model_name": self._model_name,
            "model_provider": "pacellm",
            "finish_reason": chat.finish_reason or "stop",
        }
        usage = UsageMetadata(
            input_tokens=chat.prompt_tokens,
            output_tokens=chat.completion_tokens,
            total_tokens=chat.prompt_tokens + chat.completion_tokens,
            input_token_details=InputTokenDetails(
                cache_read=chat.tokens_reused, cache_creation=chat.tokens_read
            ),
        )
        last = AIMessageChunk(
            content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last, generation_info=dict(metadata))

    def _spoilt(self, call: InvalidToolCall) -> ToolCallChunk:
        """What makes a call stay invalid when the chunks are put together.

        LangChain repairs the arguments of calls that are cut off, and would call the tool with
        half of them. A bracket that closes nothing is the one thing that it does not repair.
        """
        index = self._chat.call_ids.index(call.id) + self._ahead
        return tool_call_chunk(
            name=None, args=_closing_nothing(call.arguments), id=None, index=index
        )


def _chunk(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)


def _closing_nothing(arguments: str) -> str:
    """What to write behind some JSON so that a bracket outside of strings closes nothing."""
    opened: list[str] = []
    quoted = escaped = False
    for sign in arguments:
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = sign == "\\", sign != '"'
        elif sign == '"':
            quoted = True
        elif sign in "{[":
            opened.append(sign)
        elif sign in "}]" and opened:
            opened.pop()
    bracket = "}" if opened and opened[-1] == "[" else "]"
    return ("\\" if escaped else "") + ('"' if quoted else "") + bracket
