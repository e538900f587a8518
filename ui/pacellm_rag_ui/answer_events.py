"""Events that make the model work: asking, asking again, every document, comparing, summaries.

Generators draw the handlers' views as they come. Stopping is an event of its own, outside the
queue: Gradio's `cancels` would only give up waiting, while the model went on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import gradio as gr

from pacellm_rag.errors import PaceLLMError
from pacellm_rag_ui.chat_view import aside_html, live_html, status_html, suggestions_html
from pacellm_rag_ui.layout import Layout
from pacellm_rag_ui.memory_panel import memory_html, watch_html
from pacellm_rag_ui.page_parts import PageParts, text_of, warn
from pacellm_rag_ui.panel_view import compare_html, every_html
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.session import BusyError, Session
from pacellm_rag_ui.views import AskView, EveryView

__all__ = ["AnswerEvents"]

# Any number at once: the engine behind the model makes them wait, and they say so. Also of one
# page: with Gradio's "once", a question that is sent between the end of an answer and the end of
# its event is dropped without a word. Whether a page is at work is known here, by its session.
_WORK: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}

View = TypeVar("View")


class AnswerEvents:
    """Wires everything that the model answers.

    Args:
        parts: what the events work with.
        layout: the components.
    """

    def __init__(self, parts: PageParts, layout: Layout) -> None:
        self._parts = parts
        self._handlers = parts.handlers
        self._layout = layout

    def wire(self) -> None:
        """Binds the events; called while the Blocks is open."""
        at = self._layout
        chat = [at.question, at.history, at.live, at.status, at.send, at.stop]
        chat += [at.conversations, at.documents, at.meter]
        gr.on([at.send.click, at.question.submit], self.ask, at.question, chat, **_WORK)
        at.bridge.retry(self.retry, None, chat, **_WORK)
        about = [at.aside, at.send, at.stop]
        at.bridge.about(self.about, None, about, **_WORK)
        every = [at.every, at.every_view, at.every_send, at.every_stop]
        every += [at.every_csv, at.every_markdown]
        gr.on(
            [at.every_send.click, at.every_question.submit],
            self.every,
            at.every_question,
            every,
            **_WORK,
        )
        for button, form, name in (
            (at.every_csv, "csv", "answers.csv"),
            (at.every_markdown, "markdown", "answers.md"),
        ):
            gr.on(
                [button.click],
                self.export_csv if form == "csv" else self.export_markdown,
                at.every_view,
                at.exported,
                **_WORK,
            ).then(None, at.exported, None, js=f"(text) => window.pacellm.save('{name}', text)")
        gr.on(
            [at.compare_send.click, at.compare_question.submit],
            self.compare,
            at.compare_question,
            [at.compare, at.compare_send, at.compare_stop],
            **_WORK,
        )
        at.memory_tab.select(self.memory, None, [at.memory, at.watch_send], **_WORK)
        at.watch_send.click(
            self.watch_pages, None, [at.memory, at.watch, at.watch_send, at.watch_stop], **_WORK
        )
        gr.on(
            [at.stop.click, at.every_stop.click, at.compare_stop.click, at.watch_stop.click],
            self.stop,
            None,
            None,
            show_progress="hidden",
            api_visibility="private",
            queue=False,
        )

    def ask(self, question: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answers a question in the conversation."""
        if not (question or "").strip():
            yield _unchanged(9)
            return
        session = self._parts.session(request)
        yield from self._answer(session, self._handlers.ask(session, question), question)

    def retry(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answers a turn again, with another question where it was edited."""
        session = self._parts.session(request)
        question = text_of(event, "question") or None
        views = self._handlers.retry(session, text_of(event, "turn"), question)
        yield from self._answer(session, views, "", kept=gr.skip())

    def _answer(
        self, session: Session, views: Iterator[AskView], question: str, kept: Any = ""
    ) -> Iterator[tuple[Any, ...]]:
        skip = gr.skip()
        view: AskView | None = None
        pending, asked = question, ""
        for view in _unless_busy(views):
            history: Any = skip
            if view.question_id != asked and not view.final:  # stored: the history has it now
                asked, pending = view.question_id, ""
                history = self._parts.draw_history(session)
            live = live_html(view, pending)
            yield (kept, history, live, status_html(view), *_buttons(True), skip, skip, skip)
            kept = skip
        if view is None:
            yield _unchanged(9)
            return
        lost = view.state == "failed" and not view.question_id
        yield (
            question if lost and question else skip,
            self._parts.draw_history(session),
            "",
            status_html(view) if lost or view.state != "failed" else "",
            *_buttons(False),
            self._parts.draw_conversations(session),
            *self._parts.draw_documents(session),
        )

    def stop(self, request: gr.Request) -> None:
        """Stops what this page is doing."""
        self._handlers.stop(self._parts.session(request))

    def about(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """A summary of a document, questions to begin with, or their card closed."""
        session, kind = self._parts.session(request), text_of(event, "kind")
        if kind not in ("summary", "questions"):
            yield "", gr.skip(), gr.skip()
            return
        documents = {d.id: d for d in self._handlers.documents(session)}
        one = text_of(event, "id") or next((i for i, d in documents.items() if d.chosen), "")
        drawn: str | None = None
        for drawn in self._draw_about(session, kind, one, documents):
            yield drawn, *_buttons(True)
        yield _unchanged(3) if drawn is None else (drawn, *_buttons(False))

    def _draw_about(
        self, session: Session, kind: str, one: str, documents: dict[str, Any]
    ) -> Iterator[str]:
        if kind == "questions":
            for suggested in _unless_busy(self._handlers.suggest_questions(session, one)):
                yield suggestions_html(suggested.answer, suggested.questions)
            return
        name = display_name(documents[one].name) if one in documents else "the document"
        title = f"Summary of {name}"
        for view in _unless_busy(self._handlers.summary(session, one)):
            yield aside_html(title, view)

    def every(self, question: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Puts a question to every document."""
        if not (question or "").strip():
            yield _unchanged(6)
            return
        session, skip = self._parts.session(request), gr.skip()
        hidden = gr.update(visible=False)
        view: EveryView | None = None
        for view in _unless_busy(self._handlers.ask_every(session, question)):
            yield (every_html(view), skip, *_buttons(True), hidden, hidden)
        if view is None:
            yield _unchanged(6)
            return
        export = gr.update(visible=bool(view.rows))
        yield (every_html(view), view, *_buttons(False), export, export)

    def export_csv(self, view: EveryView | None) -> str:
        """The table as CSV."""
        return self._handlers.export_every(view, "csv") if view is not None else ""

    def export_markdown(self, view: EveryView | None) -> str:
        """The table as Markdown."""
        return self._handlers.export_every(view, "markdown") if view is not None else ""

    def compare(self, question: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The same question with PaceLLM on and off."""
        if not (question or "").strip():
            yield _unchanged(3)
            return
        drawn: str | None = None
        for view in _unless_busy(self._handlers.compare(self._parts.session(request), question)):
            drawn = compare_html(view)
            yield drawn, *_buttons(True)
        yield _unchanged(3) if drawn is None else (drawn, *_buttons(False))

    def memory(self, request: gr.Request) -> tuple[Any, ...]:
        """What the memory banks hold and the experts do; whether more can be found out."""
        session = self._parts.session(request)
        try:
            view = self._handlers.memory(session)
        except PaceLLMError as error:
            warn(error)
            return "", gr.update(visible=False)
        return memory_html(view), gr.update(visible=view.watchable and not session.busy)

    def watch_pages(self, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Watches the model go through the documents page by page."""
        view: AskView | None = None
        for view in _unless_busy(self._handlers.watch_pages(self._parts.session(request))):
            yield gr.skip(), watch_html(view), *_buttons(True)
        if view is None:
            yield _unchanged(4)
            return
        drawn, _ = self.memory(request)
        yield drawn, watch_html(view), *_buttons(False)


def _unless_busy(views: Iterator[View]) -> Iterator[View]:
    """The views of some work; none, but a warning, where the page is at work already."""
    try:
        yield from views
    except BusyError as error:
        warn(error)


def _unchanged(outputs: int) -> tuple[Any, ...]:
    """Draws nothing anew; an event that yields nothing at all empties its outputs."""
    return (gr.skip(),) * outputs


def _buttons(working: bool) -> tuple[Any, Any]:
    """Ask and Stop: one of the two is there."""
    return gr.update(visible=not working), gr.update(visible=working)
