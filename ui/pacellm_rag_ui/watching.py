"""Watching the model go through the documents page by page: what its banks and experts do there.

A reading of its own, made when somebody asks for it; what was seen stays with the page's documents
for `memory_view` to show. Knows the backend and work on its way; knows nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from pacellm_rag.errors import ModelError
from pacellm_rag.models.inspection import Inspectable
from pacellm_rag_ui.answer_run import AnswerRun
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import AskView

__all__ = ["watch_pages"]

_CAN_NOT = "The model of this server can not be watched page by page."


def watch_pages(backend: Backend, session: Session) -> Iterator[AskView]:
    """Watches the model go through the chosen documents; reads them first if need be."""

    def steps(run: AnswerRun) -> None:
        model = backend.model(session)
        if not isinstance(model, Inspectable):
            raise ModelError(_CAN_NOT)
        reading = backend.reading(session, backend.chosen(session), model)
        reading.reader.read(
            progress=run.progress_of(reading), cancel=run.cancel, options=session.options
        )
        state = reading.reader.state
        if state is None:  # let go meanwhile, as the page was closed
            run.check()
            raise ModelError("What was read has been let go. Try again.")
        read = len(state.token_ids)
        ranges = [(min(start, read), min(end, read)) for start, end in reading.page_ranges()]
        progress = run.progress_of(reading, "Watching")
        reading.seen = model.inspect(state, ranges, progress=progress, cancel=run.cancel)
        run.finish()

    run = AnswerRun()
    job = backend.job(session, lambda: run.perform(steps), run.look, run.stop)
    run.touched = job.touch
    with session.answering(job):
        yield from job.views()
