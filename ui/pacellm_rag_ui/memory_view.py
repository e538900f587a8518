"""What PaceLLM's memory and experts did, as far as the model tells it in plain values.

A model with banks has a handle on them, `pace`, with its settings and the counts of its newest
forward pass. A state that was read tells the counts at several of its tokens where it is a
`MemoryReport`; what was seen page by page, once somebody had the model watched (`watching`), lies
with the documents. Where nothing is told, the view says so. Needs no torch; knows nothing of how
banks work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pacellm_rag.models.inspection import Inspectable, MemoryPoint, MemoryReport
from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.job import told
from pacellm_rag_ui.memory_pages import bands_between, bands_seen, experts_seen
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import LayerMemoryView, MemoryView, PageBands

__all__ = ["BankHandle", "LayerCounts", "has_banks", "memory_of"]

_NO_BANKS = (
    "The model of this server runs without PaceLLM's memory banks. Start the server with --pace on "
    "to have them."
)
_NOTHING_READ = "Nothing has been read on this page yet. Ask something first."
_OTHERS = (
    "The model has worked for others since, or keeps no counts; what its banks did for your "
    "documents can not be told any more. Ask again to see it."
)
_NEWEST = "Counts of your last answer: documents, conversation and answer together."
_READ = "Counts at the end of what was read of your documents."
_NO_PAGES = "The model counts by answer and not by page, so there is no strip of pages."
_STRETCHES = (
    "While reading, counts are kept at the ends of documents and every few thousand tokens only, "
    "so a cell stands for all pages in between, and all layers together. Watch the model page by "
    "page to see each page."
)
_EACH_PAGE = "A cell for each page, all layers together; pages without text have none."
_SHARED = "All layers together; neighbouring pages share a cell, as there are so many."
_NO_MAP = (
    "There is no map of this model's experts. `pacellm-rag cluster MODEL FOLDER` writes a copy of "
    "the model with one; a server that is started with `--model FOLDER` shows here which experts "
    "are at work on which page. The answers stay the same."
)
_NOT_WATCHED = "Watch the model page by page to see which experts are at work where."
_ONE_PAGE = "Expert activity compares pages, and there are not two with text."
_EXPERTS = (
    "The experts, of all layers, that differ most from page to page, named by the words that "
    "excite them most; how far each is above or below what is usual for it."
)


class LayerCounts(Protocol):
    """Counts of one layer's bank; `inspection.BankCounts` and what a handle gives are some."""

    @property
    def slots_filled(self) -> int:
        """Slots in use."""
        ...

    @property
    def slots(self) -> int:
        """Slots there are."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens looked up."""
        ...

    @property
    def high(self) -> float:
        """Share of them that memory replaced."""
        ...

    @property
    def middle(self) -> float:
        """Share that was mixed with memory."""
        ...

    @property
    def untouched(self) -> float:
        """Share that was left alone."""
        ...


class BankHandle(Protocol):
    """The banks on a model; `pacellm_rag.pace.attach.PaceHandle` is one."""

    @property
    def config(self) -> Any:
        """Settings, with `to_dict`."""
        ...

    @property
    def layers(self) -> Sequence[int]:
        """The layers with a bank."""
        ...

    def stats(self) -> Mapping[int, LayerCounts]:
        """By layer, the counts of the newest forward pass."""
        ...


def _handle_of(model: TextModel) -> BankHandle | None:
    handle: BankHandle | None = getattr(model, "pace", None)
    return handle


def has_banks(model: TextModel) -> bool:
    """Whether a model has memory banks."""
    return _handle_of(model) is not None


def memory_of(backend: Backend, session: Session) -> MemoryView:
    """What banks and experts did for the page's documents; only counts that are of nobody else."""
    try:
        model = backend.model_soon(session)
        view = _banks(backend, session, _handle_of(model))
        return _with_experts(view, model, session.reading)
    except Exception as error:
        return MemoryView(False, layers_note=told(error))


def _banks(backend: Backend, session: Session, handle: BankHandle | None) -> MemoryView:
    if handle is None:
        return MemoryView(False, layers_note=_NO_BANKS)
    layers, layers_note = _layers(session, handle, ours=backend.last_worker() is session)
    bands, bands_note = _bands(session.reading)
    return MemoryView(
        attached=True,
        settings=_settings(handle),
        layers=layers,
        layers_note=layers_note,
        bands=bands,
        bands_note=bands_note if layers else "",
    )


def _bands(reading: Reading | None) -> tuple[tuple[PageBands, ...], str]:
    if reading is None:
        return (), _NO_PAGES
    if reading.seen is not None and reading.seen.banks:
        bands = bands_seen(reading, reading.seen)
        alone = all(band.first_page == band.last_page for band in bands)
        return bands, _EACH_PAGE if alone else _SHARED
    points = _points(reading)
    return (bands_between(reading, points), _STRETCHES) if points else ((), _NO_PAGES)


def _with_experts(view: MemoryView, model: TextModel, reading: Reading | None) -> MemoryView:
    mapped = isinstance(model, Inspectable) and model.has_experts
    view = replace(view, watchable=isinstance(model, Inspectable) and (mapped or view.attached))
    if not mapped:
        return replace(view, experts_note=_NO_MAP)
    if reading is None or reading.seen is None:
        return replace(view, experts_note=_NOT_WATCHED)
    if not reading.seen.experts:
        return replace(view, experts_note=_ONE_PAGE)
    experts, pages = experts_seen(reading, reading.seen)
    return replace(view, experts=experts, expert_pages=pages, experts_note=_EXPERTS)


def _settings(handle: BankHandle) -> tuple[tuple[str, str], ...]:
    values = {**handle.config.to_dict(), "layers": ", ".join(map(str, handle.layers))}
    return tuple((name, str(value)) for name, value in values.items())


def _layers(
    session: Session, handle: BankHandle, *, ours: bool
) -> tuple[tuple[LayerMemoryView, ...], str]:
    if session.reading is None or session.reading.reader.receipt is None:
        return (), _NOTHING_READ
    points = _points(session.reading)
    if points:
        return _of_counts(points[-1].layers), _READ
    newest = handle.stats() if ours else {}
    return (_of_counts(newest), _NEWEST) if newest else ((), _OTHERS)


def _of_counts(counts: Mapping[int, LayerCounts]) -> tuple[LayerMemoryView, ...]:
    return tuple(
        LayerMemoryView(
            layer=layer,
            slots_filled=each.slots_filled,
            slots=each.slots,
            tokens=each.tokens,
            high=each.high,
            middle=each.middle,
            untouched=each.untouched,
        )
        for layer, each in sorted(counts.items())
    )


def _points(reading: Reading) -> Sequence[MemoryPoint]:
    """The points at which the state of what was read tells its counts."""
    state = reading.reader.state
    return state.memory_report() if isinstance(state, MemoryReport) else ()
