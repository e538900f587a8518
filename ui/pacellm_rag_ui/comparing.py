"""The same question with PaceLLM's memory banks and without, side by side.

Banks are part of a loaded model, so there is a second one without them, where the server has it.
Knows the backend and answers; nothing of it becomes part of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.answer_run import AnswerRun
from pacellm_rag_ui.asking import checked_question
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.job import told
from pacellm_rag_ui.memory_view import has_banks
from pacellm_rag_ui.meter import check_room
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.side_by_side import SideBySide
from pacellm_rag_ui.views import CompareView

__all__ = ["compare"]

_NO_BANKS = (
    "The model of this server runs without PaceLLM's memory banks, so there is nothing to compare. "
    "Start the server with --pace on."
)
_NO_PLAIN_MODEL = (
    "This server has no model without PaceLLM's memory banks beside the one with them, so there is "
    "nothing to compare with."
)


def compare(backend: Backend, session: Session, question: str) -> Iterator[CompareView]:
    """Answers a question twice, from the chosen documents."""
    session.refuse_if_busy()
    name = session.model
    plain = backend.models[name].plain
    try:
        question = checked_question(question, backend.settings.question_characters)
        chosen = backend.chosen(session)
        if backend.models.is_loaded(name) and not has_banks(backend.models.get(name)):
            yield CompareView(False, _NO_BANKS)
            return
    except Exception as error:
        yield CompareView(False, told(error))
        return
    if plain is None:
        yield CompareView(False, _NO_PLAIN_MODEL)
        return

    def steps_of(load: Callable[[], TextModel]) -> Callable[[AnswerRun], None]:
        def steps(run: AnswerRun) -> None:
            reading = backend.reading(session, chosen, load(), keep=False)
            check_room(reading, question, session.options)
            run.answer(reading, question, session.options)

        return steps

    def banked() -> TextModel:
        model = backend.models.get(name)
        if not has_banks(model):  # it has been loaded for this question
            raise ConfigurationError(_NO_BANKS)
        return model

    answers = SideBySide([steps_of(banked), steps_of(plain)], at_once=2)

    def look() -> CompareView:
        on, off = answers.looks()
        return CompareView(True, on=on, off=off)

    job = backend.job(session, answers.work, look, answers.stop)
    answers.touch_by(job.touch)
    with session.answering(job):
        yield from job.views()
