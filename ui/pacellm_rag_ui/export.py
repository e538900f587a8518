"""A conversation as a Markdown file, its citations as footnotes.

Knows what a turn looks like and how Markdown writes footnotes; not where conversations are kept.
The file is opened by programs that fetch pictures, so it is as inert as the page itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pacellm_rag_ui.safe_text import display_name, plain_markdown, safe_markdown

__all__ = ["ExportedTurn", "export_markdown"]


class ExportedTurn(Protocol):
    """One thing said, as the library keeps it."""

    @property
    def role(self) -> str:
        """Who said it: "user" or "assistant"."""

    @property
    def text(self) -> str:
        """What was said."""

    @property
    def citations(self) -> Sequence[Mapping[str, Any]]:
        """Of an answer: mappings with title, page, label, quote and verified."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What else is known of an answer; "answered_by" names the model where it was chosen."""

    @property
    def time(self) -> float:
        """When, in seconds since 1970."""


def export_markdown(title: str, turns: Sequence[ExportedTurn]) -> str:
    """A conversation as Markdown: each question under a heading, citations as footnotes.

    Args:
        title: of the conversation.
        turns: what was said, in order.
    """
    parts = [f"# {_line(display_name(title, 200) if title.strip() else 'Conversation')}"]
    notes: list[str] = []
    known: dict[str, int] = {}
    for turn in turns:
        if turn.role == "user":
            asked = plain_markdown(turn.text) or "(no words)"
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(turn.time))
            parts.append(f"## Question, {when}" if turn.time else "## Question")
            parts.append("\n".join(f"> {line}".rstrip() for line in asked.split("\n")))
            continue
        numbers = []
        for citation in turn.citations:
            note = _note(citation)
            if note not in known:
                known[note] = len(known) + 1
                notes.append(f"[^{known[note]}]: {note}")
            numbers.append(f"[^{known[note]}]")
        # What looks like a footnote in the answer must not point at one of ours.
        answer = safe_markdown(turn.text).replace("[^", "\\[^") or "(no words)"
        # In a paragraph of their own where the answer ends in a table, a list or code.
        last = answer.rsplit("\n", 1)[-1]
        glue = " " if last[:1].isalpha() and "|" not in last else "\n\n"
        parts.append(answer + (glue + " ".join(dict.fromkeys(numbers)) if numbers else ""))
        by = str(turn.details.get("answered_by") or "")
        parts += [f"*Answered by {_line(display_name(by, 80))}.*"] if by else []
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _note(citation: Mapping[str, Any]) -> str:
    """What a footnote says: "Report, p. iv (page 6 of the file): “words”"."""
    page, label = citation.get("page"), str(citation.get("label") or "")
    place = f"p. {page}"
    if label and label != str(page):
        place = f"p. {_line(label)} (page {page} of the file)"
    note = f"{_line(display_name(str(citation.get('title') or ''), 200))}, {place}"
    words = _line(str(citation.get("quote") or ""))
    if words:
        note += f": “{words}”"
        if citation.get("verified") is not True:
            note += " (these words were not found on the page)"
    return note


def _line(text: str) -> str:
    return plain_markdown(" ".join(text.split()))
