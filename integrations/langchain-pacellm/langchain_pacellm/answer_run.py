"""Tells callbacks of an answer from whole documents as of a chat model's: start, tokens, end.

So token streams, usage counters and traces see what they know. Knows LangChain's callbacks; works
on no answer itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForChainRun,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    UsageMetadata,
)
from langchain_core.messages.tool import tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.utils.utils import LC_ID_PREFIX

from pacellm_rag import DocumentReader
from pacellm_rag.answer import Answer
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.messages import Message

__all__ = ["AnswerRun", "AsyncAnswerRun"]

_NAME = "PaceLLM"


@dataclass
class AnswerRun:
    """A run of a chat model within a chain's run; a `with` block that an error ends tells so.

    Attributes:
        chain: the chain's run.
        reader: what answers.
        question: what is asked.
        history: the turns before it.
    """

    chain: CallbackManagerForChainRun
    reader: DocumentReader
    question: str
    history: Sequence[Message]

    def __enter__(self) -> AnswerRun:
        messages = build_messages(self.reader.packed, self.question, self.history)
        (self._run,) = self.chain.get_child().on_chat_model_start(
            {}, [[_message(turn) for turn in messages]], name=_NAME
        )
        return self

    def token(self, text: str) -> None:
        """Some words have come."""
        self._run.on_llm_new_token(text, chunk=_chunk(text, self._run))

    def end(self, tail: str, answer: Answer, usage: UsageMetadata) -> None:
        """The answer is whole.

        Args:
            tail: its last words, "" where all had come.
            answer: the answer.
            usage: its tokens.
        """
        if tail:
            self.token(tail)
        self._run.on_llm_end(_result(self.reader, answer, usage, self._run))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._run.on_llm_error(error, response=LLMResult(generations=[]))


@dataclass
class AsyncAnswerRun:
    """As `AnswerRun`, for asyncio."""

    chain: AsyncCallbackManagerForChainRun
    reader: DocumentReader
    question: str
    history: Sequence[Message]

    async def __aenter__(self) -> AsyncAnswerRun:
        messages = build_messages(self.reader.packed, self.question, self.history)
        (self._run,) = await self.chain.get_child().on_chat_model_start(
            {}, [[_message(turn) for turn in messages]], name=_NAME
        )
        return self

    async def token(self, text: str) -> None:
        """As for `AnswerRun`, as all of these."""
        await self._run.on_llm_new_token(text, chunk=_chunk(text, self._run))

    async def end(self, tail: str, answer: Answer, usage: UsageMetadata) -> None:
        """The answer is whole."""
        if tail:
            await self.token(tail)
        await self._run.on_llm_end(_result(self.reader, answer, usage, self._run))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            await self._run.on_llm_error(error, response=LLMResult(generations=[]))


_AnyRun = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


def _message(turn: Message) -> BaseMessage:
    if turn.role == "system":
        return SystemMessage(turn.content)
    if turn.role == "user":
        return HumanMessage(turn.content)
    if turn.role == "tool":
        return ToolMessage(turn.content, tool_call_id=turn.tool_call_id, name=turn.name or None)
    calls = [tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in turn.tool_calls]
    return AIMessage(turn.content, tool_calls=calls)


def _id(run: _AnyRun) -> str:
    return f"{LC_ID_PREFIX}-{run.run_id}"  # as chat models name their messages


def _chunk(text: str, run: _AnyRun) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text, id=_id(run)))


def _result(
    reader: DocumentReader, answer: Answer, usage: UsageMetadata, run: _AnyRun
) -> LLMResult:
    metadata: dict[str, Any] = {
        "model_name": reader.model.name,
        "model_provider": "pacellm",
        "finish_reason": answer.finish_reason,
    }
    message = AIMessage(answer.text, id=_id(run), usage_metadata=usage, response_metadata=metadata)
    return LLMResult(generations=[[ChatGeneration(message=message, generation_info=metadata)]])
