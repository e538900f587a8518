"""What the page shows, as plain values: files, meter, answers, tables, memory.

Handlers yield these and the page draws them. Knows nothing of Gradio, of models or of how the
values come about.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pacellm_rag_ui.library import StoredDocument

__all__ = [
    "AskState",
    "AskView",
    "CitationView",
    "CompareView",
    "EveryRow",
    "EveryView",
    "ExpertRow",
    "FileReport",
    "LayerMemoryView",
    "MemoryView",
    "Meter",
    "MeterDocument",
    "PageBands",
    "PageSpan",
    "SuggestionsView",
]

AskState = Literal["queued", "reading", "answering", "done", "stopped", "failed"]


@dataclass(frozen=True)
class FileReport:
    """How far one uploaded file has come.

    Attributes:
        name: the file's name as it may be shown: no controls, no path.
        state: what happens to it; "locked" where it needs a password, or another one.
        message: one sentence: pages done, warnings, or why it was refused. Plain text, not escaped.
        document: what it has become, once "ready".
        index: which of the files that came together it is, from 0.
    """

    name: str
    state: Literal["parsing", "ready", "refused", "locked"]
    message: str
    document: StoredDocument | None = None
    index: int = 0


@dataclass(frozen=True)
class MeterDocument:
    """One line of the meter.

    Attributes:
        id: the library's.
        title: of the document.
        tokens: that it takes in the prompt, its page range applied; None where not known.
        chosen: whether the next question reads it.
        page_range: first and last page kept; None for all.
        pages: of the whole file.
    """

    id: str
    title: str
    tokens: int | None
    chosen: bool
    page_range: tuple[int, int] | None
    pages: int


@dataclass(frozen=True)
class Meter:
    """How much of the model's window the next question takes, by the model's own tokenizer.

    Attributes:
        window: tokens that the model takes, prompt and answer together.
        answer_tokens: kept for the answer.
        documents: all documents of the owner, in their order.
        other_tokens: instructions, conversation and question.
        total: tokens of prompt and answer together.
        room: tokens that stay free; negative when it does not fit.
        fits: whether the question can be sent; also False where there is not the memory.
        advice: what to do when it does not fit, checked to be enough; "" when it fits.
        untick: ids of documents without which it fits; empty when that does not help.
        keep_pages: a document's id, and the first and last page to keep, with which it fits.
        known_tokens: tokens of the prompt that have been read before.
        message: why nothing can be told, or sent; "" otherwise.
    """

    window: int
    answer_tokens: int
    documents: tuple[MeterDocument, ...]
    other_tokens: int
    total: int
    room: int
    fits: bool
    advice: str = ""
    untick: tuple[str, ...] = ()
    keep_pages: tuple[str, int, int] | None = None
    known_tokens: int = 0
    message: str = ""


@dataclass(frozen=True)
class CitationView:
    """A page that an answer rests on.

    Attributes:
        document_id: the library's id of the document.
        title: of the document.
        page: physical page number, from 1.
        label: the number printed on the page.
        quote: words of that page.
        verified: whether the quote stands there.
        score: share of the evidence, 0 to 1.
        source: "model", "attention" or "words".
    """

    document_id: str
    title: str
    page: int
    label: str
    quote: str
    verified: bool
    score: float
    source: str

    def as_dict(self) -> dict[str, Any]:
        """For `StoredTurn.citations`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CitationView:
        """What `as_dict` gave."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class AskView:
    """One answer as it stands.

    Attributes:
        state: what is being done; the last three are final.
        status: one line for people: "Reading page 37 of 112, 41 %, about 20 s left".
        position: requests that are before this one; 0 once it has begun.
        pages_done: pages read, of all documents together.
        pages_total: pages to read, those read before included.
        percent: of reading, 0 to 100.
        seconds_left: estimate for reading; None where there is none.
        text: the answer so far, as Markdown that is safe to draw.
        plain: once it has ended: the answer as the model wrote it, without page markers; not safe
            to draw.
        citations: once done.
        note: what else is worth telling, such as that the documents had been read already.
        error: why it failed, in plain words; "" otherwise.
        question_id: the stored turn of the question; "" when nothing was stored, because it was
            refused before it was sent.
        answer_id: the stored turn of the answer, once there is one.
    """

    state: AskState
    status: str = ""
    position: int = 0
    pages_done: int = 0
    pages_total: int = 0
    percent: float = 0.0
    seconds_left: float | None = None
    text: str = ""
    plain: str = ""
    citations: tuple[CitationView, ...] = ()
    note: str = ""
    error: str = ""
    question_id: str = ""
    answer_id: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")


@dataclass(frozen=True)
class EveryRow:
    """One document's answer to a question put to every document.

    Attributes:
        document_id: the library's id.
        title: of the document.
        answer: as it stands; `answer.state` is "queued" before its turn.
    """

    document_id: str
    title: str
    answer: AskView


@dataclass(frozen=True)
class EveryView:
    """The answers side by side.

    Attributes:
        question: what was asked.
        rows: one for each chosen document, in their order.
        state: "working" until all rows are final; "failed" when nothing could be asked.
        status: one line for people.
        error: why nothing could be asked.
        model: who answers, where there are several to choose from; "" otherwise.
    """

    question: str
    rows: tuple[EveryRow, ...]
    state: Literal["working", "done", "stopped", "failed"]
    status: str = ""
    error: str = ""
    model: str = ""


@dataclass(frozen=True)
class SuggestionsView:
    """Questions to begin with.

    Attributes:
        answer: the work behind them; its text is not for showing.
        questions: as plain text, not escaped.
    """

    answer: AskView
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompareView:
    """The same question with PaceLLM and without.

    Attributes:
        available: whether this server can do it.
        message: why not; "" otherwise.
        on: with the memory banks.
        off: without.
    """

    available: bool
    message: str = ""
    on: AskView = AskView("queued")
    off: AskView = AskView("queued")


@dataclass(frozen=True)
class LayerMemoryView:
    """What one layer's bank holds and did.

    Attributes:
        layer: index of the decoder layer.
        slots_filled: slots in use.
        slots: slots there are.
        tokens: tokens looked up.
        high: share of tokens that memory replaced.
        middle: share that were mixed with memory.
        untouched: share that were left alone.
    """

    layer: int
    slots_filled: int
    slots: int
    tokens: int
    high: float
    middle: float
    untouched: float


@dataclass(frozen=True)
class PageBands:
    """Shares of the tokens of some pages by what memory did to them, all layers together.

    Attributes:
        title: of the document.
        first_page: of the stretch.
        last_page: of the stretch.
        high: share replaced.
        middle: share mixed.
        untouched: share left alone.
    """

    title: str
    first_page: int
    last_page: int
    high: float
    middle: float
    untouched: float


@dataclass(frozen=True)
class PageSpan:
    """Some pages of a document, in a row.

    Attributes:
        title: of the document.
        first_page: by physical number.
        last_page: the same page, or a later one.
    """

    title: str
    first_page: int
    last_page: int


@dataclass(frozen=True)
class ExpertRow:
    """How strongly one expert of the model reacts to the pages.

    Attributes:
        layer: index of the decoder layer.
        expert: index of the expert.
        words: that excite it most; plain text, not escaped.
        activity: for each of `MemoryView.expert_pages`, how far it is above the expert's mean: 0.25
            is a quarter more.
    """

    layer: int
    expert: int
    words: tuple[str, ...]
    activity: tuple[float, ...]


@dataclass(frozen=True)
class MemoryView:
    """PaceLLM's memory, as far as it can be told.

    Attributes:
        attached: whether the model has banks.
        settings: name and value.
        layers: one for each bank; empty where nothing can be told.
        layers_note: what the figures are of, or why there are none.
        bands: by stretches of pages, in the order of the prompt; empty where nothing can be told.
        bands_note: how fine they are, or why there are none.
        experts: those that differ most from page to page; empty where nothing can be told.
        expert_pages: the pages that their activity is of.
        experts_note: what the figures are, or why there are none.
        watchable: whether the model can be watched page by page, to tell more.
    """

    attached: bool
    settings: tuple[tuple[str, str], ...] = ()
    layers: tuple[LayerMemoryView, ...] = ()
    layers_note: str = ""
    bands: tuple[PageBands, ...] = ()
    bands_note: str = ""
    experts: tuple[ExpertRow, ...] = ()
    expert_pages: tuple[PageSpan, ...] = ()
    experts_note: str = ""
    watchable: bool = False
