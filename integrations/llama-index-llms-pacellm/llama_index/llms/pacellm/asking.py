"""One question over whole documents, with the events that LlamaIndex' language models emit.

Knows the reader and what of a conversation fits the model's window. Knows nothing of nodes, of
engines or of memories.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback

from pacellm_rag.answer import Answer, AnswerStream
from pacellm_rag.context.markers import MarkerFilter
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.reader import DocumentReader

__all__ = ["Asking"]

_log = logging.getLogger(__name__)


class Asking:
    """One question, asked once by one of `ask`, `aask`, `stream` and `astream`.

    A conversation that does not fit beside documents, question and answer loses its oldest turns;
    documents and instructions stay whole.

    Args:
        reader: of the documents.
        question: what to ask.
        options: how to decode.
        history: earlier questions and answers.
        instructions: for the whole conversation; stand behind the documents.
        payload: what events say of the model.
        callback_manager: whom to tell.
        rate_limiter: of the language model, or None.

    Attributes:
        answer: once it has ended.
        words: the model's own, page markers included.
        turns_left_out: turns of the history that did not fit.
    """

    def __init__(
        self,
        reader: DocumentReader,
        question: str,
        *,
        options: GenerationOptions,
        history: Sequence[Message] = (),
        instructions: str = "",
        payload: dict[str, Any],
        callback_manager: CallbackManager,
        rate_limiter: Any = None,
    ) -> None:
        self.callback_manager = callback_manager
        self.rate_limiter = rate_limiter
        self.answer: Answer | None = None
        self.words = ""
        self.turns_left_out = 0
        self._reader = reader
        self._question = question
        self._options = options
        self._turns = list(history)
        self._instructions = [Message("system", instructions)] if instructions.strip() else []
        self._payload = payload
        self._stream: AnswerStream | None = None
        self._shown = ""

    def to_payload(self) -> dict[str, Any]:
        """What events say of the model."""
        return self._payload

    to_dict = to_payload  # by which older versions of llama-index-core call it

    def ask(self) -> Answer:
        """The whole answer."""
        self._chat(self._messages())
        return self.ended()

    async def aask(self) -> Answer:
        """As `ask`; cancelling the task stops the model."""
        await self._achat(self._messages())
        return self.ended()

    def stream(self) -> ChatResponseGen:
        """Reads the documents, then gives the answer piece by piece, page markers left out."""
        pieces: ChatResponseGen = self._stream_chat(self._messages())
        return pieces

    async def astream(self) -> ChatResponseAsyncGen:
        """As `stream`, for asyncio."""
        pieces: ChatResponseAsyncGen = await self._astream_chat(self._messages())
        return pieces

    def close(self) -> None:
        """Stops the model. Safe to repeat."""
        if self._stream is not None:
            self._stream.close()

    def _messages(self) -> list[ChatMessage]:
        """The prompt, as events show it."""
        history = [*self._instructions, *self._turns]
        turns = build_messages(self._reader.packed, self._question, history)
        return [ChatMessage(role=MessageRole(turn.role), content=turn.content) for turn in turns]

    @llm_chat_callback()
    def _chat(self, messages: list[ChatMessage]) -> ChatResponse:
        with self._begin(messages) as stream:
            return self._end(stream, stream.answer)

    @llm_chat_callback()
    async def _achat(self, messages: list[ChatMessage]) -> ChatResponse:
        async with await self._abegin(messages) as stream:
            return self._end(stream, await stream.answered())

    @llm_chat_callback()
    def _stream_chat(self, messages: list[ChatMessage]) -> ChatResponseGen:
        stream = self._begin(messages)

        def pieces() -> ChatResponseGen:
            words = MarkerFilter()
            with stream:
                for piece in stream:
                    yield from self._show(words.feed(piece))
                yield from self._show(words.flush())
                yield self._end(stream, stream.answer)

        return pieces()

    @llm_chat_callback()
    async def _astream_chat(self, messages: list[ChatMessage]) -> ChatResponseAsyncGen:
        stream = await self._abegin(messages)

        async def pieces() -> ChatResponseAsyncGen:
            words = MarkerFilter()
            async with stream:
                async for piece in stream:
                    for response in self._show(words.feed(piece)):
                        yield response
                for response in self._show(words.flush()):
                    yield response
                yield self._end(stream, await stream.answered())

        return pieces()

    def _begin(self, messages: list[ChatMessage]) -> AnswerStream:
        while True:
            history = [*self._instructions, *self._turns]
            try:
                self._stream = self._reader.stream(
                    self._question, history=history, options=self._options
                )
            except ContextOverflowError as error:
                self._make_room(error, messages)
            else:
                return self._stream

    async def _abegin(self, messages: list[ChatMessage]) -> AnswerStream:
        while True:
            history = [*self._instructions, *self._turns]
            try:
                self._stream = await self._reader.astream(
                    self._question, history=history, options=self._options
                )
            except ContextOverflowError as error:
                self._make_room(error, messages)
            else:
                return self._stream

    def _make_room(self, error: ContextOverflowError, messages: list[ChatMessage]) -> None:
        """Leaves out the oldest turns, as many as an overflow asks for.

        Raises:
            ContextOverflowError: there is none.
        """
        if not self._turns:
            raise error
        excess, turns = error.needed_tokens - error.available_tokens, len(self._turns)
        whole = self._conversation_tokens(self._turns)
        # an answer never stays without its question
        cuts = [i for i, turn in enumerate(self._turns) if turn.role == "user" and i > 0]
        cut = bisect_left(
            cuts, excess, key=lambda i: whole - self._conversation_tokens(self._turns[i:])
        )
        left_out = cuts[cut] if cut < len(cuts) else turns
        del self._turns[:left_out]
        first = 1 + len(self._instructions)
        del messages[first : first + left_out]
        self.turns_left_out += left_out
        _log.warning(
            "The %d oldest of %d turns were left out of this conversation: with the documents and "
            "an answer of up to %s tokens they do not fit the window of %s tokens.",
            left_out,
            turns,
            f"{self._options.max_new_tokens:,}",
            f"{error.available_tokens:,}",
        )

    def _conversation_tokens(self, turns: Sequence[Message]) -> int:
        """Tokens of a conversation without the documents, which would take long to count."""
        messages = build_messages(self._reader.packed, self._question, turns)[1:]
        return len(self._reader.model.tokenizer.encode_messages(messages).token_ids)

    def _show(self, piece: str) -> Iterator[ChatResponse]:
        if piece:
            self._shown += piece
            message = ChatMessage(role=MessageRole.ASSISTANT, content=self._shown)
            yield ChatResponse(message=message, delta=piece)

    def _end(self, stream: AnswerStream, answer: Answer) -> ChatResponse:
        self.answer, self.words = answer, stream.text
        usage = answer.usage
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=answer.text),
            delta="",
            raw={
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                    "prompt_tokens_details": {"cached_tokens": usage.tokens_reused},
                },
                "finish_reason": answer.finish_reason,
            },
        )

    def ended(self) -> Answer:
        """The answer that was read to its end."""
        if self.answer is None:
            raise ConfigurationError("The answer has not ended; read its stream to the end first.")
        return self.answer
