"""A local model that reads whole documents, as a chat model of LangChain.

Knows LangChain's interface. What it answers with is `pacellm_rag.chat`; weights, engine and prefix
cache are shared by all chat models that name the same model with the same settings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import model_validator

from langchain_pacellm.call_settings import both_stops, call_settings
from langchain_pacellm.errors import langchain_errors
from langchain_pacellm.message_chunks import ChunkMaker
from langchain_pacellm.messages import to_messages, to_openai_tools, to_tool_choice, to_tools
from langchain_pacellm.model_settings import PaceSettings
from langchain_pacellm.structured_output import Method, structured_chain
from pacellm_rag import __version__
from pacellm_rag.chat import ChatDelta, ChatStream, start_chat
from pacellm_rag.errors import ConfigurationError, QueueFullError

__all__ = ["ChatPaceLLM"]

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds between tries while the queue is full


class ChatPaceLLM(PaceSettings, BaseChatModel):
    """A local model that reads whole documents and answers from them.

    What messages have in common from their beginning is read once: put documents into the system
    message, or first, and ask as often as you like.

    Setup:
        `pip install "pacellm-rag[langchain]"`, then `pacellm-rag models install` for the default
        model. Nothing leaves the machine, and no key is needed.

    Instantiate:
        ```python
        from langchain_pacellm import ChatPaceLLM

        model = ChatPaceLLM(max_tokens=200)
        ```
        This reads the model's tokenizer, for `profile`; weights are loaded at the first question.

    Invoke, stream, async:
        ```python
        model.invoke([("system", document), ("human", "Who signed it?")])
        for chunk in model.stream("Who are you?"):
            print(chunk.text, end="")
        await model.ainvoke("Who are you?")
        ```
        Closing a stream, or cancelling the task, stops the model.

    Files:
        ```python
        pdf = {"type": "file", "base64": data, "mime_type": "application/pdf"}
        model.invoke([{"role": "user", "content": [pdf, {"type": "text", "text": "Sum it up."}]}])
        ```

    Tool calling and structured output:
        ```python
        model.bind_tools([get_weather], tool_choice="any").invoke("Will it rain?")
        model.with_structured_output(Person).invoke("Ada is 36.")
        ```
        Both are enforced while the answer is decoded.

    Token usage and response metadata:
        `usage_metadata` has exact counts; its `cache_read` tells how much of the prompt had been
        read before, `cache_creation` how much was read now. `response_metadata` has `model_name`
        and `finish_reason`: "stop", "length" or "tool_calls".

    Errors are LangChain's where it has one that fits (`ContextOverflowError`, `ModelTimeoutError`,
    `ModelRateLimitError`, `ModelInvalidRequestError`), and PaceLLM's at the same time.
    """

    @model_validator(mode="after")
    def _set_pacellm_version(self) -> ChatPaceLLM:
        self._add_version("langchain-pacellm", __version__)
        return self

    # what LangChain asks about a model

    @property
    def _llm_type(self) -> str:
        return "pacellm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on: LangChain's cache goes by it."""
        return self._dependencies

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop, **kwargs)
        return {**params, "stop": both_stops(self.stop, stop)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=both_stops(self.stop, stop) or None, **kwargs)
        params["ls_provider"] = "pacellm"
        if self.engine is not None and not isinstance(kwargs.get("model"), str):
            params["ls_model_name"] = str(self.engine.name)
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        """What the model can do; the room for a prompt is what an answer leaves of the window."""
        window = self.prompt_tokenizer.context_window
        return ModelProfile(
            max_input_tokens=max(window - self.max_tokens, 0),
            max_output_tokens=min(self.max_tokens, window),
            open_weights=True,
            text_inputs=True,
            image_inputs=False,
            image_url_inputs=False,
            pdf_inputs=True,
            pdf_tool_message=True,
            audio_inputs=False,
            video_inputs=False,
            image_tool_message=False,
            reasoning_output=False,
            text_outputs=True,
            image_outputs=False,
            audio_outputs=False,
            video_outputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a bare text, without special tokens.

        Raises:
            ConfigurationError: `engine` has a tokenizer of its own kind, that only counts.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        tokenizer = self.prompt_tokenizer
        hf: Callable[..., Mapping[str, Any]] | None = getattr(tokenizer, "hf", None)
        if hf is None:
            raise ConfigurationError(
                f"The tokenizer of {tokenizer.name} counts tokens, but does not tell their ids. "
                "Use get_num_tokens, or set custom_get_token_ids."
            )
        return list(hf(text, add_special_tokens=False, verbose=False)["input_ids"])

    def get_num_tokens(self, text: str) -> int:
        """Number of tokens of a bare text."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return self.prompt_tokenizer.count_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Number of tokens of a whole prompt: exactly what `usage_metadata` will report."""
        with langchain_errors():
            prompt = self.prompt_tokenizer.encode_messages(
                to_messages(messages), to_tools(tools or ())
            )
        return len(prompt.token_ids)

    # answering

    def _start(
        self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[ChatStream, ChunkMaker]:
        """An answer that has not begun. Loads weights and encodes: not for an event loop."""
        settings = call_settings(self._own(), both_stops(self.stop, stop), given)
        turns = to_messages(messages)
        chosen = self._named(given.get("model"))
        chat = start_chat(
            chosen.text_model,
            turns,
            options=settings.options,
            tools=settings.tools,
            tool_choice=settings.tool_choice,
            parallel_tool_calls=settings.parallel_tool_calls,
        )
        return chat, ChunkMaker(chat, chosen._model_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, kwargs):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            waits = _waits(self.max_retries)
            while True:
                chat, maker = self._start(messages, stop, given)
                try:
                    first = next(chat, None)
                    break
                except QueueFullError:
                    wait = next(waits, None)
                    if wait is None:
                        raise
                time.sleep(wait)
            with chat:
                yield from () if first is None else maker.piece(first)
                for delta in chat:
                    yield from maker.piece(delta)
                yield from maker.end()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with langchain_errors():
            waits = _waits(self.max_retries)
            while True:
                chat, maker = await asyncio.to_thread(self._start, messages, stop, kwargs)
                try:
                    first: ChatDelta | None = await anext(chat, None)
                    break
                except QueueFullError:
                    wait = next(waits, None)
                    if wait is None:
                        raise
                await asyncio.sleep(wait)
            async with chat:
                if first is not None:
                    for chunk in maker.piece(first):
                        await _tell(run_manager, chunk)
                        yield chunk
                async for delta in chat:
                    for chunk in maker.piece(delta):
                        await _tell(run_manager, chunk)
                        yield chunk
                for chunk in maker.end():
                    await _tell(run_manager, chunk)
                    yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    # tools and forms

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call tools; their arguments always follow their schemas.

        Args:
            tools: functions, classes, schemas or LangChain's tools.
            tool_choice: "auto", None or False: the model chooses. "any", "required" or True: it
                calls some tool. "none": it calls none. A tool's name, or OpenAI's dict: that one.
            parallel_tool_calls: False for one call at most.
            strict: True for arguments beside those listed to be forbidden where a schema allows
                them; what a schema says is enforced anyway.
            kwargs: other settings of calls, such as `response_format`.

        Raises:
            PaceInvalidRequestError: a tool or `tool_choice` is none of these.
        """
        described = to_openai_tools(tools, strict)
        if tool_choice is not None:
            names = [tool["function"]["name"] for tool in described]
            kwargs["tool_choice"] = to_tool_choice(tool_choice, names)
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=described, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A chain whose answers are objects of a schema.

        Args:
            schema: a class of pydantic, whose objects come; or a TypedDict or JSON schema, for
                dicts. None for any JSON object, with `method="json_mode"`.
            include_raw: for dicts with "raw", the message, "parsed", and "parsing_error".
            method: "json_schema" makes the answer's text follow the schema; "function_calling"
                makes the model call a tool with these arguments, and so tells it the descriptions;
                "json_mode" is as "json_schema", and expects the prompt to tell of the keys.
            strict: False lets objects have keys beside those listed.
            kwargs: other settings of calls.

        Raises:
            PaceInvalidRequestError: `schema` or `method` is none of these.
        """
        return structured_chain(
            self, schema, method=method, include_raw=include_raw, strict=strict, given=kwargs
        )


async def _tell(
    run_manager: AsyncCallbackManagerForLLMRun | None, chunk: ChatGenerationChunk
) -> None:
    if run_manager is not None:
        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)


def _waits(retries: int) -> Iterator[float]:
    for retry in range(retries):
        yield min(_FIRST_WAIT * 2**retry, _LONGEST_WAIT)
