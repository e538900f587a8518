"""What goes into the whole-document chain and what comes out of it, as plain dicts.

Knows LangChain's messages and documents, and `pacellm_rag`'s answers. Asks and reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import convert_to_messages
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.utils import AnyMessage
from typing_extensions import NotRequired, TypedDict

from langchain_pacellm.messages import to_messages
from langchain_pacellm.pages import WholeDocuments
from pacellm_rag import DocumentReader, GenerationOptions
from pacellm_rag.answer import Answer
from pacellm_rag.context.citations import Citation
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Message
from pacellm_rag.reader import Receipt

__all__ = [
    "OPTION_NAMES",
    "PageCitation",
    "ReadingReceipt",
    "WholeDocumentAnswer",
    "WholeDocumentQuestion",
    "answer_usage",
    "answered_from",
    "call_options",
    "question_and_history",
]

OPTION_NAMES: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "timeout",
)


class WholeDocumentQuestion(TypedDict):
    """A question, under either name, and the turns before it."""

    question: NotRequired[str]
    input: NotRequired[str]
    chat_history: NotRequired[list[AnyMessage]]


class PageCitation(TypedDict):
    """A page that an answer rests on; `page` is the physical number, from 1.

    `verified` says whether `quote` stands on the page, `score` which share of the evidence points
    to it.
    """

    title: str
    source: str
    document_id: str
    page: int
    page_label: str
    quote: str
    verified: bool
    score: float


class ReadingReceipt(TypedDict):
    """What was read before the first answer; `tokens_reused` had been known before that."""

    documents: int
    pages: int
    tokens: int
    tokens_reused: int
    seconds: float
    pages_without_text: list[tuple[str, int]]
    warnings: list[str]


class WholeDocumentAnswer(TypedDict):
    """What the chain gives: the answer, its pages, and what it took.

    `context` has the cited pages; `finish_reason` is "length" where the answer was cut.
    """

    question: str
    answer: str
    citations: list[PageCitation]
    context: list[Document]
    receipt: ReadingReceipt
    usage: UsageMetadata
    finish_reason: str


def question_and_history(given: Any) -> tuple[str, list[Message]]:
    """The question and the turns before it.

    Raises:
        ConfigurationError: there is no question, or something has no place in the history.
    """
    if isinstance(given, str):
        return given, []
    keys = list(given) if isinstance(given, Mapping) else []
    question = next((given[key] for key in ("question", "input") if key in keys), None)
    if not isinstance(question, str):
        found = f"a dict with {', '.join(map(repr, keys)) or 'nothing'}" if keys else repr(given)
        raise ConfigurationError(
            f"The chain got {found[:200]}; it takes a question as a str, or a dict with the "
            "question as 'question' or 'input' and the turns before it as 'chat_history'."
        )
    history = to_messages(convert_to_messages(given.get("chat_history") or []))
    if any(turn.role == "system" for turn in history):
        raise ConfigurationError(
            "chat_history has a system message; the documents are the chain's system message, and "
            "models take one. Pass the turns of user and assistant, and what else the model "
            "should know in the question."
        )
    return question, history


def call_options(options: GenerationOptions, given: Mapping[str, Any]) -> GenerationOptions:
    """Options with what is given under LangChain's names; None stands for what was there.

    Raises:
        ConfigurationError: there is no such option, or one is out of range.
    """
    unknown = ", ".join(sorted(set(given) - set(OPTION_NAMES)))
    if unknown:
        raise ConfigurationError(
            f"There is no option {unknown}; there are {', '.join(OPTION_NAMES)}."
        )
    changes = {name: value for name, value in given.items() if value is not None}
    if "max_tokens" in changes:
        changes["max_new_tokens"] = changes.pop("max_tokens")
    if "stop" in changes:
        stop = changes["stop"]
        changes["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(options, **changes)


def answer_usage(answer: Answer, reading: Receipt | None) -> UsageMetadata:
    """Tokens of an answer.

    Args:
        answer: the answer.
        reading: of the documents, where that was part of this answer's work.
    """
    usage = answer.usage
    known = usage.tokens_reused
    if reading is not None:
        known = min(known, reading.tokens_reused)
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(
            cache_read=known, cache_creation=usage.prompt_tokens - known
        ),
    )


def answered_from(
    answer: Answer, usage: UsageMetadata, documents: WholeDocuments, reader: DocumentReader
) -> dict[str, Any]:
    """All of a `WholeDocumentAnswer` but the answer's words."""
    cited = dict.fromkeys((c.document, c.page) for c in answer.citations)
    return {
        "question": answer.question,
        "citations": [_citation(citation, documents) for citation in answer.citations],
        "context": [documents.page(document, page) for document, page in cited],
        "receipt": _receipt(reader),
        "usage": usage,
        "finish_reason": answer.finish_reason,
    }


def _citation(citation: Citation, documents: WholeDocuments) -> PageCitation:
    document = documents.documents[citation.document]
    return PageCitation(
        title=citation.title,
        source=document.source,
        document_id=document.id,
        page=citation.page,
        page_label=citation.label,
        quote=citation.quote,
        verified=citation.verified,
        score=citation.score,
    )


def _receipt(reader: DocumentReader) -> ReadingReceipt:
    receipt = reader.read()  # has been read
    return ReadingReceipt(
        documents=receipt.documents,
        pages=receipt.pages,
        tokens=receipt.tokens,
        tokens_reused=receipt.tokens_reused,
        seconds=receipt.seconds,
        pages_without_text=list(receipt.pages_without_text),
        warnings=[w.message for document in reader.documents for w in document.warnings],
    )
