"""What ChatPaceLLM makes of LangChain's messages and of files in them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

import langchain_pacellm.file_blocks as file_blocks
from langchain_pacellm import ChatPaceLLM
from langchain_pacellm.messages import to_messages
from pacellm_rag import load_document
from pacellm_rag.documents import RememberedDocuments, remembered
from pacellm_rag.errors import ConfigurationError, DocumentError, EncryptedDocumentError
from pacellm_rag.messages import Message, ToolCall
from pacellm_rag.testing import ScriptedModel


@pytest.fixture
def contract(documents: Path) -> str:
    return base64.b64encode((documents / "supplier-contract.pdf").read_bytes()).decode()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files read; nothing is remembered from other tests."""
    names: list[str] = []
    load = remembered.load_document_bytes

    def listen(data: bytes, name: str, **options: Any) -> Any:
        names.append(name)
        return load(data, name, **options)

    monkeypatch.setattr(remembered, "load_document_bytes", listen)
    monkeypatch.setattr(file_blocks, "_remembered", RememberedDocuments(2))
    return names


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (SystemMessage("Be kind."), Message("system", "Be kind.")),
        (HumanMessage("Hello", name="ada"), Message("user", "Hello")),
        (HumanMessage([]), Message("user", "")),
        (HumanMessage([{"type": "text", "text": "a"}, "b"]), Message("user", "a\nb")),
        (AIMessage([{"type": "text", "text": "a"}, "b"]), Message("assistant", "ab")),
        (AIMessage("\n kept "), Message("assistant", "\n kept ")),
        (
            AIMessage(
                [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "reasoning", "reasoning": "Hm."},
                    {"type": "text", "text": "Looking."},
                    {"type": "tool_use", "id": "1", "name": "look", "input": {"at": 1}},
                ],
                tool_calls=[{"name": "look", "args": {"at": 1}, "id": "1"}],
            ),
            Message("assistant", "Looking.", tool_calls=(ToolCall("look", {"at": 1}, "1"),)),
        ),
        (
            AIMessage(
                "",
                invalid_tool_calls=[{"name": "look", "args": '{"at', "id": "1", "error": None}],
            ),
            Message("assistant", '(A call that could not be made: look({"at))'),
        ),
        (
            ToolMessage("3", tool_call_id="1", name="add"),
            Message("tool", "3", tool_call_id="1", name="add"),
        ),
        (
            ToolMessage([{"type": "text", "text": "No."}], tool_call_id="1", status="error"),
            Message("tool", "Error: No.", tool_call_id="1"),
        ),
        (
            ToolMessage("Error: no.", tool_call_id="1", status="error"),
            Message("tool", "Error: no.", tool_call_id="1"),
        ),
        (FunctionMessage("3", name="add"), Message("tool", "3", name="add")),
        (ChatMessage("x", role="developer"), Message("system", "x")),
        (ChatMessage("x", role="User"), Message("user", "x")),
        (
            HumanMessage([{"type": "text-plain", "text": "Plain.", "mime_type": "text/plain"}]),
            Message("user", "Plain."),
        ),
    ],
)
def test_a_message_becomes_a_turn(given: AnyMessage, made: Message) -> None:
    assert to_messages([given]) == [made]


def test_a_result_is_named_after_the_call_that_it_answers() -> None:
    turns = to_messages(
        [
            HumanMessage("Add."),
            AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "7"}]),
            ToolMessage("3", tool_call_id="7"),
        ]
    )
    assert turns[-1] == Message("tool", "3", tool_call_id="7", name="add")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]),
            "'image_url'",
        ),
        (HumanMessage([{"type": "image", "base64": "", "mime_type": "image/png"}]), "'image'"),
        (HumanMessage([{"type": "tool_use"}]), "'tool_use'"),
        (HumanMessage([{"text": "no type"}]), "None"),
        (HumanMessage([{"type": "file", "url": "https://example.com/a.pdf"}]), "not fetched"),
        (HumanMessage([{"type": "file", "file": {"file_id": "f-1"}}]), "only file_id"),
        (HumanMessage([{"type": "file"}]), "only nothing"),
        (HumanMessage([{"type": "file", "base64": "%PDF"}]), "not base64"),
        (ChatMessage("x", role="narrator"), "role 'narrator'"),
        (RemoveMessage(id="1"), "'remove'"),
    ],
)
def test_what_can_not_be_read_is_refused(given: AnyMessage, told: str) -> None:
    chat = ChatPaceLLM(engine=ScriptedModel())
    with pytest.raises(ModelInvalidRequestError, match=told) as caught:
        chat.invoke([given, HumanMessage("Well?")])
    assert isinstance(caught.value, ConfigurationError)


