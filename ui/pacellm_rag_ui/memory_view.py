"""What PaceLLM's memory did, as far as the model tells it in plain values.

A model with banks has a handle on them, `pace`, with its settings and the counts of its newest
forward pass; a state that was read may tell, by `memory_report`, the counts at several of its
tokens. Where neither tells, the view says so. Needs no torch; knows nothing of how banks work.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.job import told
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import Session
from pacellm_rag_ui.views import LayerMemoryView, MemoryView, PageBands

__all__ = ["BankHandle", "LayerCounts", "MemoryPoint", "bands_by_page", "has_banks", "memory_of"]

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
_PAGES = "Each cell stands for the pages between two points at which the engine keeps its counts."
_EXPERTS = (
    "Expert activity is not measured here: it takes a map of the model's experts (pacellm-rag "
    "cluster) and a reading of its own."
)
_SLACK = 4  # tokens: a point at the end of a document lies a little before that of its last page


class LayerCounts(Protocol):
    """Counts of one layer's bank for one sequence; shares are of `tokens`."""

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
        """Share that memory replaced."""
        ...

    @property
    def middle(self) -> float:
        """Share that was mixed with memory."""
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


class MemoryPoint(Protocol):
    """Counts from the beginning of a sequence up to one of its tokens."""

    @property
    def end(self) -> int:
        """Tokens up to here."""
        ...

    @property
    def layers(self) -> Mapping[int, LayerCounts]:
        """By layer."""
        ...


def _handle_of(model: TextModel) -> BankHandle | None:
    handle: BankHandle | None = getattr(model, "pace", None)
    return handle


def has_banks(model: TextModel) -> bool:
    """Whether a model has memory banks."""
    return _handle_of(model) is not None


def memory_of(backend: Backend, session: Session) -> MemoryView:
    """What the banks did for the page's last answer; only counts that are of nobody else."""
    try:
        model = backend.model_soon()
        handle = _handle_of(model)
        if handle is None:
            return MemoryView(False, layers_note=_NO_BANKS)
        return _view(backend, session, handle)
    except Exception as error:
        return MemoryView(False, layers_note=told(error))


def _view(backend: Backend, session: Session, handle: BankHandle) -> MemoryView:
    layers, layers_note = _layers(session, handle, ours=backend.last_worker() is session)
    points = _points(session.reading)
    bands: tuple[PageBands, ...] = ()
    if session.reading is not None and points:
        bands = bands_by_page(session.reading, points)
    return MemoryView(
        attached=True,
        settings=_settings(handle),
        layers=layers,
        layers_note=layers_note,
        bands=bands,
        bands_note=_PAGES if bands else _NO_PAGES,
        experts_note=_EXPERTS,
    )


def _settings(handle: BankHandle) -> tuple[tuple[str, str], ...]:
    values = {**handle.config.to_dict(), "layers": ", ".join(map(str, handle.layers))}
    return tuple((name, str(value)) for name, value in values.items())


def _layers(
    session: Session, handle: BankHandle, *, ours: bool
) -> tuple[tuple[LayerMemoryView, ...], str]:
    if session.reading is None or session.reading.reader.receipt is None:
        return (), _NOTHING_READ
    newest = handle.stats() if ours else {}
    if newest:
        return _of_counts(newest), _NEWEST
    points = _points(session.reading)
    if points:
        return _of_counts(points[-1].layers), _READ
    return (), _OTHERS


def _of_counts(counts: Mapping[int, LayerCounts]) -> tuple[LayerMemoryView, ...]:
    return tuple(
        LayerMemoryView(
            layer=layer,
            slots_filled=each.slots_filled,
            slots=each.slots,
            tokens=each.tokens,
            high=each.high,
            middle=each.middle,
            untouched=max(1 - each.high - each.middle, 0.0),
        )
        for layer, each in sorted(counts.items())
    )


def _points(reading: Reading | None) -> Sequence[MemoryPoint]:
    """The points at which the state of what was read tells its counts."""
    report = getattr(reading.state, "memory_report", None) if reading is not None else None
    return () if report is None else tuple(sorted(report(), key=lambda point: int(point.end)))


def bands_by_page(reading: Reading, points: Sequence[MemoryPoint]) -> tuple[PageBands, ...]:
    """Shares of the tokens between points, by the pages that stand there."""
    return tuple(_bands(reading, points))


def _bands(reading: Reading, points: Sequence[MemoryPoint]) -> Iterator[PageBands]:
    ends = reading.page_ends()
    packed = reading.reader.packed
    totals = [(0, 0.0, 0.0, 0.0), *((point.end, *_summed(point)) for point in points)]
    for (start, tokens, high, middle), (end, tokens_now, high_now, middle_now) in pairwise(totals):
        looked_up = tokens_now - tokens
        first, last = bisect_right(ends, start + _SLACK), bisect_left(ends, end)
        if looked_up <= 0 or first >= len(ends):
            continue
        replaced = (high_now - high) / looked_up
        mixed = (middle_now - middle) / looked_up
        first_page, last_page = packed.segments[first], packed.segments[min(last, len(ends) - 1)]
        for document in range(first_page.document, last_page.document + 1):
            pages = [
                packed.page(s).number
                for s in packed.segments[first : last + 1]
                if s.document == document
            ]
            if not pages:
                continue
            yield PageBands(
                title=packed.documents[document].title,
                first_page=pages[0],
                last_page=pages[-1],
                high=replaced,
                middle=mixed,
                untouched=max(1 - replaced - mixed, 0.0),
            )


def _summed(point: MemoryPoint) -> tuple[float, float, float]:
    """Tokens, and those above and between the thresholds, of all layers together."""
    counts = point.layers.values()
    return (
        float(sum(each.tokens for each in counts)),
        sum(each.tokens * each.high for each in counts),
        sum(each.tokens * each.middle for each in counts),
    )
