"""The same question put to every chosen document on its own, side by side, and as a file.

Knows the backend and answers; nothing of it becomes part of a conversation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Literal

from pacellm_rag_ui.answer_run import AnswerRun
from pacellm_rag_ui.asking import checked_question
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.chosen_documents import open_document
from pacellm_rag_ui.job import told
from pacellm_rag_ui.library import StoredDocument
from pacellm_rag_ui.meter import check_room
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.safe_text import display_name, plain_markdown
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.side_by_side import SideBySide
from pacellm_rag_ui.views import AskView, CitationView, EveryRow, EveryView

__all__ = ["ask_every", "export_every"]


def ask_every(backend: Backend, session: Session, question: str) -> Iterator[EveryView]:
    """Puts a question to every chosen document."""
    session.refuse_if_busy()
    try:
        question = checked_question(question, backend.settings.question_characters)
        chosen, name = backend.chosen(session), session.model
    except Exception as error:
        yield EveryView(question, (), "failed", "Not sent", told(error))
        return

    def steps_of(stored: StoredDocument) -> Callable[[AnswerRun], None]:
        def steps(run: AnswerRun) -> None:
            model, options = backend.models.get(name), session.options
            reading = Reading(model, [open_document(backend.library, stored)])
            check_room(reading, question, options)
            run.answer(reading, question, options)

        return steps

    at_once = backend.settings.documents_at_once
    by = backend.told_model(name)
    answers = SideBySide([steps_of(each) for each in chosen], at_once)

    def look() -> EveryView:
        looks = answers.looks()
        rows = tuple(
            EveryRow(each.id, each.title, answer)
            for each, answer in zip(chosen, looks, strict=True)
        )
        done = sum(answer.final for answer in looks)
        if answers.stopped:
            return EveryView(question, rows, "stopped", "Stopped", model=by)
        status = f"{done} of {len(rows)} documents answered"
        state: Literal["working", "done"] = "done" if done == len(rows) else "working"
        return EveryView(question, rows, state, status, model=by)

    job = backend.job(session, answers.work, look, answers.stop)
    answers.touch_by(job.touch)
    with session.answering(job):
        yield from job.views()


def export_every(view: EveryView, form: Literal["csv", "markdown"]) -> str:
    """The table as the text of a file."""
    return _as_csv(view) if form == "csv" else _as_markdown(view)


def _as_csv(view: EveryView) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    by = (["Model"], [_cell(view.model)]) if view.model else ([], [])
    writer.writerow(["Document", "Answer", "Pages", "Quotes", "State", *by[0]])
    for row in view.rows:
        answer = row.answer
        writer.writerow(
            [
                _cell(each)
                for each in (
                    row.title,
                    answer.plain or answer.error,
                    ", ".join(f"p. {c.label}" for c in answer.citations),
                    " | ".join(_quoted(c) for c in answer.citations),
                    answer.state,
                )
            ]
            + by[1]
        )
    return text.getvalue()


def _cell(text: str) -> str:
    """A cell that a spreadsheet takes for text: what comes from documents must not be a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _as_markdown(view: EveryView) -> str:
    lines = [f"# {_line(view.question)}", ""]
    lines += [f"Answered by {_line(view.model)}.", ""] if view.model else []
    for row in view.rows:
        lines += [f"## {_line(display_name(row.title, 200))}", "", _answer_text(row.answer), ""]
        lines += [f"* p. {_line(c.label)}: {_line(_quoted(c))}" for c in row.answer.citations]
        lines += [""] if row.answer.citations else []
    return "\n".join(lines)


def _answer_text(answer: AskView) -> str:
    if answer.error:
        return f"*{_line(answer.error)}*"
    if answer.state == "stopped":
        return f"{answer.text}\n\n*Stopped.*".strip()
    return answer.text


def _quoted(citation: CitationView) -> str:
    words = " ".join(citation.quote.split())
    return f"“{words}”" if citation.verified else f"“{words}” (not found on the page)"


def _line(text: str) -> str:
    """A text of somebody else's as one line of Markdown that is only text."""
    return plain_markdown(" ".join(text.split()))
