"""Documents bound to the model, and how far their reading has come in pages.

`Reading` wraps a `DocumentReader` and the model it asks: so the progress of every request of an
answer arrives here, that of the question included, and the state of what was read is at hand for
the memory panel. Knows nothing of sessions or of the library.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pacellm_rag.context.packing import PackedContext
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.protocols import (
    ONE_MESSAGE,
    CancelSignal,
    ContextState,
    GenerationOptions,
    ProgressCallback,
    PromptLayout,
    PromptTokenizer,
    ReadingCost,
    ReadProgress,
    TextGeneration,
    TextModel,
)
from pacellm_rag.reader import DocumentReader
from pacellm_rag_ui.chosen_documents import ChosenDocument, DocumentKey

__all__ = ["PageProgress", "Reading", "page_ends", "progress_status"]


class _WatchedModel:
    """A `TextModel` that tells the progress of all its requests, and keeps the last state read."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self.progress: ProgressCallback | None = None
        self.state: ContextState | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def context_window(self) -> int:
        return self.model.context_window

    @property
    def tokenizer(self) -> PromptTokenizer:
        return self.model.tokenizer

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
        self.state = self.model.prefill(
            token_ids,
            layout=layout,
            note=note,
            timeout=timeout,
            progress=progress or self.progress,
            cancel=cancel,
        )
        return self.state

    def stream(
        self,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        layout: PromptLayout = ONE_MESSAGE,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> TextGeneration:
        return self.model.stream(
            token_ids,
            options,
            layout=layout,
            progress=progress or self.progress,
            cancel=cancel,
            attend_to=attend_to,
        )

    def cost(
        self,
        token_ids: Sequence[int],
        new_tokens: int,
        *,
        layout: PromptLayout = ONE_MESSAGE,
    ) -> ReadingCost:
        return self.model.cost(token_ids, new_tokens, layout=layout)


@dataclass(frozen=True)
class PageProgress:
    """How far reading has come.

    Attributes:
        position: requests before this one; 0 once it has begun.
        pages_done: pages that have been read, of all documents together.
        pages_total: pages there are.
        percent: of the tokens, 0 to 100.
        seconds_left: estimate; None without one.
    """

    position: int
    pages_done: int
    pages_total: int
    percent: float
    seconds_left: float | None


class Reading:
    """Documents bound to a model.

    Args:
        model: the model.
        chosen: the documents, in the order of the prompt.

    Attributes:
        reader: asks the model about them.
        chosen: the documents.
        made: when, in seconds of `time.monotonic`.
    """

    def __init__(self, model: TextModel, chosen: Sequence[ChosenDocument]) -> None:
        self._watched = _WatchedModel(model)
        self.chosen = tuple(chosen)
        self.reader = DocumentReader(self._watched, [each.document for each in chosen])
        self.made = time.monotonic()
        self._ends: list[int] | None = None

    @property
    def model(self) -> TextModel:
        """The model that reads."""
        return self._watched.model

    @property
    def key(self) -> tuple[DocumentKey, ...]:
        """What the documents' text depends on."""
        return tuple(each.key for each in self.chosen)

    @property
    def state(self) -> ContextState | None:
        """What has been read; None before, and once it was let go."""
        return self._watched.state

    def watch(self, progress: ProgressCallback | None) -> None:
        """Tells the progress of all requests from now on."""
        self._watched.progress = progress

    def close(self) -> None:
        """Lets the documents' memory go, once others need it."""
        self._watched.state = None
        self._watched.progress = None
        self.reader.close()

    def page_ends(self) -> list[int]:
        """For each page, in order, the tokens of the prompt up to its end."""
        if self._ends is None:
            self._ends = page_ends(self.reader.packed, self.model.tokenizer)
        return self._ends

    def in_pages(self, progress: ReadProgress) -> PageProgress:
        """What a progress in tokens means in pages."""
        ends = self.page_ends()
        share = progress.tokens_done / progress.tokens_total if progress.tokens_total else 1.0
        return PageProgress(
            position=progress.queue_position,
            pages_done=bisect_right(ends, progress.tokens_done),
            pages_total=len(ends),
            percent=100 * min(share, 1.0),
            seconds_left=progress.seconds_left,
        )


def page_ends(packed: PackedContext, tokenizer: PromptTokenizer) -> list[int]:
    """For each page of packed documents, in order, the tokens of a prompt up to its end."""
    prompt = tokenizer.encode_messages(build_messages(packed, "A"))
    base = locate_context(prompt, packed)
    last = base + len(packed.text.rstrip())  # templates may trim the end
    spans = [(min(s.start + base, last), min(s.end + base, last)) for s in packed.segments]
    return [end for _, end in token_ranges(prompt.offsets, spans)]


def progress_status(progress: PageProgress) -> str:
    """One line for people: "Reading page 37 of 112, 41 %, about 20 s left"."""
    if progress.position:
        return f"Waiting, number {progress.position} in the queue"
    page = min(progress.pages_done + 1, progress.pages_total)
    line = f"Reading page {page} of {progress.pages_total}, {progress.percent:.0f} %"
    left = progress.seconds_left
    if left is None or left < 1:
        return line
    return f"{line}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{max(round(seconds), 1)} s"
    if seconds < 60:
        return f"{round(seconds / 5) * 5} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
