"""What the text of an answer must look like, whatever the model would rather write.

A constraint is enforced token by token while an answer is decoded (`models.constrained`), so that
its text is always valid and always ends. Knows schemas and tools; knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Tool

__all__ = ["Constraint", "JsonConstraint", "ToolConstraint"]


@dataclass(frozen=True)
class JsonConstraint:
    """The answer is one JSON value.

    Attributes:
        schema: the JSON schema that it follows; {} for any value.
    """

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class ToolConstraint:
    """Calls in the answer name one of these tools, with arguments that its schema allows.

    Attributes:
        tools: at least one.
        required: whether the answer is nothing but calls; else it may be text, and calls end it.
        parallel: whether there may be several calls.
        otherwise: the form of an answer that calls nothing; None for any text. Where `required` is
            set it is not looked at.

    Raises:
        ConfigurationError: there is no tool.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True
    otherwise: JsonConstraint | None = None

    def __post_init__(self) -> None:
        if not self.tools:
            raise ConfigurationError("A tool must be called, but there are no tools; pass some.")


Constraint = JsonConstraint | ToolConstraint
