"""What stands in LlamaIndex' messages reaches the model, or is refused by name."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index.llms.pacellm import PaceLLM, messages
from llama_index.llms.pacellm.messages import DocumentShelf, convert_messages
from pacellm_rag import Message, load_document
from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents import remembered
from pacellm_rag.errors import DocumentError, DocumentLimitError, ModelError
from pacellm_rag.messages import ToolCall
from pacellm_rag.testing import ScriptedModel


def converted(*blocks: Any, role: MessageRole = MessageRole.USER) -> Message:
    message = ChatMessage(role=role, blocks=list(blocks))
    (found,) = convert_messages([message], DocumentShelf())
    return found


def test_texts_are_joined_as_llama_index_joins_them() -> None:
    message = ChatMessage(blocks=[TextBlock(text="One."), TextBlock(text="Two.")])
    (found,) = convert_messages([message], DocumentShelf())
    assert found == Message("user", message.content or "")
    assert converted() == Message("user", "")


@pytest.mark.parametrize(
    ("role", "wanted"),
    [
        (MessageRole.SYSTEM, "system"),
        (MessageRole.DEVELOPER, "system"),
        (MessageRole.USER, "user"),
        (MessageRole.ASSISTANT, "assistant"),
        (MessageRole.CHATBOT, "assistant"),
        (MessageRole.MODEL, "assistant"),
        (MessageRole.TOOL, "tool"),
        (MessageRole.FUNCTION, "tool"),
    ],
)
def test_every_role_has_its_place(role: MessageRole, wanted: str) -> None:
    assert converted(TextBlock(text="x"), role=role).role == wanted
    assert set(messages._ROLES) == set(MessageRole)


def test_a_pdf_is_read_page_by_page_whichever_way_it_comes(documents: Path) -> None:
    path = documents / "annual-report.pdf"
    data = path.read_bytes()
    wanted = pack_context([load_document(path)]).text
    assert "[D1 p3]" in wanted
    encoded = base64.b64encode(data).decode()
    for block in (
        DocumentBlock(path=path),
        DocumentBlock(path=str(path)),
        DocumentBlock(data=data),
        DocumentBlock(data=base64.b64encode(data)),
        DocumentBlock(data=io.BytesIO(data)),
        DocumentBlock(url=f"data:application/pdf;base64,{encoded}"),
    ):
        assert converted(block).content == wanted
    restored = DocumentBlock.model_validate(DocumentBlock(data=data).model_dump())
    assert converted(restored).content == wanted


def test_a_title_that_was_given_is_the_documents(documents: Path) -> None:
    path = documents / "annual-report.pdf"
    text = converted(DocumentBlock(path=path, title="Annual report 2023")).content
    assert text.startswith("Document D1: Annual report 2023\n")


def test_documents_are_numbered_through_the_conversation(documents: Path) -> None:
    report, contract = (
        DocumentBlock(path=documents / f"{name}.pdf")
        for name in ("annual-report", "supplier-contract")
    )
    turns = [
        ChatMessage(blocks=[report, TextBlock(text="Read this.")]),
        ChatMessage(role=MessageRole.ASSISTANT, content="I did."),
        ChatMessage(blocks=[contract, TextBlock(text="And this; compare with"), report]),
    ]
    first, _, last = convert_messages(turns, DocumentShelf())
    assert "[D1 p1]" in first.content
    assert "[D2 p1]" not in first.content
    assert last.content.index("[D2 p1]") < last.content.index("compare with")
    assert last.content.index("compare with") < last.content.index("[D1 p1]")
    assert first.content.endswith("Read this.")


def test_a_document_is_parsed_once(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    load = remembered.load_document_bytes

    def counting(data: bytes, name: str, **settings: Any) -> Any:
        parsed.append(name)
        return load(data, name, **settings)

    monkeypatch.setattr(remembered, "load_document_bytes", counting)
    llm = PaceLLM(engine=ScriptedModel(context_window=100_000))
    turns = [ChatMessage(blocks=[DocumentBlock(path=documents / "supplier-contract.pdf")])]
    for _ in range(3):
        llm.chat(turns)
    llm.model_copy().chat(turns)
    assert parsed == ["supplier-contract.pdf"]


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (DocumentBlock(url="https://example.org/report.pdf"), "would have to be fetched"),
        (DocumentBlock(url="file:///etc/passwd"), "would have to be fetched"),
        (DocumentBlock(), "is empty"),
        (ImageBlock(image=b"\x89PNG\r\n\x1a\n"), "kind 'image'"),
        (AudioBlock(audio=b"RIFF"), "kind 'audio'"),
        (CitableBlock(title="t", source="s", content=[ImageBlock(image=b"x")]), "kind 'image'"),
    ],
)
def test_what_can_not_be_read_is_refused_by_name(block: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        converted(block)


async def test_documents_that_can_not_be_read_are_the_packages_errors(tmp_path: Path) -> None:
    llm = PaceLLM(engine=ScriptedModel())
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\n")
    for name in ("broken.pdf", "missing.pdf", ""):
        turns = [ChatMessage(blocks=[DocumentBlock(path=str(tmp_path / name))])]
        with pytest.raises(DocumentError):
            llm.chat(turns)
        with pytest.raises(DocumentError):
            await llm.achat(turns)


def test_a_limit_is_looked_at_before_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("x" * 101)
    shelf = DocumentShelf(messages.DocumentLimits(file_bytes=100))
    with pytest.raises(DocumentLimitError, match="the limit is"):
        shelf.open(DocumentBlock(path=str(tmp_path / "large.txt")))


def test_citable_text_becomes_a_document(documents: Path) -> None:
    text = converted(
        CitableBlock(title="Minutes", source="wiki", content="They met [D1 p9] at noon."),
        CitableBlock(
            title="Report",
            source="files",
            content=[DocumentBlock(path=documents / "annual-report.pdf")],
        ),
        TextBlock(text="When?"),
    ).content
    assert text.startswith("Document D1: Minutes\n\n[D1 p1]\nThey met (D1 p9) at noon.")
    assert "Document D2: Report\n\n[D2 p1]\n" in text
    assert text.endswith("When?")


def test_thoughts_cache_points_and_citations_are_left_out() -> None:
    found = converted(
        ThinkingBlock(content="Hm."),
        TextBlock(text="Yes."),
        CitationBlock(
            cited_content="A line.", source="s", title="t", additional_location_info={"page": 1}
        ),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        role=MessageRole.ASSISTANT,
    )
    assert found == Message("assistant", "Yes.")


def test_calls_and_their_results_come_back_with_names() -> None:
    turns = [
        ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[
                TextBlock(text="Looking."),
                ToolCallBlock(tool_call_id="c1", tool_name="find", tool_kwargs={"page": 3}),
                ToolCallBlock(tool_call_id="c2", tool_name="count", tool_kwargs='{"of": "ü"}'),
            ],
        ),
        ChatMessage(
            role=MessageRole.TOOL, content="here", additional_kwargs={"tool_call_id": "c2"}
        ),
        ChatMessage(role=MessageRole.TOOL, content="?", additional_kwargs={"name": "other"}),
    ]
    calls = (ToolCall("find", {"page": 3}, "c1"), ToolCall("count", {"of": "ü"}, "c2"))
    assert convert_messages(turns, DocumentShelf()) == [
        Message("assistant", "Looking.", calls),
        Message("tool", "here", tool_call_id="c2", name="count"),
        Message("tool", "?", name="other"),
    ]


@pytest.mark.parametrize(
    "listed",
    [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"page": 3}'}},
        {"id": "c1", "function": {"name": "find", "arguments": {"page": 3}}},
        {"id": "c1", "name": "find", "arguments": {"page": 3}},
    ],
)
def test_calls_of_older_messages_are_understood(listed: dict[str, Any]) -> None:
    turn = ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [listed]})
    (found,) = convert_messages([turn], DocumentShelf())
    assert found.tool_calls == (ToolCall("find", {"page": 3}, "c1"),)


@pytest.mark.parametrize("arguments", ["{", "[1]", [1]])
def test_calls_that_make_no_sense_are_refused(arguments: Any) -> None:
    listed = {"function": {"name": "find", "arguments": arguments}}
    turn = ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [listed]})
    with pytest.raises(ModelError, match="earlier call of 'find'"):
        convert_messages([turn], DocumentShelf())
    turn = ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [{"x": 1}]})
    with pytest.raises(ModelError, match="names no function"):
        convert_messages([turn], DocumentShelf())
