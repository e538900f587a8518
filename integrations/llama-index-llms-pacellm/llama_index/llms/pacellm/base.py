"""`PaceLLM`: a local model that reads whole documents, as LlamaIndex' LLM.

Knows LlamaIndex' LLM interface, sync and async; how prompts are read and answered is
`pacellm_rag`'s business. Nothing here waits in the event loop: loading, parsing and encoding are
done in a thread, and answers are awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen

from llama_index.llms.pacellm.loading import DEFAULT, SharedModelLLM
from llama_index.llms.pacellm.messages import convert_messages
from llama_index.llms.pacellm.requests import ChatRequest
from llama_index.llms.pacellm.responses import (
    GrowingAnswer,
    tool_selections,
    without_value_errors,
)
from llama_index.llms.pacellm.structured import SchemaLLM
from pacellm_rag.chat import ChatStream, start_chat
from pacellm_rag.messages import Message
from pacellm_rag.protocols import TextModel

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

__all__ = ["PaceLLM"]


class PaceLLM(SharedModelLLM, SchemaLLM):
    """A local language model that reads whole documents, once.

        llm = PaceLLM(max_tokens=400)
        index = SummaryIndex(nodes=page_nodes(PaceReader().load_data("report.pdf")))
        index.as_query_engine(llm=llm).query("What did the year cost?")

    Making one costs nothing: weights are loaded with the first question, and shared by all objects
    with equal settings. What two prompts have in common at their beginning is read once; how much
    that was stands in `response.raw["usage"]["prompt_tokens_details"]["cached_tokens"]`.

    A call takes `max_tokens`, `temperature`, `top_p`, `top_k`, `seed`, `stop` and `timeout`;
    `chat` and its like take `tools`, `tool_choice`, `parallel_tool_calls` and `response_format` in
    the form of OpenAI's API as well. Messages may hold text and documents (`DocumentBlock`,
    `CitableBlock`), which the model reads page by page behind markers such as `[D1 p2]`.

    Errors are `pacellm_rag.errors`; a prompt that does not fit is a `ContextOverflowError` and
    never cut. None of them is a ValueError, which LlamaIndex would turn into "Empty Response".
    """

    def __init__(
        self, model: str | Path = DEFAULT, *, engine: TextModel | None = None, **settings: Any
    ) -> None:
        super().__init__(model, engine=engine, **settings)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes it down."""
        return "PaceLLM"

    def as_prompt_helper(self, **settings: Any) -> PromptHelper:
        """What packs nodes into prompts, counting with this model's own tokenizer.

        LlamaIndex' default counts with tiktoken, which for other languages than English is far
        off. Pass it as `prompt_helper=`, for example to `get_response_synthesizer`.

        Args:
            settings: further arguments of `PromptHelper`.
        """
        tokenizer = self.prompt_tokenizer

        def tokens(text: str) -> list[int]:
            return [0] * tokenizer.count_tokens(text)  # only their number is asked for

        turns = [Message("system", "x"), Message("user", "x")]
        around = len(tokenizer.encode_messages(turns).token_ids)  # the chat template's own
        return PromptHelper(
            **{
                "context_window": max(tokenizer.context_window - around, 0),
                "num_output": self.max_tokens,
                "tokenizer": tokens,
                **settings,
            }
        )

    # -- One answer --

    def _begin(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any], *, chat: bool = True
    ) -> GrowingAnswer:
        """Prepares an answer; nothing is computed before its first piece is asked for."""
        with without_value_errors():
            request = ChatRequest.of(self._decoding_settings(), given, chat=chat)
            turns = convert_messages(messages, self._shelf)
            model = self.text_model
            stream = start_chat(
                model,
                turns,
                options=request.options,
                tools=request.tools,
                tool_choice=request.tool_choice,
                parallel_tool_calls=request.parallel_tool_calls,
            )
        return GrowingAnswer(stream, model.name)

    def _begin_text(self, prompt: str, formatted: bool, given: Mapping[str, Any]) -> GrowingAnswer:
        if not formatted:
            message = ChatMessage(role=MessageRole.USER, content=prompt)
            return self._begin([message], given, chat=False)
        with without_value_errors():
            request = ChatRequest.of(self._decoding_settings(), given, chat=False)
            model = self.text_model
            ids = model.tokenizer.encode_text(prompt).token_ids
            stream = ChatStream(model.stream(ids, request.options), None, len(ids))
        return GrowingAnswer(stream, model.name)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation.

        Args:
            messages: the turns.
            kwargs: what this call changes; see the class.

        Raises:
            PaceLLMError: the prompt does not fit, a document can not be read, ...
        """
        with self._begin(messages, kwargs) as answer:
            for _ in answer:
                pass
            return answer.chat()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation piece by piece; closing the generator stops the work."""
        begun = self._begin(messages, kwargs)

        def responses() -> ChatResponseGen:
            with begun as answer:
                for delta in answer:
                    yield answer.chat_so_far(delta.text)
                yield answer.chat()

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt.

        Args:
            prompt: what to answer.
            formatted: whether it has the model's own format already; else it becomes a turn.
            kwargs: what this call changes; see the class.

        Raises:
            PaceLLMError: as for `chat`.
        """
        with self._begin_text(prompt, formatted, kwargs) as answer:
            for _ in answer:
                pass
            return answer.completion()

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answers a prompt piece by piece; closing the generator stops the work."""
        begun = self._begin_text(prompt, formatted, kwargs)

        def responses() -> CompletionResponseGen:
            with begun as answer:
                for delta in answer:
                    yield answer.completion_so_far(delta.text)
                yield answer.completion()

        return responses()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation; cancelling stops the work."""
        with await asyncio.to_thread(self._begin, messages, kwargs) as answer:
            async for _ in answer:
                pass
            return answer.chat()

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answers a conversation piece by piece; cancelling or closing stops the work."""
        begun = await asyncio.to_thread(self._begin, messages, kwargs)

        async def responses() -> ChatResponseAsyncGen:
            with begun as answer:
                async for delta in answer:
                    yield answer.chat_so_far(delta.text)
                yield answer.chat()

        return responses()

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answers a prompt; cancelling stops the work."""
        with await asyncio.to_thread(self._begin_text, prompt, formatted, kwargs) as answer:
            async for _ in answer:
                pass
            return answer.completion()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Answers a prompt piece by piece; cancelling or closing stops the work."""
        begun = await asyncio.to_thread(self._begin_text, prompt, formatted, kwargs)

        async def responses() -> CompletionResponseAsyncGen:
            with begun as answer:
                async for delta in answer:
                    yield answer.completion_so_far(delta.text)
                yield answer.completion()

        return responses()

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answers a prompt template."""
        await asyncio.to_thread(lambda: self.metadata)  # which LlamaIndex asks in the event loop
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """Answers a prompt template piece by piece."""
        await asyncio.to_thread(lambda: self.metadata)
        return await super().astream(prompt, **prompt_args)

    # -- Tools --

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or ())
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        choice = kwargs.pop("tool_choice", None)
        if choice is None and tool_required:
            choice = "required"
        arguments = {"messages": messages, **kwargs}
        if tools:
            arguments["tools"] = [_tool_in_json(tool) for tool in tools]
            arguments["tool_choice"] = choice
            arguments["parallel_tool_calls"] = allow_parallel_tool_calls
        return arguments

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """Leaves one call where one is allowed; a model that is told so writes no second one."""
        blocks = response.message.blocks
        calls = [block for block in blocks if isinstance(block, ToolCallBlock)]
        if not allow_parallel_tool_calls and len(calls) > 1:
            response.message.blocks = [block for block in blocks if block not in calls[1:]]
            response.message.additional_kwargs["tool_calls"][1:] = []
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of tools in an answer, also in one that still grows.

        Args:
            response: the answer.
            error_on_no_tool_call: whether there must be one.
            kwargs: not looked at.

        Raises:
            ModelError: a call was cut off or has arguments that are no object, or there is none.
        """
        return tool_selections(response, required=error_on_no_tool_call)


def _tool_in_json(tool: BaseTool) -> dict[str, Any]:
    """A tool in the form of OpenAI's API, under its own name whatever signs that has."""
    metadata = tool.metadata
    return {
        "type": "function",
        "function": {
            "name": metadata.get_name(),
            "description": metadata.description,
            "parameters": metadata.get_parameters_dict(),
        },
    }
