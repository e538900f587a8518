"""The meter of a page: what its owner's documents hold and what the next question would take.

Knows the library and the plan of a question; what to leave out is `meter`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pacellm_rag.errors import PaceLLMError
from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.backend import Backend, messages_of
from pacellm_rag_ui.chosen_documents import open_document
from pacellm_rag_ui.job import told
from pacellm_rag_ui.library import StoredDocument
from pacellm_rag_ui.meter import advise, plan_fits
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import Meter, MeterDocument

__all__ = ["measure"]


def measure(backend: Backend, session: Session, question: str = "") -> Meter:
    """What the next question of a page takes; errors are told in the meter's message."""
    stored = backend.library.documents(session.owner)
    answer_tokens = session.options.max_new_tokens
    try:
        model = backend.model_soon(session)
    except Exception as error:
        # counted when it was added, by the model that was chosen then
        one = len(backend.models.names) == 1
        lines = _lines(stored, lambda document: document.tokens if one else None)
        return Meter(0, answer_tokens, lines, 0, 0, 0, fits=False, message=told(error))
    window = model.context_window
    room = window - answer_tokens
    try:
        chosen = backend.chosen(session)
        return _measured(backend, session, question, stored, chosen, model)
    except Exception as error:
        lines = _lines(stored, lambda document: _count(backend, document, model))
        return Meter(
            window, answer_tokens, lines, 0, answer_tokens, room, fits=False, message=told(error)
        )


def _measured(
    backend: Backend,
    session: Session,
    question: str,
    stored: Sequence[StoredDocument],
    chosen: Sequence[StoredDocument],
    model: TextModel,
) -> Meter:
    options = session.options
    reading = backend.reading(session, chosen, model)
    history = messages_of(backend.turns(session), reading.key)
    plan = reading.reader.plan(question, history=history, options=options)
    exact = {
        each.stored.id: counted.tokens
        for each, counted in zip(reading.chosen, plan.documents, strict=True)
    }

    def tokens_of(document: StoredDocument) -> int | None:
        return exact[document.id] if document.id in exact else _count(backend, document, model)

    fits = plan_fits(plan)
    advice = None if fits else advise(reading, plan, question, history, options)
    return Meter(
        window=plan.context_window,
        answer_tokens=plan.answer_tokens,
        documents=_lines(stored, tokens_of),
        other_tokens=plan.other_tokens,
        total=plan.needed_tokens,
        room=plan.left_tokens,
        fits=fits,
        advice=advice.text if advice else "",
        untick=advice.untick if advice else (),
        keep_pages=advice.keep_pages if advice else None,
        known_tokens=plan.cost.tokens_known if plan.cost else 0,
    )


def _count(backend: Backend, document: StoredDocument, model: TextModel) -> int | None:
    """Tokens of a document that is not part of the plan; None where it can not be opened."""
    tokenizer, pages = model.tokenizer, document.page_range
    known = backend.counts.known(tokenizer, document.content_id, pages)
    if known is not None:
        return known
    try:
        opened = open_document(backend.library, document)
    except PaceLLMError:
        return None
    return backend.counts.count(tokenizer, opened.document, pages)


def _lines(
    stored: Sequence[StoredDocument], tokens_of: Callable[[StoredDocument], int | None]
) -> tuple[MeterDocument, ...]:
    return tuple(
        MeterDocument(
            id=each.id,
            title=each.title,
            tokens=tokens_of(each),
            chosen=each.chosen,
            page_range=each.page_range,
            pages=each.pages,
        )
        for each in stored
    )
