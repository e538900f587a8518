"""One answer on its way: waiting, reading, answering, and how it ended.

An `AnswerRun` is worked on by one thread and looked at by another; stopping it ends it at once,
with the words that have come so far. Knows the reader and its streams; knows nothing of sessions,
conversations or the library.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pacellm_rag.answer import Answer
from pacellm_rag.chat import ChatStream, start_chat
from pacellm_rag.context.citations import Citation, CitationResolver, Evidence
from pacellm_rag.context.markers import without_markers
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.errors import CancelledError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import (
    CancelSignal,
    GenerationOptions,
    ProgressCallback,
    ReadProgress,
)
from pacellm_rag_ui.chosen_documents import ChosenDocument
from pacellm_rag_ui.job import told
from pacellm_rag_ui.reading import Reading, progress_status
from pacellm_rag_ui.safe_text import safe_markdown
from pacellm_rag_ui.views import AskState, AskView, CitationView

__all__ = ["AnswerRun", "Ended"]

_ALREADY = "Documents already read."
_CUT = "The answer was cut off at {} tokens; the settings allow longer ones."
_NOTHING = "The model had nothing to say."
_STATUS: dict[AskState, str] = {"done": "", "stopped": "Stopped", "failed": "Failed"}
_KNOWN_SHARE = 0.9  # of the documents' tokens; the rest is what stands before a snapshot


@dataclass(frozen=True)
class Ended:
    """How an answer ended.

    Attributes:
        view: what the page shows.
        words: what the model wrote, page markers included.
        answer: all about it; None where it was stopped or failed.
    """

    view: AskView
    words: str
    answer: Answer | None


class _Pieces(Protocol):
    """Pieces of text that are being made."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None:
        """Stops the making."""
        ...


class _ChatPieces:
    """The text of a `ChatStream`."""

    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return (delta.text for delta in self._stream)

    def close(self) -> None:
        """Stops the model."""
        self._stream.close()


