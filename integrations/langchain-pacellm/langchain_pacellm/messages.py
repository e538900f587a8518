"""LangChain's messages, tools and choices of a tool, as PaceLLM's.

Knows both sides' shapes; knows nothing of models. What a local text model can not take in is
refused, not left out: images, audio, files that would have to be fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_pacellm.errors import PaceInvalidRequestError
from langchain_pacellm.file_blocks import document_of_block
from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents import Document
from pacellm_rag.messages import Message, Role, Tool, ToolCall

__all__ = ["to_messages", "to_openai_tools", "to_tool_choice", "to_tools"]

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
}
_TEXT: Final = ("text", "text-plain", "input_text", "output_text")
# Blocks that stand beside an answer's text: what they say is in `tool_calls`, or was not said.
_BESIDE: Final = (
    "thinking",
    "redacted_thinking",
    "reasoning",
    "tool_use",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "function_call",
)
_NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}}

_Part = str | Document


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """A conversation as PaceLLM takes it.

    Files become their pages' text behind markers such as `[D1 p2]`, numbered through the whole
    conversation; a file that comes twice keeps its number. Names of people (`HumanMessage.name`)
    are left out: chat templates have no place for them.

    Raises:
        PaceInvalidRequestError: a message or a block of content is of a kind that can not be read.
        DocumentError: a file can not be read.
    """
    contents = [_parts(message) for message in messages]
    documents = {p.id: p for parts in contents for p in parts if isinstance(p, Document)}
    packed: dict[str, str] = {}
    if documents:
        context = pack_context(list(documents.values()))
        for document_id, (start, end) in zip(documents, context.document_spans, strict=True):
            packed[document_id] = context.text[start:end].rstrip()
    called: dict[str, str] = {}
    turns: list[Message] = []
    for message, parts in zip(messages, contents, strict=True):
        turns.append(_turn(message, _joined(message, parts, packed), called))
    return turns


def _joined(message: BaseMessage, parts: Sequence[_Part], packed: Mapping[str, str]) -> str:
    texts = [part if isinstance(part, str) else packed[part.id] for part in parts]
    if any(isinstance(part, Document) for part in parts):
        return "\n\n".join(texts)
    return ("" if isinstance(message, AIMessage) else "\n").join(texts)


def _parts(message: BaseMessage) -> list[_Part]:
    """Texts and files of a message, in their order."""
    content = message.content
    blocks = [content] if isinstance(content, str) else content
    parts: list[_Part] = []
    for block in blocks:
        if isinstance(block, str):
            parts.append(block)
            continue
        kind = block.get("type")
        text = block.get("text")
        if kind in _TEXT and isinstance(text, str):
            parts.append(text)
        elif kind in ("file", "text-plain"):
            parts.append(document_of_block(block))
        elif kind not in _BESIDE or not isinstance(message, AIMessage):
            raise PaceInvalidRequestError(
                f"A {message.type} message has a content block of type {kind!r}, which can not be "
                "read. Give text blocks, or files (PDF, Word, HTML, text) as base64 in file blocks."
            )
    return parts


def _turn(message: BaseMessage, text: str, called: dict[str, str]) -> Message:
    """One turn.

    Args:
        message: LangChain's message.
        text: its content.
        called: names of the tools called before, by the calls' ids; those of this turn are added.
    """
    if isinstance(message, SystemMessage):
        return Message("system", text)
    if isinstance(message, HumanMessage):
        return Message("user", text)
    if isinstance(message, AIMessage):
        calls = tuple(ToolCall(c["name"], c["args"], c["id"] or "") for c in message.tool_calls)
        called.update((call.id, call.name) for call in calls)
        for bad in message.invalid_tool_calls:  # so that the model can see what went wrong
            told = f"(A call that could not be made: {bad['name']}({bad['args']}))"
            text = f"{text}\n{told}" if text else told
        return Message("assistant", text, tool_calls=calls)
    if isinstance(message, ToolMessage):
        if message.status == "error" and not text.lower().startswith("error"):
            text = f"Error: {text}"
        call_id = message.tool_call_id
        name = message.name or called.get(call_id, "")
        return Message("tool", text, tool_call_id=call_id, name=name)
    if isinstance(message, FunctionMessage):
        return Message("tool", text, name=message.name)
    if isinstance(message, ChatMessage) and message.role.lower() in _ROLES:
        return Message(_ROLES[message.role.lower()], text)
    kind = f"role {message.role!r}" if isinstance(message, ChatMessage) else f"{message.type!r}"
    raise PaceInvalidRequestError(
        f"A message of {kind} has no place in a conversation with a model; use system, human, ai "
        "and tool messages."
    )


def to_openai_tools(tools: Sequence[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Functions, classes, schemas and LangChain's tools, each in OpenAI's format.

    Raises:
        PaceInvalidRequestError: one is no tool, or one that only its provider can run.
    """
    found = []
    for tool in tools:
        try:
            described = convert_to_openai_tool(tool, strict=strict)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PaceInvalidRequestError(f"{tool!r} can not be used as a tool: {error}") from error
        function = described.get("function")
        if not isinstance(function, Mapping) or not function.get("name"):
            raise PaceInvalidRequestError(
                f"The tool {tool!r} runs at a provider, which a local model has not. Give a "
                "function, a class, or a schema with a name and parameters."
            )
        found.append(described)
    return found


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools as PaceLLM takes them; arguments as for `to_openai_tools`."""
    functions = [tool["function"] for tool in to_openai_tools(tools)]
    return tuple(
        Tool(f["name"], f.get("description") or "", f.get("parameters") or _NO_ARGUMENTS)
        for f in functions
    )


def to_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """Any form of `tool_choice` as "auto", "none", "required" or a tool's name.

    Args:
        choice: None, False and "auto" leave it to the model; True, "any" and "required" make it
            call some tool; "none" forbids it; a name, `{"type": "function", "function": {"name":
            ...}}` or `{"type": "tool", "name": ...}` makes it call that one.
        names: of the tools there are.

    Raises:
        PaceInvalidRequestError: it is none of these.
    """
    name = choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = choice.get("name") or (function.get("name") if isinstance(function, Mapping) else "")
        name = name or choice.get("type") or ""
    if name in names:
        return str(name)
    if name is None or name is False or name == "auto":
        return "auto"
    if name is True or name in ("any", "required"):
        return "required"
    if name == "none":
        return "none"
    raise PaceInvalidRequestError(
        f"tool_choice is {choice!r}; it must be auto, none, any, required, True, False or name one "
        f"of the tools: {', '.join(names) or 'there are none'}."
    )
