from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_doubles import Site, last

from pacellm_rag.models.inspection import BankCounts, MemoryPoint
from pacellm_rag.protocols import ContextState
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.chosen_documents import ChosenDocument
from pacellm_rag_ui.memory_pages import bands_between
from pacellm_rag_ui.reading import Reading


@dataclass
class _Handle:
    newest: dict[int, BankCounts] = field(default_factory=dict)
    layers: tuple[int, ...] = (1, 3)
    config: Any = field(
        default_factory=lambda: SimpleNamespace(
            to_dict=lambda: {"slots": 100, "high": 0.7, "layers": None}
        )
    )

    def stats(self) -> dict[int, BankCounts]:
        return self.newest


class _Banked(ScriptedModel):
    def __init__(self) -> None:
        super().__init__(["Yes."])
        self.pace = _Handle(
            {3: BankCounts(7, 100, 50, 0.2, 0.5), 1: BankCounts(5, 100, 50, 0.0, 1.0)}
        )


class _State:
    """A state that tells its counts."""

    def __init__(self, state: ContextState, points: Sequence[MemoryPoint]) -> None:
        self.token_ids = state.token_ids
        self.tokens_reused = state.tokens_reused
        self._points = points

    def memory_report(self) -> Sequence[MemoryPoint]:
        return self._points


def tells(reading: Reading, points: Sequence[MemoryPoint]) -> None:
    """Has the state of what was read tell these counts."""
    kept = reading.reader._reading
    assert kept is not None
    kept.state = _State(kept.state, points)


def test_a_model_without_banks_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        view = site.handlers.memory(site.page())
        assert (view.attached, view.layers, view.bands) == (False, (), ())
        assert not view.watchable
        assert "without PaceLLM's memory banks" in view.layers_note


def test_settings_are_shown_before_anything_is_read(tmp_path: Path) -> None:
    with Site(tmp_path, _Banked()) as site:
        view = site.handlers.memory(site.page())
        assert view.attached
        assert dict(view.settings) == {"slots": "100", "high": "0.7", "layers": "1, 3"}
        assert view.layers == ()
        assert "Nothing has been read" in view.layers_note
        assert (view.bands, view.bands_note) == ((), "")
        assert not view.watchable
        assert "cluster" in view.experts_note


def test_the_counts_of_the_last_answer_are_shown(tmp_path: Path) -> None:
    with Site(tmp_path, _Banked()) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        last(site.handlers.ask(page, "What?"))
        view = site.handlers.memory(page)
        assert [layer.layer for layer in view.layers] == [1, 3]
        assert view.layers[1].slots_filled == 7
        assert view.layers[1].untouched == pytest.approx(0.3)
        assert "last answer" in view.layers_note
        assert view.bands == ()
        assert "not by page" in view.bands_note


def test_counts_that_may_be_of_somebody_else_are_not_shown(tmp_path: Path) -> None:
    with Site(tmp_path, _Banked()) as site:
        pages = [site.page(owner, owner) for owner in ("ann", "bob")]
        for page in pages:
            site.add(page, "a.txt", f"Text of {page.owner}.")
            last(site.handlers.ask(page, "What?"))
        views = [site.handlers.memory(page) for page in pages]
        assert [len(view.layers) for view in views] == [0, 2]
        assert "others" in views[0].layers_note


def test_what_a_state_tells_is_shown_by_pages(tmp_path: Path) -> None:
    with Site(tmp_path, _Banked()) as site:
        page, bob = site.page(), site.page("bob", "bob")
        document = site.add(page, "a.txt", *["word " * 50] * 6)
        last(site.handlers.ask(page, "What?"))
        reading = page.reading
        assert reading is not None
        ends = reading.page_ends()
        points = [
            MemoryPoint(ends[2], {1: BankCounts(5, 100, ends[2], 0.5, 0.25)}),
            MemoryPoint(ends[5], {1: BankCounts(9, 100, ends[5], 0.5 * ends[2] / ends[5], 0.0)}),
        ]
        tells(reading, points)
        site.add(bob, "b.txt", "Other text.")
        last(site.handlers.ask(bob, "What?"))
        view = site.handlers.memory(page)
        assert (view.layers[0].slots_filled, view.layers[0].tokens) == (9, ends[5])
        assert "end of what was read" in view.layers_note
        first, second = view.bands
        assert (first.title, first.first_page, first.last_page) == (document.title, 1, 3)
        assert (first.high, first.middle, first.untouched) == pytest.approx((0.5, 0.25, 0.25))
        assert (second.first_page, second.last_page) == (4, 6)
        assert second.high == pytest.approx(0.0)
        assert "all pages in between" in view.bands_note


def test_bands_fall_into_the_documents_that_they_go_over(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        chosen = []
        for name in ("a", "b"):
            stored = site.add(page, f"{name}.txt", *[f"{name} word " * 20] * 3)
            chosen.append(ChosenDocument(stored, site.library.pages("ann", stored.id)))
        reading = Reading(site.model, chosen)
        end = reading.page_ends()[4]
        bands = bands_between(reading, [MemoryPoint(end, {1: BankCounts(1, 2, 100, 0.1, 0.2)})])
        assert [(b.title, b.first_page, b.last_page) for b in bands] == [("a", 1, 3), ("b", 1, 2)]


def test_a_handle_that_fails_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, _Banked()) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        last(site.handlers.ask(page, "What?"))
        site.model.pace.stats = lambda: 1 / 0
        assert "Something went wrong" in site.handlers.memory(page).layers_note


def test_handlers_bring_neither_torch_nor_gradio() -> None:
    code = (
        "import sys, pacellm_rag_ui.handlers; "
        "print([m for m in ('torch', 'transformers', 'gradio') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
