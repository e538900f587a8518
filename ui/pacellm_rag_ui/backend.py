"""What all handlers share: the library, the models, the settings, the open pages.

Also what several of them need: the documents of the next question bound to the model, and the
earlier turns as the model is to see them. Knows nothing of views.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.chosen_documents import DocumentKey, key_of, open_document
from pacellm_rag_ui.forgetting import Forgetting
from pacellm_rag_ui.job import Job
from pacellm_rag_ui.library import Library, NotFoundError, StoredDocument, StoredTurn
from pacellm_rag_ui.offered_models import OfferedModels
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import Session, Sessions
from pacellm_rag_ui.token_counts import TokenCounts

__all__ = ["Backend", "documents_read", "messages_of"]

View = TypeVar("View")

_NO_DOCUMENT = "There is no document yet. Add one to ask about."
_NONE_CHOSEN = "No document is ticked. Tick those that the question is about."


class Backend:
    """What all handlers share.

    Args:
        library: what is kept on the server.
        models: those that pages choose from.
        settings: limits and defaults.

    Attributes:
        sessions: the open pages.
        counts: tokens of single documents.
        forgetting: has models forget removed documents; None where they keep nothing.
    """

    def __init__(self, library: Library, models: OfferedModels, settings: PageSettings) -> None:
        self.library = library
        self.settings = settings
        self.sessions = Sessions(
            self._begin,
            idle_seconds=settings.idle_seconds,
            reading_seconds=settings.reading_seconds,
        )
        self.counts = TokenCounts()
        self.forgetting: Forgetting | None = None
        if settings.forget_readings is not None:
            self.forgetting = Forgetting(library, settings.forget_readings)
            self.forgetting.begin()  # of what was removed before, were it by another process
        self.models = models
        models.wanted = lambda: {each.model for each in self.sessions.all()}
        self._working = threading.Lock()
        self._workers: set[Session] = set()
        self._last_worker: weakref.ref[Session] | None = None

    def model(self, session: Session) -> TextModel:
        """The model that a page has chosen; loaded by whoever comes first, while others wait.

        Raises:
            PaceLLMError: it can not be loaded.
        """
        return self.models.get(session.model)

    def model_soon(self, session: Session) -> TextModel:
        """The page's model, for those who have something to show without it meanwhile.

        Raises:
            ModelError: it is being loaded, and that takes longer than a second.
            PaceLLMError: it can not be loaded.
        """
        return self.models.soon(session.model)

    def told_model(self, name: str) -> str:
        """A model's name where it is worth telling: where there are others."""
        return name if len(self.models.names) > 1 else ""

    def job(
        self,
        session: Session,
        work: Callable[[], None],
        look: Callable[[], View],
        stop: Callable[[], None],
    ) -> Job[View]:
        """Work of a page with the model."""

        def counted() -> None:
            with self._works_for(session):
                work()

        return Job(counted, look, stop, updates_per_second=self.settings.updates_per_second)

    @contextmanager
    def _works_for(self, session: Session) -> Iterator[None]:
        """Notes whom the model works for, as what it counts last may be anybody's."""
        with self._working:
            alone = not self._workers
            self._workers.add(session)
            self._last_worker = weakref.ref(session) if alone else None
        try:
            yield
        finally:
            with self._working:
                self._workers.discard(session)

    def last_worker(self) -> Session | None:
        """The page that the model worked for last; None where several shared it."""
        with self._working:
            return self._last_worker() if self._last_worker is not None else None

    def _begin(self, owner: str, page: str) -> Session:
        conversations = self.library.conversations(owner)
        newest = conversations[0].id if conversations else None
        return Session(owner, page, self.settings.options, newest, self.models.default)

    def chosen(self, session: Session) -> list[StoredDocument]:
        """The ticked documents, in order.

        Raises:
            ConfigurationError: there are none.
        """
        documents = self.library.documents(session.owner)
        chosen = [each for each in documents if each.chosen]
        if not chosen:
            raise ConfigurationError(_NONE_CHOSEN if documents else _NO_DOCUMENT)
        return chosen

    def reading(
        self,
        session: Session,
        chosen: Sequence[StoredDocument],
        model: TextModel,
        *,
        keep: bool = True,
    ) -> Reading:
        """Documents bound to the model; those of the page's last question if they are the same.

        Args:
            session: the page.
            chosen: the documents, in order.
            model: the model.
            keep: whether they stay read, as those of the page's last question.
        """
        last = session.reading
        if last is not None and last.model is model:
            if last.key == tuple(key_of(each) for each in chosen):
                return last
        elif last is not None:
            last = None
        known = {} if last is None else {each.key: each for each in last.chosen}
        reading = Reading(model, [open_document(self.library, each, known) for each in chosen])
        if keep and not session.left:
            session.reading = reading
        return reading

    def turns(self, session: Session) -> list[StoredTurn]:
        """The turns of the page's conversation; one that was deleted elsewhere is left."""
        if session.conversation_id is None:
            return []
        try:
            return self.library.conversation(session.owner, session.conversation_id)[1]
        except NotFoundError:
            session.conversation_id = None
            return []


def documents_read(key: Sequence[DocumentKey]) -> list[list[object]]:
    """The documents of an answer, as its details keep them."""
    return [[document_id, list(pages) if pages else None] for document_id, pages in key]


def messages_of(turns: Sequence[StoredTurn], key: Sequence[DocumentKey]) -> list[Message]:
    """Earlier turns as the model is to see them: questions that were answered, and the answers.

    An answer from the same documents is given back in the model's own words, page markers
    included, as it has read them before; in one from others the markers would mislead.

    Args:
        turns: of the conversation.
        key: the documents that the next question reads.
    """
    same = documents_read(key)
    messages: list[Message] = []
    for question, answer in pairwise(turns):
        if (question.role, answer.role) != ("user", "assistant"):
            continue
        words = answer.details.get("words") if answer.details.get("documents") == same else None
        text = words if isinstance(words, str) and words.strip() else answer.text
        if not text.strip() or answer.details.get("error"):
            continue
        messages += [Message("user", question.text), Message("assistant", text)]
    return messages
