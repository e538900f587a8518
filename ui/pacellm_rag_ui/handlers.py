"""What a page can do, in one place and without Gradio.

`Handlers` binds the library, the model and the open pages together; the work itself is in
`uploads`, `meter`, `asking`, `every_document`, `about_documents`, `comparing` and `memory_view`.
Generators yield views (`views`) at most ten times a second, and the last one is final. Errors
raised on purpose come as views with a message; only programming errors are raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pacellm_rag.protocols import GenerationOptions, TextModel
from pacellm_rag_ui.library import Library, StoredConversation, StoredDocument, StoredTurn
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import (
    AskView,
    CompareView,
    EveryRow,
    EveryView,
    FileReport,
    MemoryView,
    Meter,
    SuggestionsView,
)

__all__ = ["Handlers"]


class Handlers:
    """What pages can do.

    Args:
        library: what is kept on the server.
        model: gives the model; called when it is first needed, and then every time.
        settings: limits and defaults.

    Every method takes the page's `Session`, from `session`. Methods that return no generator raise
    `PaceLLMError`s (with a message to show) for ids that the owner does not have; ids of others and
    unknown ones are told apart nowhere.
    """

    def __init__(
        self,
        library: Library,
        model: Callable[[], TextModel],
        settings: PageSettings | None = None,
    ) -> None:
        raise NotImplementedError

    # pages

    def session(self, owner: str, page: str) -> Session:
        """The session of an open page, made when it is first asked for.

        It begins in the owner's newest conversation, so that a reload keeps the chat.

        Args:
            owner: who it belongs to.
            page: Gradio's session hash, or anything else that names the open page.
        """
        raise NotImplementedError

    def leave(self, owner: str, page: str) -> None:
        """The page was closed: stops its work and frees it. Safe to repeat."""
        raise NotImplementedError

    def close(self) -> None:
        """Stops all work of all pages, at the end of the server."""
        raise NotImplementedError

    def set_options(
        self,
        session: Session,
        *,
        answer_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> GenerationOptions:
        """Sets how the page's next answers are decoded; None leaves a value (seed: draws one).

        Raises:
            ConfigurationError: a value is out of range; nothing is changed.
        """
        raise NotImplementedError

    # documents

    def add_files(
        self, session: Session, files: Sequence[tuple[str, Path]]
    ) -> Iterator[FileReport]:
        """Takes uploads (name, where it lies) in; every file ends with "ready" or "refused".

        The files are moved out of their place before the first is parsed.
        """
        raise NotImplementedError

    def documents(self, session: Session) -> list[StoredDocument]:
        """The owner's documents in their order."""
        raise NotImplementedError

    def choose(self, session: Session, document_id: str, chosen: bool) -> None:
        """Ticks or unticks a document."""
        raise NotImplementedError

    def keep_pages(
        self, session: Session, document_id: str, page_range: tuple[int, int] | None
    ) -> None:
        """Keeps the first to the last page of a document; None keeps all.

        Raises:
            ConfigurationError: there are no such pages.
        """
        raise NotImplementedError

    def move(self, session: Session, document_id: str, by: Literal[-1, 1]) -> None:
        """Moves a document up (-1) or down (1)."""
        raise NotImplementedError

    def remove(self, session: Session, document_id: str) -> None:
        """Deletes a document and its file for good."""
        raise NotImplementedError

    def meter(self, session: Session, question: str = "") -> Meter:
        """What the next question takes of the window, and what to leave out if it is too much."""
        raise NotImplementedError

    # answers

    def ask(self, session: Session, question: str) -> Iterator[AskView]:
        """Answers a question from the chosen documents, in the page's conversation."""
        raise NotImplementedError

    def retry(
        self, session: Session, turn_id: str, question: str | None = None
    ) -> Iterator[AskView]:
        """Answers a turn again; with `question`, that in place of the old one.

        The turn (the question's, or its answer's) and all that follow are taken back, unless the
        question is refused before it is sent.
        """
        raise NotImplementedError

    def stop(self, session: Session) -> bool:
        """Stops what the page is doing; tells whether there was anything."""
        raise NotImplementedError

    def ask_every(self, session: Session, question: str) -> Iterator[EveryView]:
        """Puts a question to every chosen document on its own. Not part of the conversation."""
        raise NotImplementedError

    def export_every(self, view: EveryView, form: Literal["csv", "markdown"]) -> str:
        """The table as a file's text."""
        raise NotImplementedError

    def suggest_questions(self, session: Session, document_id: str) -> Iterator[SuggestionsView]:
        """A few questions that a document can answer."""
        raise NotImplementedError

    def summary(self, session: Session, document_id: str) -> Iterator[AskView]:
        """A short summary of a document, with citations. Not part of the conversation."""
        raise NotImplementedError

    def compare(self, session: Session, question: str) -> Iterator[CompareView]:
        """The same question with PaceLLM and without, side by side."""
        raise NotImplementedError

    def memory(self, session: Session) -> MemoryView:
        """What PaceLLM's memory did while the page's last documents were read."""
        raise NotImplementedError

    # conversations

    def history(self, session: Session) -> list[StoredTurn]:
        """The turns of the page's conversation; `text` of answers is to go through
        `safe_text.safe_markdown`."""
        raise NotImplementedError

    def conversations(self, session: Session) -> list[StoredConversation]:
        """The owner's conversations, the newest first."""
        raise NotImplementedError

    def new_chat(self, session: Session) -> None:
        """Begins a conversation; it is stored with its first question."""
        raise NotImplementedError

    def open_conversation(self, session: Session, conversation_id: str) -> list[StoredTurn]:
        """Goes on with an earlier conversation, and ticks the documents it was about."""
        raise NotImplementedError

    def rename_conversation(self, session: Session, conversation_id: str, title: str) -> None:
        """Gives a conversation another title."""
        raise NotImplementedError

    def delete_conversation(self, session: Session, conversation_id: str) -> None:
        """Deletes a conversation for good."""
        raise NotImplementedError

    def delete_everything(self, session: Session) -> None:
        """Deletes all documents and conversations of the owner for good."""
        raise NotImplementedError

    def export_conversation(self, session: Session) -> str:
        """The page's conversation as Markdown, with citations as footnotes."""
        raise NotImplementedError
