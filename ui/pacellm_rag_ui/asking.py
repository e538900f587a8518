"""A question in a conversation: checked, stored, answered, the answer stored.

Nothing is stored of a question that is refused before it is sent. What was said until an answer was
stopped, or failed, is stored as well. Knows sessions, the library and answers; knows nothing of how
views are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.answer_run import AnswerRun, Ended
from pacellm_rag_ui.backend import Backend, documents_read, messages_of
from pacellm_rag_ui.library import NotFoundError, StoredTurn
from pacellm_rag_ui.meter import check_room
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import AskView

__all__ = ["ask", "checked_question", "retry"]

_TITLE_CHARACTERS = 80


def checked_question(question: str, most_characters: int) -> str:
    """A question without blanks around it.

    Raises:
        ConfigurationError: it is empty or too long.
    """
    question = question.strip()
    if not question:
        raise ConfigurationError("The question is empty; ask something.")
    if len(question) > most_characters:
        raise ConfigurationError(
            f"The question has {len(question):,} characters; {most_characters:,} may be. Shorten "
            "it, or add the text as a document."
        )
    return question


def ask(backend: Backend, session: Session, question: str) -> Iterator[AskView]:
    """Answers a question in the page's conversation."""
    return _views(backend, session, _Asking(backend, session, question))


def retry(
    backend: Backend, session: Session, turn_id: str, question: str | None
) -> Iterator[AskView]:
    """Answers a turn of the page's conversation again, in place of it and all that follow."""
    return _views(backend, session, _Asking(backend, session, question, turn_id))


def _views(backend: Backend, session: Session, asking: _Asking) -> Iterator[AskView]:
    job = backend.job(session, asking.work, asking.run.look, asking.run.stop)
    asking.run.touched = job.touch
    with ExitStack() as held:
        held.enter_context(session.answering(job))
        if session.conversation_id is not None:
            held.enter_context(backend.sessions.conversation(session.conversation_id))
        yield from job.views()


class _Asking:
    """One question on its way into a conversation.

    Args:
        backend: what all handlers share.
        session: the page.
        question: what is asked; None asks again what `turn_id` asked.
        turn_id: what to answer again; "" for a new question.
    """

    def __init__(
        self, backend: Backend, session: Session, question: str | None, turn_id: str = ""
    ) -> None:
        self._backend = backend
        self._session = session
        self._question = question
        self._turn_id = turn_id
        self._conversation_id = ""
        self._details: dict[str, Any] = {}
        self.run = AnswerRun(self._ended)

    def work(self) -> None:
        """From the question to the answer."""
        self.run.perform(self._steps)

    def _steps(self, run: AnswerRun) -> None:
        backend, session = self._backend, self._session
        turns = backend.turns(session)
        if self._turn_id:
            kept, asked = _before(turns, self._turn_id)
            question = asked.text if self._question is None else self._question
        else:
            kept, asked, question = turns, None, self._question or ""
        question = checked_question(question, backend.settings.question_characters)
        chosen = backend.chosen(session)
        name = session.model
        if not backend.models.is_loaded(name):
            run.show(replace(run.look(), status="Loading the model"))
        model = backend.models.get(name)
        run.check()
        reading = backend.reading(session, chosen, model)
        history = messages_of(kept, reading.key)
        options = session.options
        check_room(reading, question, options, history)
        self._details = {"documents": documents_read(reading.key), "model": model.name}
        self._details["answered_by"] = backend.told_model(name)
        run.unless_over(lambda: self._store(question, asked, reading))
        run.answer(reading, question, options, history)

    def _store(self, question: str, asked: StoredTurn | None, reading: Reading) -> None:
        library, session = self._backend.library, self._session
        owner, documents = session.owner, [each.stored.id for each in reading.chosen]
        if session.conversation_id is None:
            title = _title_of(question)
            made = library.create_conversation(owner, title=title, document_ids=documents)
            session.conversation_id = made.id
        else:
            library.set_conversation_documents(owner, session.conversation_id, documents)
        if asked is not None:
            library.truncate_conversation(owner, session.conversation_id, asked.id)
        turn = library.add_turn(owner, session.conversation_id, "user", question)
        self._conversation_id = session.conversation_id  # from now on there is one to answer
        self.run.show(replace(self.run.look(), question_id=turn.id))

    def _ended(self, ended: Ended) -> AskView:
        """Stores the answer, or as much as there is of one."""
        view = ended.view
        if not self._conversation_id:  # refused
            return replace(view, status="Not sent") if view.state == "failed" else view
        turn = self._backend.library.add_turn(
            self._session.owner,
            self._conversation_id,
            "assistant",
            view.plain,
            citations=[citation.as_dict() for citation in view.citations],
            details=self._details | _details_of(ended),
        )
        return replace(view, answer_id=turn.id)


def _details_of(ended: Ended) -> dict[str, Any]:
    view, answer = ended.view, ended.answer
    details: dict[str, Any] = {"words": ended.words, "note": view.note}
    if view.state == "failed":
        details["error"] = view.error
    if answer is None:
        return details | {"finish_reason": view.state}
    return details | {
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "timings": asdict(answer.timings),
    }


def _before(turns: Sequence[StoredTurn], turn_id: str) -> tuple[list[StoredTurn], StoredTurn]:
    """The turns before a question, and that; the turn may be its answer's.

    Raises:
        NotFoundError: there is no such question in the conversation.
    """
    at = next((i for i, turn in enumerate(turns) if turn.id == turn_id), -1)
    while at >= 0 and turns[at].role != "user":
        at -= 1
    if at < 0:
        raise NotFoundError("There is no such turn in this conversation. Reload the page.")
    return list(turns[:at]), turns[at]


def _title_of(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _TITLE_CHARACTERS else f"{line[: _TITLE_CHARACTERS - 1]}…"
