"""Conversations: turns, tools that may be called in them, and calls of tools.

Knows nothing of chat templates, of models, or of frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Message", "Role", "Tool", "ToolCall"]

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that a model has written.

    Attributes:
        name: the tool's.
        arguments: what to call it with.
        id: names the call, so that its result can name it.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool that a model may call.

    Attributes:
        name: what calls name it by.
        description: what it is good for, in words for the model.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who says it; "tool" for a tool's result.
        content: the text.
        tool_calls: calls that a turn of the assistant ends with.
        tool_call_id: the call that a tool's result belongs to.
        name: the tool's name in a tool's result.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
