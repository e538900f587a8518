"""A chat engine that reads all its documents whole, once, and remembers the conversation.

Knows LlamaIndex' chat engines, memories and their events. How documents are read and cited, and
what of a conversation fits, is the business of the modules beside it and of pacellm_rag.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.chat_engine import (
    StreamChatDeltaReceivedEvent,
    StreamChatEndEvent,
    StreamChatErrorEvent,
    StreamChatStartEvent,
)
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.llms.pacellm.asking import Asking
from llama_index.llms.pacellm.chat_response import DocumentChatResponse
from llama_index.llms.pacellm.whole_documents import DocumentLLM, WholeDocuments
from pacellm_rag.answer import Answer
from pacellm_rag.context.markers import without_markers
from pacellm_rag.documents import Document
from pacellm_rag.messages import Message
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.reader import DocumentReader

__all__ = ["WholeDocumentChatEngine"]

_WORDS = "pacellm_words"  # the model's own words of an answer, with the page markers it wrote
_SAYS = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_INSTRUCTS = (MessageRole.SYSTEM, MessageRole.DEVELOPER)

_dispatcher = get_dispatcher(__name__)


class WholeDocumentChatEngine(BaseChatEngine):
    """Talks about whole documents, which are read once for the whole conversation.

        engine = WholeDocumentChatEngine.from_documents(PaceReader().load_data("report.pdf"), llm)
        print(engine.chat("Who signed the report?"))
        print(engine.chat("And when?"))

    Responses have `source_nodes` and `metadata` as `WholeDocumentQueryEngine` describes them, and
    `metadata["turns_left_out"]`: where a conversation no longer fits the model's window beside the
    documents, its oldest turns are left out of the prompt, which is logged as a warning too. The
    memory keeps them, and documents are never cut. A question and its answer are remembered once
    the answer has been given to its end.

    Args:
        llm: a PaceLLM or a `pacellm_rag.TextModel`; None takes `Settings.llm`.
        nodes: documents, pages (`page_nodes`) or chunks, in the order in which to read them.
        memory: what remembers the conversation; None remembers all of it, in this process.
        system_prompt: instructions for the whole conversation.
        filters: which nodes to read, by their metadata; None reads all.
        options: how to decode; None takes the llm's own settings.
        callback_manager: None takes `Settings.callback_manager`.

    Raises:
        ConfigurationError: there is no node, or the llm can not read documents.
    """

    def __init__(
        self,
        llm: DocumentLLM | None,
        nodes: Iterable[BaseNode],
        *,
        memory: BaseMemory | None = None,
        system_prompt: str = "",
        filters: MetadataFilters | None = None,
        options: GenerationOptions | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self.callback_manager = callback_manager or Settings.callback_manager
        self.system_prompt = system_prompt
        # without a limit: what fits is counted with the model's own tokens, at each question
        self._memory = memory or ChatMemoryBuffer.from_defaults(
            token_limit=sys.maxsize, tokenizer_fn=str.split
        )
        self._whole = WholeDocuments(llm, nodes, filters=filters, options=options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        llm: DocumentLLM | None = None,
        *,
        memory: BaseMemory | None = None,
        system_prompt: str = "",
        filters: MetadataFilters | None = None,
        options: GenerationOptions | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> WholeDocumentChatEngine:
        """An engine over what a reader loaded; arguments and errors as for the class."""
        return cls(
            llm,
            documents,
            memory=memory,
            system_prompt=system_prompt,
            filters=filters,
            options=options,
            callback_manager=callback_manager,
        )

    @property
    def documents(self) -> tuple[Document, ...]:
        """What is read, in this order."""
        return self._whole.pages.documents

    @property
    def reader(self) -> DocumentReader:
        """The documents' reader, for plans and receipts; loads the model."""
        return self._whole.reader

    @property
    def chat_history(self) -> list[ChatMessage]:
        """All turns that are remembered."""
        return self._memory.get_all()

    def reset(self) -> None:
        """Forgets the conversation; the documents stay read."""
        self._memory.reset()

    def close(self) -> None:
        """Lets the memory of the documents go, once others need it. Chatting reads them again."""
        self._whole.close()

    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """The whole answer.

        Args:
            message: the next question.
            chat_history: replaces what is remembered.

        Raises:
            ContextOverflowError: documents, question and answer do not fit, even without any
                earlier turn.
        """
        with self.callback_manager.as_trace("chat"):
            if chat_history is not None:
                self._memory.set(chat_history)
            remembered, every = self._memory.get(input=message), self._memory.get_all()
            asking, unseen = self._asking(message, remembered, every, self._whole.reader)
            answer = asking.ask()
            self._memory.put_messages(_turns(message, answer, asking.words))
            return self._response(answer, unseen + asking.turns_left_out)

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """As `chat`; cancelling the task stops the model."""
        with self.callback_manager.as_trace("chat"):
            asking, unseen = await self._aasking(message, chat_history)
            answer = await asking.aask()
            await self._memory.aput_messages(_turns(message, answer, asking.words))
            return self._response(answer, unseen + asking.turns_left_out)

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> DocumentChatResponse:
        """The answer word by word; the documents are read, and errors raised, before it returns."""
        with self.callback_manager.as_trace("chat"):
            if chat_history is not None:
                self._memory.set(chat_history)
            remembered, every = self._memory.get(input=message), self._memory.get_all()
            asking, unseen = self._asking(message, remembered, every, self._whole.reader)
            responses = asking.stream()
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {"turns_left_out": unseen + asking.turns_left_out}

        # knows the lists and not the response: one that nobody holds must go, and its stream too
        def pieces() -> ChatResponseGen:
            _dispatcher.event(StreamChatStartEvent())
            try:
                for response in responses:
                    if response.delta:
                        _dispatcher.event(StreamChatDeltaReceivedEvent(delta=response.delta))
                    yield response
                answer = asking.ended()
                self._memory.put_messages(_turns(message, answer, asking.words))
                self._whole.tell(answer, sources, metadata)
            except Exception as error:
                _dispatcher.event(StreamChatErrorEvent(exception=error))
                raise
            finally:
                asking.close()
                responses.close()
            _dispatcher.event(StreamChatEndEvent())

        return DocumentChatResponse(chat_stream=pieces(), source_nodes=sources, metadata=metadata)

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> DocumentChatResponse:
        """As `stream_chat`, for asyncio."""
        with self.callback_manager.as_trace("chat"):
            asking, unseen = await self._aasking(message, chat_history)
            responses = await asking.astream()
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {"turns_left_out": unseen + asking.turns_left_out}

        async def pieces() -> ChatResponseAsyncGen:
            _dispatcher.event(StreamChatStartEvent())
            try:
                async for response in responses:
                    if response.delta:
                        _dispatcher.event(StreamChatDeltaReceivedEvent(delta=response.delta))
                    yield response
                answer = asking.ended()
                await self._memory.aput_messages(_turns(message, answer, asking.words))
                self._whole.tell(answer, sources, metadata)
            except Exception as error:
                _dispatcher.event(StreamChatErrorEvent(exception=error))
                raise
            finally:
                asking.close()
                await responses.aclose()
            _dispatcher.event(StreamChatEndEvent())

        return DocumentChatResponse(achat_stream=pieces(), source_nodes=sources, metadata=metadata)

    async def _aasking(
        self, message: str, chat_history: list[ChatMessage] | None
    ) -> tuple[Asking, int]:
        if chat_history is not None:
            await self._memory.aset(chat_history)
        remembered, every = await self._memory.aget(input=message), await self._memory.aget_all()
        return self._asking(message, remembered, every, await self._whole.ready())

    def _asking(
        self,
        message: str,
        remembered: Sequence[ChatMessage],
        every: Sequence[ChatMessage],
        reader: DocumentReader,
    ) -> tuple[Asking, int]:
        """A question, and how many turns the memory itself left out."""
        history = _said(remembered)
        told = [m.content or "" for m in remembered if m.role in _INSTRUCTS]
        asking = self._whole.ask(
            message,
            reader=reader,
            callback_manager=self.callback_manager,
            history=history,
            instructions="\n\n".join(text for text in (self.system_prompt, *told) if text.strip()),
        )
        return asking, max(0, len(_said(every)) - len(history))

    def _response(self, answer: Answer, turns_left_out: int) -> AgentChatResponse:
        sources: list[NodeWithScore] = []
        metadata: dict[str, Any] = {"turns_left_out": turns_left_out}
        self._whole.tell(answer, sources, metadata)
        return AgentChatResponse(answer.text, source_nodes=sources, metadata=metadata)


def _said(messages: Iterable[ChatMessage]) -> list[Message]:
    """What user and model said to each other; calls of tools and their results are no part."""
    said = []
    for message in messages:
        content = message.content or ""
        words = message.additional_kwargs.get(_WORDS)
        # with its markers, as the model wrote it, so that it goes on writing them; but not where
        # somebody has changed the message since
        if isinstance(words, str) and without_markers(words) == content:
            content = words
        if message.role in _SAYS and content.strip():
            said.append(Message("user" if _SAYS[message.role] == "user" else "assistant", content))
    return said


def _turns(question: str, answer: Answer, words: str) -> list[ChatMessage]:
    """A question and its answer as they are remembered."""
    more = {_WORDS: words} if words != answer.text else {}
    return [
        ChatMessage(role=MessageRole.USER, content=question),
        ChatMessage(role=MessageRole.ASSISTANT, content=answer.text, additional_kwargs=more),
    ]
