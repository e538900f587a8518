"""LlamaIndex' messages and tools as the engine knows them.

Knows every kind of content block: text goes to the model as it is, documents page by page behind
markers, and what a text model can not see is refused by name. Knows nothing of models or answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import IOBase
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents import (
    Document,
    DocumentLimits,
    RememberedDocuments,
    load_document,
    text_document,
)
from pacellm_rag.errors import ModelError
from pacellm_rag.messages import Message, Role, Tool, ToolCall

__all__ = ["DocumentShelf", "convert_messages", "convert_tools"]

_ROLES: Mapping[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_NO_TITLE = "input_document"  # what LlamaIndex calls documents without a title
# A quotation stands in the documents already; thoughts of another turn and marks for caches are
# nothing that this model should read.
_LEFT_OUT = (CachePoint, CitationBlock, ThinkingBlock)


class DocumentShelf:
    """Documents of messages, each parsed once.

    Args:
        limits: what reading each may cost.
        most: documents to keep.
    """

    def __init__(self, limits: DocumentLimits | None = None, most: int = 32) -> None:
        self._limits = limits or DocumentLimits()
        self._parsed = RememberedDocuments(most, self._limits)

    def open(self, block: DocumentBlock) -> Document:
        """The document of a block.

        Raises:
            PaceLLMError: as for `load_document`.
            ModelError: the document lies elsewhere, or the block is empty.
        """
        title = block.title if block.title and block.title != _NO_TITLE else ""
        document = self._from_path(Path(block.path)) if block.path else self._from_data(block)
        return replace(document, title=title) if title else document

    def _from_path(self, path: Path) -> Document:
        path = path.expanduser()
        if not path.is_file() or path.stat().st_size > self._limits.file_bytes:
            return load_document(path, limits=self._limits)  # which tells what is wrong
        return self._parsed.open(path.read_bytes(), path.name)

    def _from_data(self, block: DocumentBlock) -> Document:
        if not block.data and block.url and not block.url.startswith("data:"):
            raise ModelError(
                f"The document at {block.url!r} would have to be fetched, which PaceLLM does not "
                "do. Download it, and pass its path or its data."
            )
        if not block.data and not block.url:
            raise ModelError(
                f"The document {block.title!r} is empty; pass its path, its data or a data: URL."
            )
        if isinstance(block.data, IOBase):
            block.data.seek(0)
            data = block.data.read()
        else:
            data = block.resolve_document().read()
        return self._parsed.open(data, block.title or _NO_TITLE)


def convert_messages(messages: Sequence[ChatMessage], shelf: DocumentShelf) -> list[Message]:
    """A conversation as the engine takes it.

    The documents in it are numbered from its beginning, so that a marker such as `[D2 p5]` names
    one page in the whole conversation.

    Args:
        messages: the turns.
        shelf: what opens their documents.

    Raises:
        PaceLLMError: a document can not be read.
        ModelError: there is content that a text model can not take.
    """
    opened: dict[str, Document] = {}
    contents = [_contents(message, shelf, opened) for message in messages]
    texts = _texts(opened)
    names: dict[str, str] = {}
    converted = []
    for message, content in zip(messages, contents, strict=True):
        role = _ROLES[message.role]
        text = "\n".join(texts[p.id] if isinstance(p, Document) else p for p in content)
        calls = _calls(message) if role == "assistant" else ()
        names.update({call.id: call.name for call in calls})
        call_id = str(message.additional_kwargs.get("tool_call_id") or "")
        if role == "tool":
            name = str(message.additional_kwargs.get("name") or names.get(call_id, ""))
            converted.append(Message(role, text, tool_call_id=call_id, name=name))
        else:
            converted.append(Message(role, text, calls))
    return converted


def _contents(
    message: ChatMessage, shelf: DocumentShelf, opened: dict[str, Document]
) -> list[str | Document]:
    """A message's texts and documents in their order; notes new documents in `opened`."""
    parts: list[str | Document] = []

    def add(document: Document) -> None:
        parts.append(opened.setdefault(document.id, document))

    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif isinstance(block, DocumentBlock):
            add(shelf.open(block))
        elif isinstance(block, CitableBlock):
            for document in _citable(block, shelf):
                add(document)
        elif not isinstance(block, (*_LEFT_OUT, ToolCallBlock)):
            raise _unseen(block)
    return parts


def _citable(block: CitableBlock, shelf: DocumentShelf) -> list[Document]:
    documents = []
    for part in block.content:
        if isinstance(part, TextBlock):
            documents.append(text_document(part.text, block.title or block.source))
        elif isinstance(part, DocumentBlock):
            document = shelf.open(part)
            documents.append(replace(document, title=block.title) if block.title else document)
        else:
            raise _unseen(part)
    return documents


def _unseen(block: Any) -> ModelError:
    return ModelError(
        f"A message has a block of the kind {block.block_type!r}, and PaceLLM reads text and "
        "documents only. Leave it out, or put it into words."
    )


def _texts(documents: Mapping[str, Document]) -> dict[str, str]:
    """The text of each document, its pages behind markers."""
    if not documents:
        return {}
    packed = pack_context(list(documents.values()))
    return {
        name: packed.text[start:end]
        for name, (start, end) in zip(documents, packed.document_spans, strict=True)
    }


def _calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        written = [(b.tool_name, b.tool_kwargs, b.tool_call_id or "") for b in blocks]
    else:  # a message of an older release, or of another model
        written = [_listed(call) for call in message.additional_kwargs.get("tool_calls") or ()]
    return tuple(ToolCall(name, _arguments(name, given), i) for name, given, i in written)


def _listed(call: Any) -> tuple[str, Any, str]:
    """Name, arguments and id of a call as OpenAI's API writes it."""
    plain = call if isinstance(call, Mapping) else getattr(call, "model_dump", dict)()
    function = plain.get("function", plain)
    if not isinstance(function, Mapping) or not function.get("name"):
        raise ModelError(
            f"additional_kwargs['tool_calls'] holds {call!r}, which names no function. Use a "
            "ToolCallBlock instead."
        )
    return str(function["name"]), function.get("arguments"), str(plain.get("id") or "")


def _arguments(name: str, given: Any) -> Mapping[str, Any]:
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ModelError(
                f"An earlier call of {name!r} has the arguments {given!r}, which are no JSON."
            ) from error
    given = given or {}
    if not isinstance(given, Mapping):
        raise ModelError(
            f"An earlier call of {name!r} has the arguments {given!r}; they must be an object."
        )
    return given


def convert_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools from the form of OpenAI's API, in which they travel through LlamaIndex.

    Raises:
        ModelError: one of them has another form.
    """
    converted = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise ModelError(
                f"tools holds {tool!r}; it must hold "
                '{"type": "function", "function": {"name", "description", "parameters"}}. '
                "chat_with_tools takes LlamaIndex' own tools."
            )
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        description = str(function.get("description") or "")
        converted.append(Tool(str(function["name"]), description, parameters))
    return tuple(converted)
