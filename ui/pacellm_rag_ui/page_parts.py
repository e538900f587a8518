"""What all events of the page share: who asks, and the parts of the page that are drawn together.

Knows Gradio's request; no components.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from pacellm_rag.errors import PaceLLMError
from pacellm_rag_ui.chat_view import history_html
from pacellm_rag_ui.document_view import conversations_html, documents_html, meter_html
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.incoming import Incoming
from pacellm_rag_ui.markup import notice
from pacellm_rag_ui.session import Session

__all__ = ["PageParts", "text_of", "warn"]


@dataclass(frozen=True)
class PageParts:
    """What the page's events work with.

    Attributes:
        handlers: what a page can do.
        incoming: files on their way.
        max_file_bytes: shown at the drop zone.
        logged_in: whether people log in, and so can log out.
        welcome: called with the owner whenever a page is opened.
    """

    handlers: Handlers
    incoming: Incoming
    max_file_bytes: int
    logged_in: bool
    welcome: Callable[[str], None]

    def session(self, request: gr.Request) -> Session:
        """The session of the page that asks.

        Raises:
            LookupError: the request has not come through the gate.
        """
        owner, page = request.username, request.session_hash
        if not owner or not page:
            raise LookupError("This request belongs to nobody.")
        return self.handlers.session(owner, page)

    def draw_history(self, session: Session) -> str:
        """The conversation."""
        documents = self.handlers.documents(session)
        chosen = sum(document.chosen for document in documents)
        return history_html(self.handlers.history(session), len(documents), chosen)

    def draw_documents(self, session: Session, question: str = "") -> tuple[str, str]:
        """The list of documents and the meter, which loads the model if need be."""
        documents = self.handlers.documents(session)
        if not documents:
            return documents_html(documents, None), ""
        try:
            meter = self.handlers.meter(session, question)
        except PaceLLMError as error:
            return documents_html(documents, None), notice(str(error), "error")
        return documents_html(documents, meter), meter_html(meter)

    def draw_conversations(self, session: Session) -> str:
        """The list of conversations."""
        found = self.handlers.conversations(session)
        return conversations_html(found, session.conversation_id)


def warn(error: PaceLLMError) -> None:
    """Shows an error at the corner of the page for a while."""
    gr.Warning(html.escape(str(error)), duration=8)


def text_of(event: gr.EventData, name: str) -> str:
    """A value that the page's script sent with an event; "" where it sent something else."""
    data = event._data if isinstance(event._data, dict) else {}
    value = data.get(name, "")
    return value if isinstance(value, str) else ""