class AnswerRun:
    """One answer.

    Args:
        ended: called once, when it has ended, before anybody sees the final view; may replace it.

    Attributes:
        touched: called when there is something new to see.
    """

    def __init__(self, ended: Callable[[Ended], AskView] | None = None) -> None:
        self.touched: Callable[[], None] = lambda: None
        self._on_end = ended
        self._lock = threading.RLock()
        self._cancel = threading.Event()
        self._view = AskView("queued", "Waiting for the model")
        self._stream: _Pieces | None = None
        self._words: list[str] = []
        self._over = False

    def look(self) -> AskView:
        """The answer as it stands."""
        with self._lock:
            if self._over or not self._words:
                return self._view
            words = "".join(self._words)
        return replace(self._view, text=safe_markdown(words, complete=False))

    @property
    def words(self) -> str:
        """What the model has written so far, page markers included."""
        with self._lock:
            return "".join(self._words)

    def perform(self, steps: Callable[[AnswerRun], None]) -> None:
        """Takes steps that lead to an answer; what goes wrong in them becomes the final view."""
        try:
            self.check()
            steps(self)
        except CancelledError:
            self._stop_view()
        except Exception as error:
            self.fail(told(error))

    def check(self) -> None:
        """Ends the steps where the run was stopped.

        Raises:
            CancelledError: it was.
        """
        if self._cancel.is_set():
            raise CancelledError("Stopped.")

    def show(self, view: AskView) -> None:
        """Changes what there is to see, but for the words."""
        with self._lock:
            if self._over:
                return
            self._view = view
        self.touched()

    def unless_over(self, step: Callable[[], None]) -> None:
        """Takes a step that must not be taken once the run is over, such as storing a turn.

        Raises:
            CancelledError: it is over.
        """
        with self._lock:
            if self._over:
                raise CancelledError("Stopped.")
            step()

    def stop(self) -> None:
        """Stops the model and ends the run with the words so far. Safe to repeat."""
        self._cancel.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()
        self._stop_view()

    @property
    def cancel(self) -> CancelSignal:
        """Set when the run is stopped."""
        return self._cancel

    def finish(self) -> None:
        """Ends work that gives no words."""
        self._end(Ended(replace(self._ending("done"), percent=100.0), "", None))

    def fail(self, message: str) -> None:
        """Ends the run with an error; the words so far stay."""
        self._break_off(replace(self._ending("failed"), error=message))

    # the two ways to an answer

    def answer(
        self,
        reading: Reading,
        question: str,
        options: GenerationOptions,
        history: Sequence[Message] = (),
    ) -> None:
        """Answers from the documents, with citations by all signs there are."""
        was_read = reading.reader.receipt is not None
        self.check()
        stream = reading.reader.stream(
            question,
            history=history,
            options=options,
            progress=self.progress_of(reading),
            cancel=self._cancel,
        )
        self._take(stream)
        answer = stream.answer
        notes = [_reading_note(reading, answer, was_read)]
        if not answer.text:
            notes.append(_NOTHING)
        if answer.finish_reason == "length":
            notes.append(_CUT.format(options.max_new_tokens))
        view = replace(
            self._ending("done"),
            text=safe_markdown(answer.text),
            plain=answer.text,
            citations=tuple(_view_of(c, reading.chosen) for c in answer.citations),
            note=" ".join(filter(None, notes)),
        )
        self._end(Ended(view, stream.text, answer))

    def tell(self, reading: Reading, request: str, options: GenerationOptions) -> None:
        """Answers a request that is no question to be answered in a few words of the documents.

        Citations come from the page markers that the model writes and from the words it shares
        with the pages.
        """
        messages = build_messages(reading.reader.packed, request)
        messages[-1] = Message("user", request)
        self.check()
        progress = self.progress_of(reading)
        reading.reader.read(progress=progress, cancel=self._cancel, options=options)
        stream = start_chat(
            reading.model, messages, options=options, progress=progress, cancel=self._cancel
        )
        self._take(_ChatPieces(stream))
        resolver = CitationResolver(reading.reader.packed)
        resolved = resolver.resolve(request, stream.text, Evidence(), cite=True)
        view = replace(
            self._ending("done"),
            text=safe_markdown(resolved.text),
            plain=resolved.text,
            citations=tuple(_view_of(c, reading.chosen) for c in resolved.citations),
        )
        self._end(Ended(view, stream.text, None))

    def progress_of(self, reading: Reading, doing: str = "Reading") -> ProgressCallback:
        """Shows how far the model has come with the pages of a reading.

        Args:
            reading: the documents.
            doing: what it does with them.
        """

        def progress(told_now: ReadProgress) -> None:
            if self._cancel.is_set():  # the next window is not begun
                raise CancelledError("Stopped while reading.")
            pages = reading.in_pages(told_now)
            self.show(
                AskView(
                    state="queued" if pages.position else "reading",
                    status=progress_status(pages, doing),
                    position=pages.position,
                    pages_done=pages.pages_done,
                    pages_total=pages.pages_total,
                    percent=pages.percent,
                    seconds_left=pages.seconds_left,
                    question_id=self._view.question_id,
                )
            )

        return progress

    def _take(self, pieces: _Pieces) -> None:
        """Takes the pieces of an answer as they come.

        Raises:
            CancelledError: the run was stopped.
        """
        with self._lock:
            self._stream = pieces
        try:
            self.check()
            for piece in pieces:
                with self._lock:
                    if self._over:
                        break
                    self._words.append(piece)
                    view = replace(
                        self._view, state="answering", status="Answering", seconds_left=None
                    )
                self.show(view)
            self.check()
        except BaseException:
            pieces.close()
            raise

    # how it ends

    def _stop_view(self) -> None:
        self._break_off(self._ending("stopped"))

    def _break_off(self, view: AskView) -> None:
        self._end(Ended(view, self.words, None))

    def _ending(self, state: AskState) -> AskView:
        with self._lock:
            words, view = "".join(self._words), self._view
        return replace(
            view,
            state=state,
            status=_STATUS[state],
            position=0,
            seconds_left=None,
            text=safe_markdown(words),
            plain=without_markers(words),
        )

    def _end(self, ended: Ended) -> None:
        """Ends it, once: whoever comes first says how."""
        with self._lock:
            if self._over:
                return
            view = ended.view
            if self._on_end is not None:
                try:
                    view = self._on_end(ended)
                except Exception as error:
                    message = f"{view.error} {told(error)}".strip()
                    view = replace(view, state="failed", status="Failed", error=message)
            self._view = view
            self._over = True
            self._stream = None
        self.touched()


def _view_of(citation: Citation, chosen: Sequence[ChosenDocument]) -> CitationView:
    return CitationView(
        document_id=chosen[citation.document].stored.id,
        title=citation.title,
        page=citation.page,
        label=citation.label,
        quote=citation.quote,
        verified=citation.verified,
        score=citation.score,
        source=citation.source,
    )


def _reading_note(reading: Reading, answer: Answer, was_read: bool) -> str:
    """What is worth telling of how much had been read before."""
    receipt = reading.reader.receipt
    if receipt is None or not receipt.tokens:
        return ""
    reused = answer.usage.tokens_reused if was_read else receipt.tokens_reused
    share = min(reused / receipt.tokens, 1.0)
    if share >= _KNOWN_SHARE:
        return _ALREADY
    return f"{share:.0%} of the documents had been read already." if share >= 0.1 else ""
