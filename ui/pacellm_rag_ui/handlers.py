"""What a page can do, in one place and without Gradio.

`Handlers` binds the library, the model and the open pages together; the work itself is in
`uploads`, `measuring`, `asking`, `every_document`, `about_documents`, `comparing` and
`memory_view`. Generators yield views (`views`) at most ten times a second, and the last one is
final. They tell errors in their views, but for a `BusyError`: the page is at work already, and
nothing is to be drawn over its views. The other methods raise errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pacellm_rag.protocols import GenerationOptions, TextModel
from pacellm_rag_ui import (
    about_documents,
    asking,
    comparing,
    every_document,
    measuring,
    memory_view,
    uploads,
    watching,
)
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.export import export_markdown
from pacellm_rag_ui.library import (
    Library,
    StorageError,
    StoredConversation,
    StoredDocument,
    StoredTurn,
)
from pacellm_rag_ui.offered_models import OfferedModel, OfferedModels
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import (
    AskView,
    CompareView,
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
        model: gives the model; called when it is first needed, and then every time. Several to
            choose from are `OfferedModels`.
        settings: limits and defaults.

    Every method takes the page's `Session`, from `session`. Methods that return no generator raise
    `PaceLLMError`s, with a message to show, also for ids that the owner does not have; those of
    others and unknown ones are told apart nowhere.
    """

    def __init__(
        self,
        library: Library,
        model: Callable[[], TextModel] | OfferedModels,
        settings: PageSettings | None = None,
    ) -> None:
        self.library = library
        self.settings = settings or PageSettings()
        if not isinstance(model, OfferedModels):
            model = OfferedModels([OfferedModel("model", model, self.settings.plain_model)])
        self.models = model
        self._backend = Backend(library, model, self.settings)

    # pages

    def session(self, owner: str, page: str) -> Session:
        """The session of an open page, made when it is first asked for.

        It begins in the owner's newest conversation, so that a reload keeps the chat.

        Args:
            owner: who it belongs to.
            page: Gradio's session hash, or anything else that names the open page.
        """
        with suppress(StorageError):  # a disk that is full must not close the page
            self.library.note_use(owner)
        return self._backend.sessions.get(owner, page)

    def leave(self, owner: str, page: str) -> None:
        """The page was closed: stops its work and frees it. Safe to repeat."""
        self._backend.sessions.leave(owner, page)

    def close(self) -> None:
        """Stops all work of all pages, at the end of the server."""
        self._backend.sessions.close()
        if self._backend.forgetting is not None:
            self._backend.forgetting.close()

    @property
    def open_pages(self) -> int:
        """How many pages are open."""
        return len(self._backend.sessions)

    def set_options(
        self,
        session: Session,
        *,
        answer_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> GenerationOptions:
        """Sets how the page's next answers are decoded.

        Args:
            session: the page.
            answer_tokens: most tokens of an answer; None leaves it.
            temperature: 0 for the likeliest words; None leaves it.
            seed: of the sampler; None draws one each time.

        Raises:
            ConfigurationError: a value is out of range; nothing is changed.
        """
        now = session.options
        session.options = replace(
            now,
            max_new_tokens=now.max_new_tokens if answer_tokens is None else answer_tokens,
            temperature=now.temperature if temperature is None else temperature,
            seed=seed,
        )
        return session.options

    def choose_model(self, session: Session, name: str) -> None:
        """Chooses the model of the page's next questions; it is loaded in the background.

        An answer that is on its way goes on with the model that it began with.

        Raises:
            ConfigurationError: no such model is offered; nothing is changed.
        """
        session.model = self.models[name].name
        if not session.busy:
            session.forget_documents()  # they were read by the other model
        self.models.begin(name)

    # documents

    def add_files(
        self, session: Session, files: Sequence[tuple[str, Path]], password: str = ""
    ) -> Iterator[FileReport]:
        """Takes uploads (name, where it lies) in; each ends with "ready", "refused" or "locked".

        The files are moved out of their place before the first is parsed. One that is "locked"
        needs a password: send it again with `password`, of which nothing is kept.
        """
        return uploads.add_files(self._backend, session, files, password)

    def documents(self, session: Session) -> list[StoredDocument]:
        """The owner's documents in their order."""
        return self.library.documents(session.owner)

    def choose(self, session: Session, document_id: str, chosen: bool) -> StoredDocument:
        """Ticks or unticks a document."""
        return self.library.update_document(session.owner, document_id, chosen=chosen)

    def keep_pages(
        self, session: Session, document_id: str, page_range: tuple[int, int] | None
    ) -> StoredDocument:
        """Keeps the first to the last page of a document, by physical number; None keeps all.

        Raises:
            LibraryError: there are no such pages.
        """
        return self.library.update_document(session.owner, document_id, page_range=page_range)

    def move(self, session: Session, document_id: str, by: Literal[-1, 1]) -> StoredDocument:
        """Moves a document up (-1) or down (1)."""
        place = self.library.document(session.owner, document_id).position + by
        return self.library.update_document(session.owner, document_id, position=max(place, 0))

    def remove(self, session: Session, document_id: str) -> None:
        """Deletes a document, its file and what was read of it for good.

        Answers that are on their way on the owner's pages are stopped: they may be reading it.
        """
        self.library.document(session.owner, document_id)
        for page in self._backend.sessions.of_owner(session.owner):
            page.stop_answer()
            reading = page.reading
            if reading is not None and document_id in (each for each, _ in reading.key):
                page.forget_documents()
        self.library.remove_document(session.owner, document_id)

    def meter(self, session: Session, question: str = "") -> Meter:
        """What the next question takes of the window, and what to leave out if it is too much."""
        return measuring.measure(self._backend, session, question)

    # answers

    def ask(self, session: Session, question: str) -> Iterator[AskView]:
        """Answers a question from the chosen documents, in the page's conversation."""
        return asking.ask(self._backend, session, question)

    def retry(
        self, session: Session, turn_id: str, question: str | None = None
    ) -> Iterator[AskView]:
        """Answers a turn again; with `question`, that in place of the old one.

        The turn (the question's, or its answer's) and all that follow are taken back, unless the
        question is refused before it is sent.
        """
        return asking.retry(self._backend, session, turn_id, question)

    def stop(self, session: Session) -> bool:
        """Stops what the page is doing; tells whether there was anything.

        The answer is stopped if there is one on its way, else the files that are being read.
        """
        return session.stop()

    def ask_every(self, session: Session, question: str) -> Iterator[EveryView]:
        """Puts a question to every chosen document on its own. Not part of the conversation."""
        return every_document.ask_every(self._backend, session, question)

    def export_every(self, view: EveryView, form: Literal["csv", "markdown"]) -> str:
        """The table as the text of a file."""
        return every_document.export_every(view, form)

    def suggest_questions(self, session: Session, document_id: str) -> Iterator[SuggestionsView]:
        """A few questions that a document answers."""
        return about_documents.suggest_questions(self._backend, session, document_id)

    def summary(self, session: Session, document_id: str) -> Iterator[AskView]:
        """A short summary of a document, with citations. Not part of the conversation."""
        return about_documents.summary(self._backend, session, document_id)

    def compare(self, session: Session, question: str) -> Iterator[CompareView]:
        """The same question with PaceLLM and without. Not part of the conversation."""
        return comparing.compare(self._backend, session, question)

    def memory(self, session: Session) -> MemoryView:
        """What PaceLLM's memory, and the experts, did for the page's documents."""
        return memory_view.memory_of(self._backend, session)

    def watch_pages(self, session: Session) -> Iterator[AskView]:
        """Watches the model go through the chosen documents; `memory` then tells more of them."""
        return watching.watch_pages(self._backend, session)

    # conversations

    def history(self, session: Session) -> list[StoredTurn]:
        """The turns of the page's conversation, their texts as they were said.

        Show those of answers through `safe_text.safe_markdown`, those of questions through
        `safe_text.plain_markdown`. An answer's `details` may hold "error" and "note"; its
        "finish_reason" is "stopped" where it was.
        """
        return self._backend.turns(session)

    def conversations(self, session: Session) -> list[StoredConversation]:
        """The owner's conversations, the newest first."""
        return self.library.conversations(session.owner)

    def new_chat(self, session: Session) -> None:
        """Begins a conversation; it is stored with its first question.

        Raises:
            BusyError: an answer is on its way.
        """
        session.refuse_if_busy()
        session.conversation_id = None

    def open_conversation(self, session: Session, conversation_id: str) -> list[StoredTurn]:
        """Goes on with an earlier conversation, and ticks the documents that it was about.

        Raises:
            BusyError: an answer is on its way.
        """
        session.refuse_if_busy()
        conversation, turns = self.library.conversation(session.owner, conversation_id)
        about = set(conversation.document_ids)
        for document in self.library.documents(session.owner) if about else ():
            if document.chosen != (document.id in about):
                self.choose(session, document.id, document.id in about)
        session.conversation_id = conversation_id
        return turns

    def rename_conversation(
        self, session: Session, conversation_id: str, title: str
    ) -> StoredConversation:
        """Gives a conversation another title."""
        return self.library.rename(session.owner, conversation_id, title)

    def delete_conversation(self, session: Session, conversation_id: str) -> None:
        """Deletes a conversation for good; an answer that is on its way in it here is stopped."""
        if session.conversation_id == conversation_id:
            session.stop_answer()
        self.library.delete_conversation(session.owner, conversation_id)
        for other in self._backend.sessions.of_owner(session.owner):
            if other.conversation_id == conversation_id:
                other.conversation_id = None

    def delete_everything(self, session: Session) -> None:
        """Deletes all documents and conversations of the owner for good; stops what uses them."""
        pages = self._backend.sessions.of_owner(session.owner)
        for page in pages:
            page.stop_all()
        self.library.delete_owner(session.owner)
        for page in pages:
            page.conversation_id = None
            page.forget_documents()

    def export_conversation(self, session: Session) -> str:
        """The page's conversation as Markdown, with citations as footnotes."""
        if session.conversation_id is None:
            return export_markdown("", [])
        conversation, turns = self.library.conversation(session.owner, session.conversation_id)
        return export_markdown(conversation.title, turns)
