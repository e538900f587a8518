"""Open pages: what each is doing, and the registry that forgets those that nobody looks at.

A session holds what is about a page and not kept in the library: its conversation, how its answers
are decoded, the documents that it has read, its running work. Knows nothing of what the work is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pacellm_rag.errors import PaceLLMError
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag_ui.job import Job
from pacellm_rag_ui.reading import Reading

__all__ = ["BusyError", "Session", "Sessions"]

_BUSY = "This page is still at work on an answer. Stop it, or wait for it to end."
_LEFT = "This page was closed. Reload it."


class BusyError(PaceLLMError):
    """The page, or the conversation, is being worked on already."""


class Session:
    """One open page.

    Attributes:
        owner: who it belongs to.
        page: what names the open page.
        conversation_id: of the conversation that the next question goes to; None for a new one.
        options: how the next answers are decoded.
        model: name of the model that answers the next question.
        reading: the documents of the last question, bound to the model.
        left: whether the page was closed.
        upload_turn: held while files are parsed, one upload after the other.
    """

    def __init__(
        self,
        owner: str,
        page: str,
        options: GenerationOptions,
        conversation_id: str | None,
        model: str = "",
    ) -> None:
        self.owner = owner
        self.page = page
        self.options = options
        self.conversation_id = conversation_id
        self.model = model
        self.reading: Reading | None = None
        self.left = False
        self.upload_turn = threading.Lock()
        self._lock = threading.Lock()
        self._answering: Job[Any] | None = None
        self._uploads: set[Job[Any]] = set()
        self._seen = time.monotonic()

    @contextmanager
    def answering(self, job: Job[Any]) -> Iterator[None]:
        """The page's answer, of which there is one at a time.

        Raises:
            BusyError: there is one, or the page was closed.
        """
        with self._lock:
            if self.left or self._answering is not None:
                raise BusyError(_LEFT if self.left else _BUSY)
            self._answering = job
        try:
            yield
        finally:
            with self._lock:
                self._answering = None
            self.touch()

    @contextmanager
    def uploading(self, job: Job[Any]) -> Iterator[None]:
        """An upload of the page; answers go on beside it.

        Raises:
            BusyError: the page was closed.
        """
        with self._lock:
            if self.left:
                raise BusyError(_LEFT)
            self._uploads.add(job)
        try:
            yield
        finally:
            with self._lock:
                self._uploads.discard(job)
            self.touch()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        with self._lock:
            return self._answering is not None

    def refuse_if_busy(self) -> None:
        """For what must not be done while an answer is under way.

        Raises:
            BusyError: one is.
        """
        if self.busy:
            raise BusyError(_BUSY)

    def stop(self) -> bool:
        """Stops the answer, or else the uploads; tells whether there was anything to stop."""
        return self.stop_answer() or self.stop_all()

    def stop_answer(self) -> bool:
        """Stops the answer; tells whether there was one."""
        with self._lock:
            job = self._answering
        if job is not None:
            job.stop()
        return job is not None

    def stop_all(self) -> bool:
        """Stops the answer and all uploads; tells whether there was anything to stop."""
        with self._lock:
            jobs = [*self._uploads, *([self._answering] if self._answering is not None else [])]
        for job in jobs:
            job.stop()
        return bool(jobs)

    def forget_documents(self) -> None:
        """Lets the memory of the documents go, once others need it."""
        reading, self.reading = self.reading, None
        if reading is not None:
            reading.close()

    def touch(self) -> None:
        """The page was heard of."""
        self._seen = time.monotonic()

    def idle_seconds(self) -> float:
        """For how long nothing was heard of the page and nothing worked for it."""
        with self._lock:
            working = self._answering is not None or bool(self._uploads)
        return 0.0 if working else time.monotonic() - self._seen

    def leave(self) -> None:
        """Stops all work and lets the documents go. Safe to repeat."""
        with self._lock:
            self.left = True
        self.stop_all()
        self.forget_documents()


class Sessions:
    """All open pages. Safe to use from several threads.

    A thread that is there only while pages are looks for idle ones.

    Args:
        make: makes the session of an owner's page.
        idle_seconds: after which a page is forgotten.
        reading_seconds: after which it no longer holds on to the memory of its documents.
    """

    def __init__(
        self,
        make: Callable[[str, str], Session],
        *,
        idle_seconds: float,
        reading_seconds: float = math.inf,
    ) -> None:
        self._make = make
        self._idle_seconds = idle_seconds
        self._reading_seconds = reading_seconds
        self._sessions: dict[tuple[str, str], Session] = {}
        self._conversations: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._watcher: threading.Thread | None = None

    def get(self, owner: str, page: str) -> Session:
        """The session of a page, made when it is first asked for."""
        with self._lock:
            session = self._sessions.get((owner, page))
        if session is None:
            made = self._make(owner, page)  # looks into the library, so not under the lock
            with self._lock:
                session = self._sessions.setdefault((owner, page), made)
                if self._watcher is None:
                    self._watcher = threading.Thread(
                        target=self._watch, name="pacellm-idle-pages", daemon=True
                    )
                    self._watcher.start()
        session.touch()
        return session

    def all(self) -> list[Session]:
        """All open pages."""
        with self._lock:
            return list(self._sessions.values())

    def of_owner(self, owner: str) -> list[Session]:
        """All open pages of an owner."""
        with self._lock:
            return [s for s in self._sessions.values() if s.owner == owner]

    def leave(self, owner: str, page: str) -> None:
        """A page was closed. Safe to repeat."""
        with self._lock:
            session = self._sessions.pop((owner, page), None)
            self._wake.notify_all()
        if session is not None:
            session.leave()

    def sweep(self) -> int:
        """Forgets idle pages; returns how many that were."""
        with self._lock:
            idle = [
                (key, session)
                for key, session in self._sessions.items()
                if session.idle_seconds() >= self._idle_seconds
            ]
            for key, _ in idle:
                del self._sessions[key]
            resting = [
                session
                for session in self._sessions.values()
                if session.idle_seconds() >= self._reading_seconds
            ]
        for session in resting:
            session.forget_documents()
        for _, session in idle:
            session.leave()
        return len(idle)

    def close(self) -> None:
        """Forgets all pages."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
            self._wake.notify_all()
        for session in sessions:
            session.leave()

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    @contextmanager
    def conversation(self, conversation_id: str) -> Iterator[None]:
        """Keeps other pages from answering in a conversation meanwhile.

        Raises:
            BusyError: another page does.
        """
        with self._lock:
            if conversation_id in self._conversations:
                raise BusyError(
                    "This conversation is being answered in another window. Wait for it, or stop "
                    "it there."
                )
            self._conversations.add(conversation_id)
        try:
            yield
        finally:
            with self._lock:
                self._conversations.discard(conversation_id)

    def _watch(self) -> None:
        while True:
            with self._lock:
                pause = min(self._idle_seconds / 2, self._reading_seconds / 2, 30.0)
                self._wake.wait_for(lambda: not self._sessions, timeout=pause)
                if not self._sessions:
                    self._watcher = None
                    return
            self.sweep()
