"""Events of the left side: uploads, the list of documents, conversations, settings.

Each takes what the page's script or a component sent, asks the handlers and draws what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from pacellm_rag.errors import ConfigurationError, PaceLLMError
from pacellm_rag_ui.document_view import documents_html, models_html, reports_html
from pacellm_rag_ui.layout import Layout, top_html
from pacellm_rag_ui.markup import notice
from pacellm_rag_ui.page_parts import PageParts, text_of, warn
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import FileReport

__all__ = ["SideEvents"]

# Light work that nobody should wait for in a queue of its own.
_LIGHT: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}


class SideEvents:
    """Wires the left side.

    Args:
        parts: what the events work with.
        layout: the components.
    """

    def __init__(self, parts: PageParts, layout: Layout) -> None:
        self._parts = parts
        self._handlers = parts.handlers
        self._layout = layout

    def wire(self, blocks: gr.Blocks) -> None:
        """Binds the events; called while the Blocks is open."""
        at = self._layout
        settings = [at.answer_tokens, at.temperature, at.seed]
        chosen = [at.model_note, at.top, at.documents, at.meter]
        blocks.load(
            self.open,
            None,
            [at.documents, at.conversations, at.history, *settings],
            **_LIGHT,
        ).then(self.when_loaded, at.question, chosen, **_LIGHT)
        blocks.load(self.stay, None, None, **_LIGHT)
        blocks.unload(self.leave)
        at.question.blur(self.measure, at.question, [at.documents, at.meter], **_LIGHT)
        at.bridge.upload(
            self.upload, None, [at.reports, at.documents, at.meter, at.history], **_LIGHT
        )
        at.bridge.document(
            self.change_document, at.question, [at.documents, at.meter, at.history], **_LIGHT
        )
        at.bridge.conversation(
            self.change_conversation,
            None,
            [at.conversations, at.history, at.documents, at.meter, at.status, at.aside],
            **_LIGHT,
        )
        at.new_chat.click(
            self.new_chat, None, [at.conversations, at.history, at.status, at.aside], **_LIGHT
        )
        gr.on(
            [at.answer_tokens.blur, at.answer_tokens.submit, at.temperature.release, at.seed.blur],
            self.change_settings,
            settings,
            [at.settings_note, at.documents, at.meter],
            **_LIGHT,
        )
        at.model.input(self.choose_model, [at.model, at.question], chosen, **_LIGHT)
        at.settings.expand(self.draw_models, None, at.model_note, **_LIGHT)
        at.export.click(self.export, None, at.exported, **_LIGHT).then(
            None, at.exported, None, js="(text) => window.pacellm.save('conversation.md', text)"
        )

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """The page was opened or reloaded."""
        session = self._parts.session(request)
        try:
            self._parts.welcome(session.owner)
        except PaceLLMError as error:
            warn(error)
        options = session.options
        return (
            documents_html(self._handlers.documents(session), None),
            self._parts.draw_conversations(session),
            self._parts.draw_history(session),
            options.max_new_tokens,
            options.temperature,
            -1 if options.seed is None else options.seed,
        )

    async def stay(self, request: gr.Request) -> None:
        """Lasts as long as the page is open, so that its stream of events stays open too.

        Gradio's server ends the stream when no event is pending. A client that sends the next one
        before it has heard of that opens no other, and waits for news that nobody brings.
        """
        session = self._parts.session(request)
        while not session.left:
            await asyncio.sleep(1.0)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        if request.username and request.session_hash:
            self._handlers.leave(request.username, request.session_hash)

    async def choose_model(
        self, name: str, question: str, request: gr.Request
    ) -> AsyncIterator[tuple[str, ...]]:
        """Another model was chosen for the next questions."""
        try:
            self._handlers.choose_model(self._parts.session(request), name)
        except PaceLLMError as error:
            warn(error)
        async for drawn in self.when_loaded(question, request):
            yield drawn

    async def when_loaded(
        self, question: str, request: gr.Request
    ) -> AsyncIterator[tuple[str, ...]]:
        """What depends on the model, and once more when it has been loaded meanwhile."""
        session, models = self._parts.session(request), self._handlers.models
        name = session.model
        loaded = models.is_loaded(name)
        yield await run_in_threadpool(self._draw_chosen, question, request)
        while models.is_loading(name) and session.model == name and not session.left:
            await asyncio.sleep(0.2)
        if not loaded and session.model == name and not session.left:
            yield await run_in_threadpool(self._draw_chosen, question, request)

    def _draw_chosen(self, question: str, request: gr.Request) -> tuple[str, ...]:
        drawn = self.measure(question, request)
        name = self._parts.session(request).model
        return (self.draw_models(request), top_html(name, self._parts.logged_in), *drawn)

    def draw_models(self, request: gr.Request) -> str:
        """Which models are in memory, where there are several to choose from."""
        name, models = self._parts.session(request).model, self._handlers.models
        if len(models.names) == 1:
            return ""
        return models_html(
            name, models.loaded, loading=models.is_loading(name), failure=models.failure(name)
        )

    def measure(self, question: str, request: gr.Request) -> tuple[str, str]:
        """Documents and meter anew."""
        return self._parts.draw_documents(self._parts.session(request), question or "")

    def upload(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Takes the files in that the page's script has sent."""
        session = self._parts.session(request)
        data = event._data if isinstance(event._data, dict) else {}
        tokens = data.get("tokens")
        sent = [token for token in tokens if isinstance(token, str)] if tokens else []
        found = {token: self._parts.incoming.take(session.owner, token) for token in sent}
        taken = {token: file for token, file in found.items() if file is not None}
        names = list(taken)
        reports: dict[str, FileReport] = {}
        views = self._handlers.add_files(session, list(taken.values()), text_of(event, "password"))
        for report in views:
            reports[names[report.index]] = report
            documents: Any = gr.skip()
            if report.state == "ready":
                documents = documents_html(self._handlers.documents(session), None)
            yield reports_html(reports), documents, gr.skip(), gr.skip()
        yield (
            reports_html(reports),
            *self._parts.draw_documents(session),
            self._parts.draw_history(session),
        )

    def change_document(
        self, question: str, event: gr.EventData, request: gr.Request
    ) -> tuple[Any, ...]:
        """Something was done to a document in the list."""
        session = self._parts.session(request)
        try:
            self._change_document(session, event)
        except PaceLLMError as error:
            warn(error)
        drawn = self._parts.draw_documents(session, question or "")
        history = (
            gr.skip() if self._handlers.history(session) else self._parts.draw_history(session)
        )
        return (*drawn, history)

    def _change_document(self, session: Session, event: gr.EventData) -> None:
        handlers, kind, one = self._handlers, text_of(event, "kind"), text_of(event, "id")
        if kind == "choose":
            handlers.choose(session, one, bool(event._data.get("chosen")))
        elif kind == "untick":
            for each in one.split():
                handlers.choose(session, each, False)
        elif kind in ("up", "down"):
            handlers.move(session, one, -1 if kind == "up" else 1)
        elif kind == "remove":
            handlers.remove(session, one)
        elif kind == "pages":
            handlers.keep_pages(session, one, _page_range(text_of(event, "range")))

    def change_conversation(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """A conversation was opened, renamed or deleted; or everything was."""
        session = self._parts.session(request)
        handlers, kind, one = self._handlers, text_of(event, "kind"), text_of(event, "id")
        try:
            if kind == "open":
                handlers.open_conversation(session, one)
            elif kind == "rename":
                handlers.rename_conversation(session, one, text_of(event, "title"))
            elif kind == "delete":
                handlers.delete_conversation(session, one)
            elif kind == "everything":
                handlers.delete_everything(session)
        except PaceLLMError as error:
            warn(error)
        return (
            self._parts.draw_conversations(session),
            self._parts.draw_history(session),
            *self._parts.draw_documents(session),
            "",
            "",
        )

    def new_chat(self, request: gr.Request) -> tuple[str, str, str, str]:
        """Begins a conversation."""
        session = self._parts.session(request)
        try:
            self._handlers.new_chat(session)
        except PaceLLMError as error:
            warn(error)
        return self._parts.draw_conversations(session), self._parts.draw_history(session), "", ""

    def change_settings(
        self,
        answer_tokens: float | None,
        temperature: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> tuple[str, Any, Any]:
        """How the next answers are decoded."""
        session = self._parts.session(request)
        try:
            self._handlers.set_options(
                session,
                answer_tokens=None if answer_tokens is None else int(answer_tokens),
                temperature=temperature,
                seed=None if seed is None or seed < 0 else int(seed),
            )
        except PaceLLMError as error:
            return notice(str(error), "error"), gr.skip(), gr.skip()
        return "", *self._parts.draw_documents(session)

    def export(self, request: gr.Request) -> str:
        """The conversation as Markdown; the page's script saves it."""
        try:
            return self._handlers.export_conversation(self._parts.session(request))
        except PaceLLMError as error:
            warn(error)
            return ""


def _page_range(text: str) -> tuple[int, int] | None:
    """Such as "3-17"; None for "".

    Raises:
        ConfigurationError: it is something else.
    """
    if not text:
        return None
    first, _, last = text.partition("-")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ConfigurationError(f"{text[:40]!r} is no range of pages; write two page numbers.")
    return int(first), int(last)
