"""Objects of pydantic classes: what asks for them, and what reads them while they come.

The model is told the schema behind the last turn, where it leaves a prompt's beginning as it was;
that the answer keeps to it is enforced while it is decoded. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Generic

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import create_flexible_model
from llama_index.core.prompts.base import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher

from llama_index.llms.pacellm.responses import object_so_far
from pacellm_rag.errors import ModelError

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel

__all__ = ["SchemaLLM"]

_dispatcher = get_dispatcher(__name__)


class SchemaLLM(FunctionCallingLLM):
    """An LLM whose `chat` enforces the `response_format` of OpenAI's API, and what follows of it.

    Objects of classes are answers of that form. Where `pydantic_program_mode` names another way
    to them, that one is taken.
    """

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answers a prompt with an object of a class.

        Args:
            output_cls: the class.
            prompt: the prompt.
            llm_kwargs: arguments of `chat`.
            prompt_args: what to fill into the prompt.

        Raises:
            ModelError: the answer breaks a rule of the class that its schema does not tell.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            other: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return other
        messages, arguments = self._ask(output_cls, prompt, llm_kwargs, prompt_args)
        response = self.chat(messages, **arguments)
        return self._told(GrowingObject(output_cls).whole(response.message.content or ""))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answers a prompt with an object of a class; see `structured_predict`."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            other: Model = await super().astructured_predict(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return other
        messages, arguments = self._ask(output_cls, prompt, llm_kwargs, prompt_args)
        response = await self.achat(messages, **arguments)
        return self._told(GrowingObject(output_cls).whole(response.message.content or ""))

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """Yields an object as it grows, every field optional, and the whole one at last."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            yield from super().stream_structured_predict(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return
        messages, arguments = self._ask(output_cls, prompt, llm_kwargs, prompt_args)
        growing, text = GrowingObject(output_cls), ""
        responses = self.stream_chat(messages, **arguments)
        try:
            for response in responses:
                text = response.message.content or ""
                partial = growing.so_far(text)
                if partial is not None:
                    _dispatcher.event(LLMStructuredPredictInProgressEvent(output=partial))
                    yield partial
        finally:
            responses.close()
        yield self._told(growing.whole(text))

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """Makes what `stream_structured_predict` is, for `async for`."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super().astream_structured_predict(
                output_cls, prompt, llm_kwargs, **prompt_args
            )

        async def objects() -> AsyncGenerator[Model | FlexibleModel, None]:
            messages, arguments = self._ask(output_cls, prompt, llm_kwargs, prompt_args)
            growing, text = GrowingObject(output_cls), ""
            responses = await self.astream_chat(messages, **arguments)
            try:
                async for response in responses:
                    text = response.message.content or ""
                    partial = growing.so_far(text)
                    if partial is not None:
                        _dispatcher.event(LLMStructuredPredictInProgressEvent(output=partial))
                        yield partial
            finally:
                await responses.aclose()
            yield self._told(growing.whole(text))

        return objects()

    def _ask(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """The messages to send, and the arguments of `chat`."""
        _dispatcher.event(
            LLMStructuredPredictStartEvent(
                output_cls=output_cls, template=prompt, template_args=prompt_args
            )
        )
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        messages, form = _ask_for_object(messages, output_cls)
        return messages, {**(llm_kwargs or {}), "response_format": form}

    @staticmethod
    def _told(output: Model) -> Model:
        _dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output


def _ask_for_object(
    messages: list[ChatMessage], output_cls: type[BaseModel]
) -> tuple[list[ChatMessage], dict[str, Any]]:
    """A conversation that asks for an object, and the `response_format` that enforces it."""
    schema = output_cls.model_json_schema()
    told = (
        "Answer with one JSON object that follows this JSON schema:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )
    if messages and messages[-1].role == MessageRole.USER:
        last = messages[-1].model_copy()
        last.blocks = [*last.blocks, TextBlock(text=f"\n{told}")]
        messages = [*messages[:-1], last]
    else:
        messages = [*messages, ChatMessage(role=MessageRole.USER, content=told)]
    form = {"name": output_cls.__name__, "schema": schema}
    return messages, {"type": "json_schema", "json_schema": form}


class GrowingObject(Generic[Model]):
    """Reads an object out of JSON text that is not complete yet.

    Args:
        output_cls: its class.
    """

    def __init__(self, output_cls: type[Model]) -> None:
        self._output_cls = output_cls
        self._flexible = create_flexible_model(output_cls)
        self._last: dict[str, Any] = {}

    def so_far(self, text: str) -> FlexibleModel | None:
        """The object as far as it is known, every field optional; None where nothing is new."""
        found = object_so_far(text)
        if found == self._last:
            return None
        self._last = found
        return self._flexible.model_validate(found)

    def whole(self, text: str) -> Model:
        """The object, when the text is complete.

        Raises:
            ModelError: the text is none: it was cut off, or breaks a rule that the schema does not
                tell.
        """
        try:
            return self._output_cls.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(
                f"The answer is no {self._output_cls.__name__}: {error}\nThe answer is {text!r}. "
                "Rules that pydantic checks and JSON schemas can not tell are not enforced; leave "
                "them out, or ask again with another seed."
            ) from error
