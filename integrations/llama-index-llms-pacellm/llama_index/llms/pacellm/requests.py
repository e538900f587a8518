"""What a call of the model asks for: how to decode, which tools, and which form.

Reads the keyword arguments of one call over the settings of the model object, and refuses those
that it does not know. Knows nothing of messages or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.llms.pacellm.messages import convert_tools
from pacellm_rag.constraints import JsonConstraint
from pacellm_rag.errors import ModelError
from pacellm_rag.messages import Tool
from pacellm_rag.protocols import GenerationOptions

__all__ = ["ChatRequest", "tool_choice_name"]

_DECODING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "timeout")
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")


@dataclass(frozen=True)
class ChatRequest:
    """One call.

    Attributes:
        options: how to decode.
        tools: what may be called.
        tool_choice: as for `start_chat`.
        parallel_tool_calls: whether there may be several calls.
    """

    options: GenerationOptions
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], given: Mapping[str, Any], *, chat: bool = True
    ) -> ChatRequest:
        """Reads a call.

        Args:
            settings: the model object's own values of what a call may change.
            given: the call's keyword arguments; None stands for the model object's value.
            chat: whether there may be tools and a form.

        Raises:
            ModelError: an argument is unknown or has another form.
            ConfigurationError: a value is out of range.
        """
        known = (*_DECODING, *_TOOLS) if chat else (*_DECODING, "response_format")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ModelError(
                f"{', '.join(unknown)}: PaceLLM knows no such argument of a call. It takes "
                f"{', '.join(known)}; what belongs to the model goes to PaceLLM(...)."
            )
        values = {**settings, **{name: v for name, v in given.items() if v is not None}}
        stop = values["stop"] or ()
        options = GenerationOptions(
            max_new_tokens=values["max_tokens"],
            temperature=values["temperature"],
            top_p=values["top_p"],
            top_k=values["top_k"],
            seed=values["seed"],
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            timeout=values["timeout"],
            constraint=_form(values.get("response_format")),
        )
        tools = convert_tools(values.get("tools") or ())
        choice = tool_choice_name(values.get("tool_choice"))
        if not tools and choice == "none":
            choice = "auto"
        return cls(options, tools, choice, values.get("parallel_tool_calls", True))


def tool_choice_name(choice: Any) -> str:
    """A tool choice in any of the forms in use, as `start_chat` takes it.

    Raises:
        ModelError: it has none of them.
    """
    if choice is None or choice is False:
        return "auto"
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, str) or not choice:
        raise ModelError(
            f"tool_choice is {choice!r}; it must be auto, none, required, any, a tool's name, or "
            '{"type": "function", "function": {"name": ...}}.'
        )
    return choice


def _form(response_format: Any) -> JsonConstraint | None:
    """What `response_format` asks for, in the form of OpenAI's API."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonConstraint({"type": "object"})
    if kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if isinstance(schema, Mapping):
            return JsonConstraint(schema)
    raise ModelError(
        f"response_format is {response_format!r}; it must be "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
        '{"type": "json_object"} or {"type": "text"}.'
    )