def test_a_pdf_in_any_shape_gives_its_pages_behind_markers(
    contract: str, documents: Path, read: list[str]
) -> None:
    pages = load_document(documents / "supplier-contract.pdf").pages
    whole = f"data:application/pdf;base64,{contract}"
    shapes: list[dict[str, Any]] = [
        {"type": "file", "base64": contract, "mime_type": "application/pdf"},
        {"type": "file", "file": {"filename": "c.pdf", "file_data": whole}},
        {
            "type": "file",
            "source_type": "base64",
            "data": contract,
            "mime_type": "application/pdf",
        },
    ]
    engine = ScriptedModel(context_window=100_000)
    for shape in shapes:
        question = HumanMessage([{"type": "text", "text": "Sum it up:"}, shape])
        (turn,) = to_messages([question])
        assert turn.content.startswith("Sum it up:\n\nDocument D1: ")
        for page in pages:
            assert f"[D1 p{page.number}]\n{page.text}" in turn.content
        answer = ChatPaceLLM(engine=engine).invoke([question])
        counted = ChatPaceLLM(engine=engine).get_num_tokens_from_messages([question])
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_tokens"] == counted > 500


def test_a_second_question_does_not_parse_a_file_again(contract: str, read: list[str]) -> None:
    pdf = {"type": "file", "base64": contract, "mime_type": "application/pdf"}
    chat = ChatPaceLLM(engine=ScriptedModel(context_window=100_000))
    for question in ("Who?", "When?"):
        chat.invoke([HumanMessage([pdf, {"type": "text", "text": question}])])
    assert read == ["file.pdf"]
    texts = [base64.b64encode(text).decode() for text in (b"One.", b"Two.", b"Three.")]
    blocks = [{"type": "file", "base64": t, "mime_type": "text/plain"} for t in texts]
    for block in blocks:
        to_messages([HumanMessage([block])])
    chat.invoke([HumanMessage([pdf])])
    assert len(read) == 5  # two are remembered, and the PDF was the one used longest ago


def test_documents_are_numbered_through_the_conversation_and_keep_their_numbers(
    read: list[str],
) -> None:
    def file(text: str) -> dict[str, Any]:
        data = base64.b64encode(text.encode()).decode()
        return {"type": "file", "base64": data, "mime_type": "text/plain", "filename": text}

    first = [SystemMessage([file("One.")]), HumanMessage([file("Two."), "And?"])]
    turns = to_messages(first)
    assert "[D1 p1]\nOne." in turns[0].content
    assert "[D2 p1]\nTwo." in turns[1].content
    more = [*first, AIMessage("Well."), HumanMessage([file("One."), file("Three.")])]
    later = to_messages(more)
    assert later[:2] == turns
    assert "[D1 p1]\nOne." in later[3].content
    assert "[D3 p1]\nThree." in later[3].content


def test_a_result_of_a_tool_may_be_a_file(contract: str) -> None:
    block = {"type": "file", "base64": contract, "mime_type": "application/pdf"}
    (turn,) = to_messages([ToolMessage([block], tool_call_id="1", name="fetch")])
    assert "[D1 p1]" in turn.content


def test_a_damaged_and_a_locked_file_say_what_is_wrong(locked: Path) -> None:
    damaged = base64.b64encode(b"%PDF-1.7 and nothing behind it").decode()
    with pytest.raises(DocumentError):
        to_messages([HumanMessage([{"type": "file", "base64": damaged}])])
    with pytest.raises(DocumentError, match="empty"):
        to_messages([HumanMessage([{"type": "file", "base64": "data:,"}])])
    data = base64.b64encode(locked.read_bytes()).decode()
    with pytest.raises(EncryptedDocumentError):
        to_messages([HumanMessage([{"type": "file", "base64": data}])])
