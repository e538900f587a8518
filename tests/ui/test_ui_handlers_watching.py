"""Watching the model page by page: with the real engine, and where there is nothing to watch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from page_doubles import InThread, Site, last, until

from pacellm_rag.models.inspection import BankCounts, ExpertReport, Inspection
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.clustering import cluster_neurons
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.expert_map import EXPERTS_FILE
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.chosen_documents import ChosenDocument
from pacellm_rag_ui.memory_pages import MOST_CELLS, bands_seen, experts_seen
from pacellm_rag_ui.memory_panel import memory_html, watch_html
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import BusyError
from pacellm_rag_ui.views import AskView, ExpertRow, MemoryView, PageBands, PageSpan

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SETTINGS = PageSettings(options=GenerationOptions(max_new_tokens=8), updates_per_second=200)
PAGES = ("An apple a day. " * 12, "A pear a week. " * 20, "", "A fig a month, and a plum. " * 8)


@pytest.fixture
def mapped(
    tiny: Tiny, folder_of: Callable[[PaceModel], Path], tmp_path: Path
) -> Callable[..., PaceModel]:
    """A model with a map of its experts."""

    def make(**options: object) -> PaceModel:
        plain = tiny(max_position_embeddings=20_000)
        folder = folder_of(plain)
        cluster_neurons(plain.module, 8).save(folder / EXPERTS_FILE)
        kept = tmp_path / "mapped"
        shutil.move(folder, kept)
        return load_model(kept, device="cpu", dtype="float32", store_bytes=0, **options)  # type: ignore[arg-type]

    return make


def test_after_watching_each_page_has_its_shares_and_experts(
    tmp_path: Path, mapped: Callable[..., PaceModel]
) -> None:
    model = mapped(pace=ACTING)
    with Site(tmp_path, model, SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        site.add(page, "b.txt", "A quince a year. " * 9)
        last(site.handlers.ask(page, "What?"))
        before = site.handlers.memory(page)
        assert before.watchable
        assert before.experts == ()
        assert "page by page" in before.experts_note
        assert "page by page" in before.bands_note
        views = list(site.handlers.watch_pages(page))
        assert (views[-1].state, views[-1].error) == ("done", "")
        assert any(view.status.startswith("Watching page ") for view in views)
        after = site.handlers.memory(page)
        spans = [(band.title, band.first_page, band.last_page) for band in after.bands]
        assert spans == [("a", 1, 1), ("a", 2, 2), ("a", 4, 4), ("b", 1, 1)]
        for band in after.bands:
            assert band.high + band.middle + band.untouched == pytest.approx(1)
        assert "each page" in after.bands_note
        assert after.layers == before.layers
        assert [(s.title, s.first_page, s.last_page) for s in after.expert_pages] == spans
        assert len(after.experts) == 12
        for row in after.experts:
            assert len(row.activity) == 4
            assert row.words
            assert min(row.activity) < 0 < max(row.activity)


def test_the_shares_of_pages_add_up_to_those_of_the_whole(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(pace=ACTING, max_position_embeddings=20_000)
    with Site(tmp_path, model, SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        last(site.handlers.watch_pages(page))
        view = site.handlers.memory(page)
        reading = page.reading
        assert reading is not None
        assert reading.seen is not None
        sizes = [end - start for start, end in reading.page_ranges()]
        tokens = [sum(c.tokens for c in layers.values()) / 2 for layers in reading.seen.banks]
        assert tokens == sizes
        whole = view.layers[0].tokens
        assert 0.5 * whole < sum(sizes) < whole
        assert view.experts == ()
        assert "pacellm-rag cluster" in view.experts_note


def test_watching_reads_what_was_not_read(tmp_path: Path, mapped: Callable[..., PaceModel]) -> None:
    with Site(tmp_path, mapped(window=64), SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        views = list(site.handlers.watch_pages(page))
        kinds = {view.status.split(" ")[0] for view in views if view.state == "reading"}
        assert kinds == {"Reading", "Watching"}
        view = site.handlers.memory(page)
        assert view.experts
        assert not view.attached
        assert "without PaceLLM's memory banks" in view.layers_note
        answer = last(site.handlers.ask(page, "What?"))
        assert answer.note.startswith("Documents already read.")
        assert site.handlers.memory(page).experts == view.experts


def test_watching_can_be_stopped_and_begun_again(
    tmp_path: Path, mapped: Callable[..., PaceModel]
) -> None:
    model = mapped(window=16, pace=ACTING)
    with Site(tmp_path, model, SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", *["An apple a day. " * 20] * 20)
        last(site.handlers.ask(page, "What?"))
        run = InThread(site.handlers.watch_pages(page))
        run.wait(lambda v: v.status.startswith("Watching") and v.percent > 0, "watching begins")
        assert site.handlers.stop(page)
        assert run.end().state == "stopped"
        until(lambda: not page.busy, "the page is free")
        assert site.handlers.memory(page).experts == ()
        assert last(site.handlers.watch_pages(page)).state == "done"
        assert site.handlers.memory(page).experts


def test_other_documents_are_not_shown_what_was_seen_of_these(
    tmp_path: Path, mapped: Callable[..., PaceModel]
) -> None:
    with Site(tmp_path, mapped(), SETTINGS) as site:
        page = site.page()
        one = site.add(page, "a.txt", *PAGES)
        last(site.handlers.watch_pages(page))
        assert site.handlers.memory(page).experts
        site.add(page, "b.txt", "A quince a year.", "And more.")
        site.handlers.choose(page, one.id, False)
        last(site.handlers.ask(page, "What?"))
        view = site.handlers.memory(page)
        assert view.experts == ()
        assert "page by page" in view.experts_note


def test_one_page_is_told_to_be_too_few(tmp_path: Path, mapped: Callable[..., PaceModel]) -> None:
    with Site(tmp_path, mapped(), SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple a day.", "")
        last(site.handlers.watch_pages(page))
        view = site.handlers.memory(page)
        assert view.experts == ()
        assert "not two with text" in view.experts_note


def test_a_model_that_can_not_be_watched_says_so(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        view = last(site.handlers.watch_pages(page))
        assert (view.state, "can not be watched" in view.error) == ("failed", True)


def test_without_documents_and_while_the_page_works_nothing_is_watched(
    tmp_path: Path, mapped: Callable[..., PaceModel]
) -> None:
    model = mapped(window=16)
    with Site(tmp_path, model, SETTINGS) as site:
        page = site.page()
        assert "no document" in last(site.handlers.watch_pages(page)).error
        site.add(page, "a.txt", *["An apple a day. " * 20] * 20)
        run = InThread(site.handlers.watch_pages(page))
        run.wait(lambda v: v.state == "reading", "it begins")
        with pytest.raises(BusyError, match="still at work"):
            next(site.handlers.watch_pages(page))
        site.handlers.stop(page)
        run.end()


def test_a_damaged_map_is_told(tmp_path: Path, mapped: Callable[..., PaceModel]) -> None:
    model = mapped()
    with Site(tmp_path, model, SETTINGS) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        (Path(model.module.name_or_path) / EXPERTS_FILE).write_bytes(b"nonsense")
        view = last(site.handlers.watch_pages(page))
        assert view.state == "failed"
        assert "expert map" in view.error
        assert site.handlers.memory(page).experts == ()


# ---- many pages, and what is drawn


@pytest.fixture
def long(tmp_path: Path) -> Reading:
    with Site(tmp_path, ScriptedModel(context_window=50_000)) as site:
        page = site.page()
        chosen = []
        for name, pages in (("a", MOST_CELLS + 31), ("b", 2)):
            stored = site.add(page, f"{name}.txt", *["word here " * 3] * pages)
            chosen.append(ChosenDocument(stored, site.library.pages("ann", stored.id)))
        return Reading(site.model, chosen)


def test_neighbours_of_one_document_share_a_cell_where_there_are_too_many(long: Reading) -> None:
    total = MOST_CELLS + 33
    banks = [{1: BankCounts(1, 2, 10 * (i % 2 + 1), float(i % 2), 0.0)} for i in range(total)]
    activity = tuple(float(i) for i in range(total))
    seen = Inspection(tuple(banks), (ExpertReport(3, 5, activity, ("x",)),))
    bands = bands_seen(long, seen)
    assert len(bands) <= MOST_CELLS
    assert (bands[0].first_page, bands[0].last_page) == (1, 2)
    assert bands[0].high == pytest.approx(20 / 30)
    assert (bands[-2].title, bands[-2].first_page, bands[-2].last_page) == ("a", 151, 151)
    assert (bands[-1].title, bands[-1].first_page, bands[-1].last_page) == ("b", 1, 2)
    rows, pages = experts_seen(long, seen)
    assert len(pages) == len(rows[0].activity) == len(bands)
    assert rows[0].activity[0] == pytest.approx(0.5, abs=0.1)
    assert rows[0].activity[-1] == pytest.approx(total - 1.5, abs=0.1)


VIEW = MemoryView(
    True,
    bands=(PageBands("a <b>", 1, 1, 0.25, 0.5, 0.25), PageBands("c", 2, 4, 0.0, 0.0, 1.0)),
    experts=(ExpertRow(13, 4, ("<script>", "wire"), (0.3, -0.15)),),
    expert_pages=(PageSpan("a <b>", 1, 1), PageSpan("c", 2, 4)),
)


def test_every_strip_says_in_words_what_it_shows() -> None:
    drawn = memory_html(VIEW)
    assert "Memory changed most on a &lt;b&gt;, p. 1: 75.0%." in drawn
    assert "layer 13, expert 4" in drawn
    assert "Most active on a &lt;b&gt;, p. 1, +30%; least on c, p. 2-4, -15%" in drawn
    assert drawn.count('role="img"') == 2
    assert "<td>25.0%</td><td>50.0%</td>" in drawn
    assert 'title="c, p. 2-4: -15%"' in drawn


def test_titles_and_words_are_escaped() -> None:
    drawn = memory_html(VIEW)
    assert "<script>" not in drawn
    assert "<b>" not in drawn
    assert "&lt;script&gt;" in drawn


def test_little_differences_are_not_drawn_in_full_colour() -> None:
    row = ExpertRow(0, 0, (), (0.02, -0.02))
    drawn = memory_html(replace(VIEW, experts=(row,)))
    assert "--heat:20%" in drawn
    assert "no words" in drawn


def test_what_to_type_is_set_apart() -> None:
    drawn = memory_html(MemoryView(False, experts_note="Type `a --b <c>` now."))
    assert "Type <code>a --b &lt;c&gt;</code> now." in drawn
    assert memory_html(MemoryView(False)) == ""


def test_the_end_of_watching_leaves_no_status_behind() -> None:
    assert watch_html(AskView("done", "")) == ""
    assert "Watching page 3" in watch_html(AskView("reading", "Watching page 3 of 9, 20 %"))
    assert "no room" in watch_html(AskView("failed", "Failed", error="no room"))
