"""Documents bound to the model, and how far their reading has come in pages.

`Reading` is a `DocumentReader` of chosen documents, with the places of their pages in the prompt.
Knows nothing of sessions or of the library.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pacellm_rag.context.packing import PackedContext
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.models.inspection import Inspection
from pacellm_rag.protocols import PromptTokenizer, ReadProgress, TextModel
from pacellm_rag.reader import DocumentReader
from pacellm_rag_ui.chosen_documents import ChosenDocument, DocumentKey

__all__ = ["PageProgress", "Reading", "page_ends", "page_ranges", "progress_status"]


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
        model: the model.
        chosen: the documents.
        reader: asks the model about them.
        seen: what was seen when the model was watched page by page; None before.
    """

    def __init__(self, model: TextModel, chosen: Sequence[ChosenDocument]) -> None:
        self.model = model
        self.chosen = tuple(chosen)
        self.reader = DocumentReader(model, [each.document for each in chosen])
        self.seen: Inspection | None = None
        self._ranges: list[tuple[int, int]] | None = None

    @property
    def key(self) -> tuple[DocumentKey, ...]:
        """What the documents' text depends on."""
        return tuple(each.key for each in self.chosen)

    def close(self) -> None:
        """Lets the documents' memory go, once others need it."""
        self.reader.close()

    def page_ranges(self) -> list[tuple[int, int]]:
        """For each page, in order, the [start, end) tokens of the prompt that its text takes."""
        if self._ranges is None:
            self._ranges = page_ranges(self.reader.packed, self.model.tokenizer)
        return self._ranges

    def page_ends(self) -> list[int]:
        """For each page, in order, the tokens of the prompt up to its end."""
        return [end for _, end in self.page_ranges()]

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
    return [end for _, end in page_ranges(packed, tokenizer)]


def page_ranges(packed: PackedContext, tokenizer: PromptTokenizer) -> list[tuple[int, int]]:
    """For each page, in order, the [start, end) tokens of a prompt that its text takes."""
    prompt = tokenizer.encode_messages(build_messages(packed, "A"))
    base = locate_context(prompt, packed)
    last = base + len(packed.text.rstrip())  # templates may trim the end
    spans = [(min(s.start + base, last), min(s.end + base, last)) for s in packed.segments]
    return token_ranges(prompt.offsets, spans)


def progress_status(progress: PageProgress, doing: str = "Reading") -> str:
    """One line for people: "Reading page 37 of 112, 41 %, about 20 s left"."""
    if progress.position:
        return f"Waiting, number {progress.position} in the queue"
    page = min(progress.pages_done + 1, progress.pages_total)
    line = f"{doing} page {page} of {progress.pages_total}, {progress.percent:.0f} %"
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
