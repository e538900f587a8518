"""What one call of a chat model asks for, of the model's own settings and the call's.

Knows which settings a call may have, and refuses others. Knows nothing of messages or weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_pacellm.errors import PaceInvalidRequestError
from langchain_pacellm.messages import to_tool_choice, to_tools
from langchain_pacellm.structured_output import to_constraint
from pacellm_rag.messages import Tool
from pacellm_rag.protocols import GenerationOptions

__all__ = ["SAMPLING", "CallSettings", "both_stops", "call_settings"]

SAMPLING: Final = ("temperature", "max_tokens", "top_p", "top_k", "seed", "timeout")
_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
# What LangChain passes on for itself: how it was called, and what a trace is to say.
_LANGCHAINS: Final = (
    "model",
    "stream",
    "strict",
    "ls_structured_output_format",
    "structured_output_format",
)


@dataclass(frozen=True)
class CallSettings:
    """One call's settings.

    Attributes:
        options: how to decode, and the form of the answer.
        tools: what the model may call.
        tool_choice: as for `start_chat`.
        parallel_tool_calls: as for `start_chat`.
    """

    options: GenerationOptions
    tools: tuple[Tool, ...]
    tool_choice: str
    parallel_tool_calls: bool


def call_settings(
    own: Mapping[str, Any], stop: Sequence[str], given: Mapping[str, Any]
) -> CallSettings:
    """The settings of a call.

    Args:
        own: the chat model's: temperature, max_tokens, top_p, top_k, seed, timeout.
        stop: strings that end the answer.
        given: the call's, which come first; None stands for the chat model's own.

    Raises:
        PaceInvalidRequestError: there is no such setting, or a value can not work.
        ConfigurationError: a value is out of range.
    """
    unknown = sorted(set(given) - {*SAMPLING, *_TOOLS, *_LANGCHAINS})
    if unknown:
        raise PaceInvalidRequestError(
            f"A call has no setting named {', '.join(unknown)}; it takes model, stop, "
            f"{', '.join((*SAMPLING, *_TOOLS))}."
        )
    chosen = {**own, **{k: v for k, v in given.items() if k in SAMPLING and v is not None}}
    tools = to_tools(given.get("tools") or ())
    parallel = given.get("parallel_tool_calls")
    return CallSettings(
        options=GenerationOptions(
            max_new_tokens=chosen["max_tokens"],
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            top_k=chosen["top_k"],
            seed=chosen["seed"],
            timeout=chosen["timeout"],
            stop=tuple(stop),
            constraint=to_constraint(given.get("response_format")),
        ),
        tools=tools,
        tool_choice=to_tool_choice(given.get("tool_choice"), [tool.name for tool in tools]),
        parallel_tool_calls=True if parallel is None else bool(parallel),
    )


def both_stops(own: Sequence[str] | str | None, given: Sequence[str] | str | None) -> list[str]:
    """A chat model's stop strings and a call's, each once."""
    lists = [[stop] if isinstance(stop, str) else list(stop or ()) for stop in (own, given)]
    return list(dict.fromkeys(lists[0] + lists[1]))
