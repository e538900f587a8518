"""A streamed answer of a chat engine that is made only as it is read.

Knows LlamaIndex' streamed chat responses. Knows nothing of documents or memories.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.chat_engine.types import StreamingAgentChatResponse

from pacellm_rag.errors import ConfigurationError

__all__ = ["DocumentChatResponse"]


@dataclass
class DocumentChatResponse(StreamingAgentChatResponse):
    """A streamed answer: read `response_gen`, or `async_response_gen()` of `astream_chat`.

    LlamaIndex' own class reads ahead in a thread, whether anybody listens or not. This one makes
    words as they are asked for, and closing the generator stops the model.

    Attributes:
        metadata: as of `AgentChatResponse`; filled, as `source_nodes`, when the stream has ended.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    is_writing_to_memory: bool = False  # the engine does so itself

    @property
    def response_gen(self) -> Generator[str, None, None]:
        """The words, one piece after the other; the whole answer where they have been read."""
        if self.is_done:
            yield self.response
            return
        if self.chat_stream is None:
            raise ConfigurationError("This answer is of astream_chat; use async_response_gen().")
        try:
            for response in self.chat_stream:
                self.unformatted_response += response.delta or ""
                if response.delta:
                    yield response.delta
                self.response = response.message.content or ""
            self.is_done = True
        finally:
            self.chat_stream.close()

    async def async_response_gen(self) -> AsyncGenerator[str, None]:
        """As `response_gen`, for `astream_chat`."""
        if self.is_done:
            yield self.response
            return
        if self.achat_stream is None:
            raise ConfigurationError("This answer is of stream_chat; use response_gen.")
        try:
            async for response in self.achat_stream:
                self.unformatted_response += response.delta or ""
                if response.delta:
                    yield response.delta
                self.response = response.message.content or ""
            self.is_done = True
        finally:
            await self.achat_stream.aclose()
