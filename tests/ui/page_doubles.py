"""Models that work only as far as a test lets them, and pages over a library of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pacellm_rag.errors import CancelledError
from pacellm_rag.protocols import (
    ONE_MESSAGE,
    CancelSignal,
    ContextState,
    GenerationOptions,
    ProgressCallback,
    PromptLayout,
    ReadProgress,
)
from pacellm_rag.testing import ScriptedGeneration, ScriptedModel
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.library import Library, LibraryLimits, StoredDocument
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.session import Session

T = TypeVar("T")

PATIENCE = 20.0  # seconds; far more than anything here takes


def last(views: Iterable[T]) -> T:
    """The last of some views."""
    seen = list(views)
    assert seen, "There were no views."
    return seen[-1]


def until(condition: Callable[[], bool], why: str, seconds: float = PATIENCE) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"It did not happen: {why}."
        time.sleep(0.005)


class Gate:
    """Lets so many steps pass; counts those that have come to it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 0
        self.arrived = 0
        self.passed = 0

    def let(self, steps: int = 10**9) -> None:
        with self._changed:
            self._allowed += steps
            self._changed.notify_all()

    def come(self, cancel: CancelSignal | None = None, closed: Callable[[], bool] | None = None):
        """Waits to be let through; a step that is cancelled or closed does not pass."""
        end = time.monotonic() + PATIENCE
        with self._changed:
            self.arrived += 1
            while not self._allowed:
                if cancel is not None and cancel.is_set():
                    raise CancelledError("Cancelled at the gate.")
                if closed is not None and closed():
                    return
                assert time.monotonic() < end, "Nobody opened the gate."
                self._changed.wait(0.01)
            self._allowed -= 1
            self.passed += 1


class _GatedGeneration(ScriptedGeneration):
    gate: Gate
    after: int = 0

    def __next__(self) -> str:
        if self.finish_reason is None and len(self._ends) >= self.after:
            self.gate.come(self._cancel, lambda: self.closed)
        if self.closed:
            raise StopIteration
        return super().__next__()


@dataclass
class GatedModel(ScriptedModel):
    """Reads and answers as far as its gates let it; honours cancel signals as the engine does."""

    reads: Gate = field(default_factory=Gate)
    words: Gate = field(default_factory=Gate)
    queued: int = 0
    read_cancels: int = 0

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        layout: PromptLayout = ONE_MESSAGE,
        note: str = "",
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> ContextState:
        total = len(token_ids)
        for place in range(self.queued, 0, -1):
            if progress is not None:
                progress(ReadProgress(0, total, 0.0, None, place))
            self.reads.come(cancel)
        for done in range(0, total, self.window):
            if progress is not None:
                left = (total - done) / 100.0 if done else None
                progress(ReadProgress(done, total, 100.0 if done else 0.0, left))
            try:
                self.reads.come(cancel)
            except CancelledError:
                self.read_cancels += 1
                raise
        return super().prefill(token_ids, layout=layout, progress=progress, cancel=cancel)

    def stream(self, token_ids: Sequence[int], options: GenerationOptions, **more: Any):
        generation = super().stream(token_ids, options, **more)
        generation.__class__ = _GatedGeneration
        generation.gate = self.words
        return generation


def pages_text(*pages: str) -> bytes:
    """A text file with pages."""
    return "\f".join(pages).encode()


def put(folder: Path, name: str, content: bytes) -> tuple[str, Path]:
    """A file where uploads lie."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(content)
    return name, path


@dataclass
class Site:
    """Handlers over a library in a folder, and shortcuts for what pages do."""

    folder: Path
    model: Any
    settings: PageSettings = field(default_factory=PageSettings)
    limits: LibraryLimits = field(default_factory=LibraryLimits)

    def __post_init__(self) -> None:
        self.library = Library(self.folder / "library", limits=self.limits)
        self.load: Callable[[], Any] = lambda: self.model
        self.handlers = Handlers(self.library, lambda: self.load(), self.settings)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.handlers.close()
        self.library.close()

    def page(self, owner: str = "ann", page: str = "page") -> Session:
        return self.handlers.session(owner, page)

    def add(self, session: Session, name: str, *pages: str) -> StoredDocument:
        upload = put(self.folder / "uploads" / session.page, name, pages_text(*pages))
        report = last(self.handlers.add_files(session, [upload]))
        assert report.document is not None, report.message
        return report.document

    def said(self, session: Session) -> list[tuple[str, str]]:
        return [(turn.role, turn.text) for turn in self.handlers.history(session)]


class InThread:
    """Views of a generator, taken in a thread, as Gradio does."""

    def __init__(self, views: Iterable[Any]) -> None:
        self.views: list[Any] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._take, args=(views,))
        self._thread.start()

    def _take(self, views: Iterable[Any]) -> None:
        try:
            for view in views:
                self.views.append(view)
        except BaseException as error:
            self.error = error

    def wait(self, condition: Callable[[Any], bool], why: str) -> Any:
        until(lambda: any(condition(view) for view in list(self.views)), why)
        return next(view for view in self.views if condition(view))

    def end(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "The generator has not ended."
        if self.error is not None:
            raise self.error
        return self.views[-1]
