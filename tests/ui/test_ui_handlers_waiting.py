"""What is seen while an answer is waited for: the queue, the pages read, the words so far."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

from page_doubles import GatedModel, InThread, Site, until

from pacellm_rag.protocols import ReadProgress
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.page_settings import PageSettings

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")
ANSWER = "The contract ends in 2030 [D1 p2]."


def _words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def test_reading_is_told_in_pages_with_a_share_and_a_time(tmp_path: Path) -> None:
    model = GatedModel([ANSWER], window=100, context_window=8192)
    model.words.let()
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "long.txt", *[_words(50) for _ in range(8)])  # 100 tokens a page
        run = InThread(site.handlers.ask(page, "What is it?"))
        first = run.wait(lambda v: v.state == "reading", "reading begins")
        assert (first.pages_done, first.pages_total, first.seconds_left) == (0, 8, None)
        assert first.status == "Reading page 1 of 8, 0 %"
        for _ in range(4):
            arrived = model.reads.arrived
            model.reads.let(1)
            until(lambda arrived=arrived: model.reads.arrived > arrived, "a window is read")
        half = run.wait(lambda v: v.percent > 40, "400 tokens are read")
        assert half.pages_done in (2, 3)  # of the 400 tokens some are instructions and markers
        assert half.status.startswith(f"Reading page {half.pages_done + 1} of 8, ")
        assert "about" in half.status
        assert half.status.endswith("s left")
        model.reads.let()
        assert run.end().state == "done"
        done = [v.pages_done for v in run.views if v.state == "reading"]
        assert done == sorted(done)


def test_the_place_in_the_queue_is_told(tmp_path: Path) -> None:
    model = GatedModel([ANSWER], queued=2)
    model.words.let()
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.position == 2, "second in the queue")
        model.reads.let(1)
        view = run.wait(lambda v: v.position == 1, "first in the queue")
        assert (view.state, view.status) == ("queued", "Waiting, number 1 in the queue")
        model.reads.let()
        assert run.end().position == 0


def test_the_place_is_told_also_where_only_the_question_waits(tmp_path: Path) -> None:
    """The documents are known, so that only the answer's own request stands in the queue."""
    seen = threading.Event()

    class Waits(ScriptedModel):
        def stream(self, token_ids: Any, options: Any, *, progress: Any = None, **more: Any) -> Any:
            progress(ReadProgress(0, len(token_ids), 0.0, None, 3))
            assert seen.wait(10)
            return super().stream(token_ids, options, **more)

    with Site(tmp_path, Waits([ANSWER])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.position == 3, "third in the queue")
        seen.set()
        assert run.end().state == "done"


def test_no_more_than_ten_views_a_second(tmp_path: Path) -> None:
    model = ScriptedModel([_words(3000)], context_window=20_000)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        site.handlers.set_options(page, answer_tokens=4000)
        started = time.monotonic()
        views = list(site.handlers.ask(page, "Count."))
        took = time.monotonic() - started
        assert len(views) <= 10 * took + 3
        assert views[-1].text == _words(3000)
        assert views[-1].final
        assert not any(view.final for view in views[:-1])


def test_text_grows_while_it_streams_and_shows_no_markers(tmp_path: Path) -> None:
    model = GatedModel(["The contract ends [D1 p2] in 2030."])
    model.reads.let()
    settings = PageSettings(updates_per_second=1000)
    with Site(tmp_path, model, settings) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        for count in itertools.count(1):
            model.words.let(1)
            if count == 9:
                break
            time.sleep(0.01)
        run.end()
        texts = [view.text for view in run.views if view.state == "answering"]
        assert len(texts) > 2
        assert all("[D" not in text for text in texts)
        for shorter, longer in itertools.pairwise(texts):
            assert longer.startswith(shorter.rstrip("."))
