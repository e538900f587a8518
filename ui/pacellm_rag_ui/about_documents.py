"""A document's summary and questions to begin with: made when somebody asks for them, never stored.

Knows the backend and answers. The document is cut to the pages kept, as for questions; what was
read for one is known to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from pacellm_rag_ui.answer_run import AnswerRun
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.meter import check_room
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import AskView, SuggestionsView

__all__ = ["QUESTIONS_REQUEST", "SUMMARY_REQUEST", "suggest_questions", "summary"]

SUMMARY_REQUEST = (
    "Summarise this document for somebody who has not read it, in three to five sentences. Say "
    "what it is, and its most important facts. Name the marker of the page after each sentence."
)
QUESTIONS_REQUEST = (
    "Write four short questions that this document answers and that a reader would want to ask. "
    "Write one question a line, and nothing else."
)
_NONE = "The model wrote no questions. Ask one of your own."
_MOST_QUESTIONS = 4
_LONGEST_QUESTION = 300
_NUMBER = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*")


def summary(backend: Backend, session: Session, document_id: str) -> Iterator[AskView]:
    """A short summary of a document."""
    return _told(backend, session, document_id, SUMMARY_REQUEST)


def suggest_questions(
    backend: Backend, session: Session, document_id: str
) -> Iterator[SuggestionsView]:
    """Questions that a document answers."""
    for view in _told(backend, session, document_id, QUESTIONS_REQUEST):
        questions = _questions_in(view.plain) if view.state == "done" else ()
        if view.state == "done" and not questions:
            yield SuggestionsView(replace(view, state="failed", status="Failed", error=_NONE))
        else:
            yield SuggestionsView(view, questions)


def _told(backend: Backend, session: Session, document_id: str, request: str) -> Iterator[AskView]:
    def steps(run: AnswerRun) -> None:
        stored = backend.library.document(session.owner, document_id)
        reading = backend.reading(session, [stored], backend.model(session), keep=False)
        check_room(reading, request, session.options)
        run.tell(reading, request, session.options)

    run = AnswerRun()
    job = backend.job(session, lambda: run.perform(steps), run.look, run.stop)
    run.touched = job.touch
    with session.answering(job):
        yield from job.views()


def _questions_in(text: str) -> tuple[str, ...]:
    """The questions that a model wrote one a line, with or without numbers before them."""
    lines = (" ".join(_NUMBER.sub("", line).split()) for line in text.splitlines())
    found = [line for line in lines if line.endswith("?") and len(line) <= _LONGEST_QUESTION]
    return tuple(dict.fromkeys(found))[:_MOST_QUESTIONS]
