"""Stopping an answer at any point, and one answer at a time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last, until

from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.session import BusyError

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")
ANSWER = "The contract ends in 2030 [D1 p2]."


def test_stop_while_waiting_in_the_queue_ends_the_turn(tmp_path: Path) -> None:
    model = GatedModel([ANSWER], queued=1)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.position == 1, "in the queue")
        assert site.handlers.stop(page)
        assert run.end().state == "stopped"
        assert not model.prefills


def test_stop_while_reading_stops_the_reading_and_the_next_page_has_its_turn(
    tmp_path: Path,
) -> None:
    model = GatedModel([ANSWER], window=10)
    model.words.let()
    with Site(tmp_path, model) as site:
        ann, bob = site.page("ann", "1"), site.page("bob", "2")
        site.add(ann, "a.txt", *PAGES)
        site.add(bob, "b.txt", *PAGES)
        run = InThread(site.handlers.ask(ann, "When?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        started = time.monotonic()
        assert site.handlers.stop(ann)
        view = run.end()
        assert time.monotonic() - started < 2
        assert (view.state, view.status, view.text) == ("stopped", "Stopped", "")
        until(lambda: model.read_cancels == 1, "the model was told to stop")
        assert not model.generations
        model.reads.let()
        assert last(site.handlers.ask(bob, "When?")).state == "done"
        assert len(model.generations) == 1


def test_stop_while_answering_closes_the_stream_and_keeps_the_words(tmp_path: Path) -> None:
    model = GatedModel(["one two three four five"])
    model.reads.let()
    model.words.let(2)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "Count."))
        until(lambda: model.words.arrived == 3, "two words are out")
        assert site.handlers.stop(page)
        view = run.end()
        assert (view.state, view.text) == ("stopped", "one two")
        assert model.generations[0].closed
        until(lambda: model.words.passed == 2, "no further word is made")
        assert site.said(page) == [("user", "Count."), ("assistant", "one two")]
        assert site.handlers.history(page)[1].details["finish_reason"] == "stopped"
        model.words.let()
        assert last(site.handlers.ask(page, "Count.")).state == "done"


def test_a_model_that_does_not_hear_the_signal_does_not_hold_the_page(tmp_path: Path) -> None:
    """A window of tokens takes as long as it takes; the page is free at once."""
    release = threading.Event()

    class Deaf(ScriptedModel):
        def prefill(self, token_ids: Any, **more: Any) -> Any:
            release.wait(10)
            return super().prefill(token_ids, **more)

    with Site(tmp_path, Deaf([ANSWER])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.question_id, "the question is stored")
        started = time.monotonic()
        assert site.handlers.stop(page)
        assert run.end().state == "stopped"
        assert time.monotonic() - started < 2
        assert not page.busy
        release.set()
        until(lambda: not _page_threads(), "the thread ends")
        assert site.said(page) == [("user", "When?"), ("assistant", "")]


def test_closing_the_generator_stops_the_work(tmp_path: Path) -> None:
    model = GatedModel([ANSWER], window=10)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        views = site.handlers.ask(page, "When?")
        next(views)
        views.close()  # type: ignore[attr-defined]
        until(lambda: not page.busy, "the page is free")
        assert not site.handlers.stop(page)
        until(lambda: not _page_threads(), "the thread ends")
        assert not model.generations


def test_stop_without_work_says_so(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        assert not site.handlers.stop(site.page())


def test_a_page_has_one_answer_at_a_time(tmp_path: Path) -> None:
    model = GatedModel([ANSWER])
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        for views in (
            site.handlers.ask(page, "And now?"),
            site.handlers.retry(page, site.handlers.history(page)[-1].id),
            site.handlers.ask_every(page, "And now?"),
            site.handlers.compare(page, "And now?"),
            site.handlers.watch_pages(page),
            site.handlers.summary(page, site.handlers.documents(page)[0].id),
        ):
            with pytest.raises(BusyError, match="Stop it"):
                next(views)
        model.reads.let()
        model.words.let()
        assert run.end().state == "done"
        assert [text for role, text in site.said(page) if role == "user"] == ["When?"]


def test_two_windows_of_one_owner_do_not_answer_in_the_same_conversation(tmp_path: Path) -> None:
    model = GatedModel([ANSWER])
    model.reads.let()
    model.words.let()
    with Site(tmp_path, model) as site:
        one = site.page("ann", "1")
        site.add(one, "a.txt", *PAGES)
        last(site.handlers.ask(one, "When?"))
        two = site.page("ann", "2")
        assert two.conversation_id == one.conversation_id
        model.words._allowed = 0
        run = InThread(site.handlers.ask(one, "Again?"))
        run.wait(lambda v: v.question_id, "the question is stored")
        with pytest.raises(BusyError, match="another window"):
            next(site.handlers.ask(two, "Me too?"))
        model.words.let()
        assert run.end().state == "done"
        assert last(site.handlers.ask(two, "Me too?")).state == "done"


def _page_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pacellm-page"]
