"""One question: its answer as it comes, then its sources, then what it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from pacellm_rag.answer import Answer, AnswerStream
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.context.citations import Citation
from pacellm_rag.context.markers import MarkerFilter
from pacellm_rag.protocols import Message
from pacellm_rag.reader import DocumentReader, Receipt
from pacellm_rag.settings import Settings

__all__ = ["answer_json", "describe_citation", "describe_receipt", "print_answer"]


def print_answer(
    reader: DocumentReader,
    question: str,
    settings: Settings,
    terminal: Terminal,
    history: Sequence[Message] = (),
) -> tuple[Answer, str]:
    """Asks, and prints the answer while it is being written.

    Leaving it by an exception, Ctrl-C among them, stops the model and ends the line.

    Returns:
        The answer, and the model's own words, markers included, for the conversation's history.
    """
    with terminal.working("Answering"):
        stream = reader.stream(question, history=history, cite=settings.citations)
        first = next(stream, "")
    with stream:
        _print_words(stream, first, terminal)
        words = stream.text
        answer = stream.answer
    for number, citation in enumerate(answer.citations, 1):
        terminal.line(describe_citation(number, citation))
    if answer.finish_reason == "length":
        terminal.warning(
            f"The answer was cut off after {answer.usage.completion_tokens} tokens. Allow more "
            "with --max-new-tokens."
        )
    terminal.note(_describe_work(answer))
    return answer, words


def _print_words(stream: AnswerStream, first: str, terminal: Terminal) -> None:
    words = MarkerFilter()
    try:
        terminal.write(words.feed(first))
        for piece in stream:
            terminal.write(words.feed(piece))
        terminal.write(words.flush())
    finally:
        terminal.line()


def describe_citation(number: int, citation: Citation) -> str:
    """A source on one line, such as `[1] Annual report, p. iv (page 4): "..."`."""
    page = f"p. {citation.label}"
    if citation.label != str(citation.page):
        page += f" (page {citation.page})"
    text = f"[{number}] {citation.title}, {page}"
    if citation.quote:
        text += f': "{citation.quote}"'
        if not citation.verified:
            text += " (not found on that page)"
    return " ".join(text.split())


def describe_receipt(receipt: Receipt) -> str:
    """What has been read, on one line."""
    text = (
        f"Read {_count(receipt.documents, 'document')}, {_count(receipt.pages, 'page')}, "
        f"{receipt.tokens:,} tokens, nothing left out, in {receipt.seconds:.1f} s"
    )
    if receipt.tokens_reused == receipt.tokens:
        text += " (all read before)."
    elif receipt.tokens_reused:
        text += f" ({receipt.tokens_reused:,} read before)."
    else:
        text += f" ({receipt.tokens_per_second:,.0f} tokens/s)."
    if receipt.pages_without_text:
        places = [f"{title} page {page}" for title, page in receipt.pages_without_text[:10]]
        more = len(receipt.pages_without_text) - len(places)
        text += f" Without text: {', '.join(places)}{f' and {more} more' if more else ''}."
    return text


def answer_json(answer: Answer, reader: DocumentReader) -> str:
    """An answer as one line of JSON, in ASCII: safe for every terminal and pipe."""
    receipt, fields = reader.receipt, asdict(answer)
    for citation in fields["citations"]:
        citation["file"] = reader.documents[citation["document"]].source
    content = {"question": fields.pop("question"), "answer": fields.pop("text"), **fields}
    content["receipt"] = asdict(receipt) if receipt is not None else None
    content["model"] = reader.model.name
    return json.dumps(content)


def _describe_work(answer: Answer) -> str:
    timings, tokens = answer.timings, answer.usage.completion_tokens
    text = f"{_count(tokens, 'token')} in {timings.total:.1f} s, the first after "
    text += f"{timings.first_token:.1f} s"
    if timings.per_token:
        text += f", then {1 / timings.per_token:.0f} tokens/s"
    return f"{text}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
