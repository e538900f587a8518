"""The handlers over the real engine: tiny random weights, so that only the machinery is tested."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_doubles import InThread, Site, last, until

from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag_ui.page_settings import PageSettings

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=12)
LONG = GenerationOptions(max_new_tokens=3000)


def _settings(options: GenerationOptions, **more: Any) -> PageSettings:
    return PageSettings(options=options, updates_per_second=200, **more)


@pytest.mark.parametrize("pace", [None, ACTING], ids=["plain", "banks"])
def test_the_meter_is_what_the_engine_counts(tmp_path: Path, tiny: Tiny, pace: Any) -> None:
    model = tiny(pace=pace, max_position_embeddings=4096)
    with Site(tmp_path, model, _settings(SHORT)) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple a day.", "A pear a week.")
        for question in ("What?", "And then?"):
            meter = site.handlers.meter(page, question)
            view = last(site.handlers.ask(page, question))
            assert view.state == "done", view.error
            usage = site.handlers.history(page)[-1].details["usage"]
            assert usage["prompt_tokens"] == meter.total - SHORT.max_new_tokens
        assert view.note.startswith("Documents already read.")


def test_stop_in_the_middle_of_reading_leaves_the_engine_idle(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(window=16, max_position_embeddings=20_000)
    with Site(tmp_path, model, _settings(SHORT)) as site:
        ann, bob = site.page("ann", "1"), site.page("bob", "2")
        site.add(ann, "a.txt", *["An apple a day. " * 20] * 40)
        site.add(bob, "b.txt", "A pear a week.")
        run = InThread(site.handlers.ask(ann, "What?"))
        view = run.wait(lambda v: v.state == "reading" and v.percent > 0, "reading begins")
        assert view.pages_total == 40
        assert view.status.startswith("Reading page ")
        assert site.handlers.stop(ann)
        assert run.end().state == "stopped"
        until(lambda: model.engine.idle, "the engine stops")
        assert run.end().percent < 100
        assert last(site.handlers.ask(bob, "What?")).state == "done"


def test_stop_in_the_middle_of_an_answer_leaves_the_engine_idle(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(max_position_embeddings=8192)
    with Site(tmp_path, model, _settings(LONG)) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple a day.")
        run = InThread(site.handlers.ask(page, "What?"))
        run.wait(lambda v: v.state == "answering", "the answer begins")
        assert site.handlers.stop(page)
        assert run.end().state == "stopped"
        until(lambda: model.engine.idle, "the engine stops")
        details = site.handlers.history(page)[-1].details
        assert details["finish_reason"] == "stopped"
        assert len(details["words"]) < 2000


def test_a_page_that_is_stopped_does_not_stop_the_one_beside_it(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(window=16, max_position_embeddings=20_000, limits=EngineLimits(max_running=1))
    with Site(tmp_path, model, _settings(SHORT)) as site:
        pages = [site.page(owner, "1") for owner in ("ann", "bob")]
        for page in pages:
            site.add(page, "a.txt", *[f"{page.owner} eats an apple. " * 10] * 20)
        first, second = (InThread(site.handlers.ask(page, "What?")) for page in pages)
        for run in (first, second):
            run.wait(lambda v: v.state == "reading" and v.percent > 0, "reading begins")
        site.handlers.stop(pages[0])
        assert first.end().state == "stopped"
        assert second.end().state == "done"
        assert all(view.pages_total in (0, 20) for view in second.views)


@pytest.mark.parametrize("pace", [None, ACTING], ids=["plain", "banks"])
def test_answers_side_by_side_are_those_that_each_page_gets_alone(
    tmp_path: Path, tiny: Tiny, pace: Any
) -> None:
    answers = []
    for together in (False, True):
        model = tiny(pace=pace, max_position_embeddings=4096)
        with Site(tmp_path / str(together), model, _settings(SHORT)) as site:
            pages = [site.page(f"owner{number}", "1") for number in range(4)]
            for number, page in enumerate(pages):
                site.add(page, "a.txt", f"Fruit {number * 7919} is eaten.", "And more.")
            found: dict[str, str] = {}

            def ask(page: Any, site: Site = site, found: dict[str, str] = found) -> None:
                for question in ("What?", "More?"):
                    view = last(site.handlers.ask(page, question))
                    found[page.owner] = found.get(page.owner, "") + view.state + view.plain

            threads = [threading.Thread(target=ask, args=(page,)) for page in pages]
            for thread in threads:
                thread.start()
                if not together:
                    thread.join()
            for thread in threads:
                thread.join()
            answers.append(found)
    assert answers[0] == answers[1]


def test_the_memory_panel_shows_the_counts_of_the_own_documents(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(pace=ACTING, max_position_embeddings=4096)
    with Site(tmp_path, model, _settings(SHORT)) as site:
        page, bob = site.page(), site.page("bob", "2")
        site.add(page, "a.txt", "An apple a day.", "A pear a week.")
        site.add(bob, "b.txt", "A fig a month.")
        assert site.handlers.memory(page).layers == ()
        last(site.handlers.ask(page, "What?"))
        view = site.handlers.memory(page)
        assert [layer.layer for layer in view.layers] == [0, 2]
        assert dict(view.settings)["window"] == "20"
        assert page.reading is not None
        assert page.reading.reader.receipt is not None
        for layer in view.layers:
            assert layer.tokens == page.reading.reader.receipt.tokens
            assert 0 < layer.slots_filled <= layer.slots == 16
            assert layer.high + layer.middle + layer.untouched == pytest.approx(1)
        assert view.bands[-1].last_page == 2
        last(site.handlers.ask(bob, "What?"))
        assert site.handlers.memory(page) == view


def test_on_and_off_are_compared(tmp_path: Path, tiny: Tiny) -> None:
    plain = tiny(max_position_embeddings=4096)
    banked = tiny(pace=ACTING, max_position_embeddings=4096)
    with Site(tmp_path, banked, _settings(SHORT, plain_model=lambda: plain)) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple a day.", "A pear a week.")
        view = last(site.handlers.compare(page, "What?"))
        assert view.available
        assert (view.on.state, view.off.state) == ("done", "done")
        assert view.on.plain != view.off.plain


def test_a_summary_goes_on_from_what_was_read(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(pace=ACTING, max_position_embeddings=4096)
    with Site(tmp_path, model, _settings(SHORT)) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple a day. " * 40)
        last(site.handlers.ask(page, "What?"))
        views = list(site.handlers.summary(page, document.id))
        assert views[-1].state == "done"
        read = [view.percent for view in views if view.state == "reading"]
        assert min(read, default=100) > 70
