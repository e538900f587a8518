from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last, put, until

from pacellm_rag.errors import ConfigurationError, PaceLLMError
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.job import Job, told
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.session import BusyError, Session, Sessions

NAMES = ("pacellm-page", "pacellm-idle-pages", "pacellm-page-model")


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in NAMES]


@pytest.fixture(autouse=True)
def _no_threads_stay() -> Iterator[None]:
    yield
    until(lambda: not _threads(), "all threads of pages end")


# jobs


def _job(work: Any, look: Any = lambda: "view", stopped: Any = lambda: None, rate: float = 10.0):
    return Job(work, look, stopped, updates_per_second=rate)


def test_a_job_is_not_begun_before_its_views_are_asked_for() -> None:
    begun = []
    views = _job(lambda: begun.append(1)).views()
    assert not begun
    assert next(views) == "view", "There is something to see at once."
    assert list(views) == []
    assert begun == [1]


def test_changes_that_come_faster_than_the_rate_are_seen_together() -> None:
    seen: list[int] = []
    job: Job[int]

    def work() -> None:
        for number in range(200):
            seen.append(number)
            job.touch()
            time.sleep(0.001)

    job = _job(work, lambda: len(seen), rate=20.0)
    views = list(job.views())
    assert views[-1] == 200
    assert len(views) <= 20 * 0.2 * 3


def test_a_job_that_was_stopped_before_it_began_does_nothing() -> None:
    begun: list[int] = []
    job = _job(lambda: begun.append(1))
    job.stop()
    assert list(job.views()) == ["view"]
    assert begun == []


def test_stopping_is_told_once_also_from_several_threads() -> None:
    calls: list[int] = []
    release = threading.Event()
    job = _job(release.wait, stopped=lambda: calls.append(1))
    run = InThread(job.views())
    threads = [threading.Thread(target=job.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: not run._thread.is_alive(), "the generator ends")
    assert calls == [1]
    release.set()
    assert job.wait(5)


def test_errors_on_purpose_are_told_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    assert told(PaceLLMError("Use less.")) == "Use less."
    assert not caplog.records
    assert "secret" not in told(KeyError("secret"))
    assert "KeyError" in told(KeyError("secret"))
    assert "Something went wrong" in told(PaceLLMError(""))


# sessions


def test_page_settings_are_checked() -> None:
    for name in ("files_at_once", "idle_seconds", "updates_per_second", "documents_at_once"):
        with pytest.raises(ConfigurationError, match=name):
            PageSettings(**{name: 0})  # type: ignore[arg-type]


def _sessions(idle: float = 3600.0) -> Sessions:
    return Sessions(
        lambda owner, page: Session(owner, page, GenerationOptions(), None), idle_seconds=idle
    )


def test_a_page_has_one_session_also_when_many_ask_at_once() -> None:
    sessions = _sessions()
    found: list[Session] = []
    threads = [
        threading.Thread(target=lambda: found.append(sessions.get("a", "p"))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert len(sessions) == 1
    assert sessions.get("b", "p") is not found[0]
    sessions.close()
    assert len(sessions) == 0


def test_idle_pages_are_forgotten_and_busy_ones_are_not() -> None:
    sessions = _sessions(idle=0.05)
    release = threading.Event()
    busy = sessions.get("a", "busy")
    with busy.answering(_job(release.wait)):
        idle = sessions.get("a", "idle")
        until(lambda: idle.left, "the idle page is forgotten")
        assert not busy.left
        assert sessions.get("a", "busy") is busy
    until(lambda: busy.left, "nobody has heard of it since")
    assert len(sessions) == 0


def test_a_page_that_rests_does_not_hold_on_to_the_memory_of_its_documents(
    tmp_path: Path,
) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."]), PageSettings(reading_seconds=0.1)) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        last(site.handlers.ask(page, "What?"))
        until(lambda: page.reading is None, "the documents are let go")
        assert site.page() is page
        assert last(site.handlers.ask(page, "What?")).note == "Documents already read."


def test_a_page_that_was_left_does_no_more_work() -> None:
    sessions = _sessions()
    session = sessions.get("a", "p")
    sessions.leave("a", "p")
    sessions.leave("a", "p")
    with pytest.raises(BusyError, match="Reload"), session.answering(_job(lambda: None)):
        pass
    assert sessions.get("a", "p") is not session
    sessions.close()


def test_leaving_in_the_middle_of_everything_ends_it(tmp_path: Path) -> None:
    model = GatedModel(["one two three"])
    model.reads.let()
    model.words.let(1)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", "Text.")
        run = InThread(site.handlers.ask(page, "Count."))
        until(lambda: model.words.arrived == 2, "a word is out")
        site.handlers.leave("ann", "page")
        assert run.end().state == "stopped"
        assert model.generations[0].closed
        assert page.reading is None
        assert site.handlers.open_pages == 0
        again = site.page("ann", "reloaded")
        assert site.said(again) == [("user", "Count."), ("assistant", "one")]


def test_closing_the_server_ends_all_work_of_all_pages(tmp_path: Path) -> None:
    model = GatedModel(["Yes."])
    with Site(tmp_path, model) as site:
        runs = []
        for number in range(5):
            page = site.page(f"owner{number}", "p")
            site.add(page, "a.txt", f"Text {number}.")
            runs.append(InThread(site.handlers.ask(page, "What?")))
        until(lambda: model.reads.arrived == 5, "all are read")
        site.handlers.close()
        assert [run.end().state for run in runs] == ["stopped"] * 5
        until(lambda: model.read_cancels == 5, "all readings stop")


def test_what_a_page_held_is_free_once_it_is_left(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page = site.page()
        site.add(page, "a.txt", *["Text. " * 100] * 20)
        last(site.handlers.ask(page, "What?"))
        last(site.handlers.ask_every(page, "What?"))
        reading = weakref.ref(page.reading)
        session = weakref.ref(page)
        site.handlers.leave("ann", "page")
        del page
        until(lambda: not _threads(), "threads end")
        gc.collect()
        assert reading() is None
        assert session() is None


def test_a_model_that_takes_long_to_load_holds_up_answers_only(tmp_path: Path) -> None:
    there = threading.Event()
    model = ScriptedModel(["Yes."])

    def load() -> ScriptedModel:
        assert there.wait(30)
        return model

    with Site(tmp_path, model) as site:
        site.load = load
        page = site.page()
        document = site.add(page, "a.txt", "Text.")
        assert document.tokens is None
        run = InThread(site.handlers.ask(page, "What?"))
        run.wait(lambda v: v.status == "Loading the model", "it is told")
        meter = site.handlers.meter(page)
        assert "being loaded" in meter.message
        assert [line.title for line in meter.documents] == ["a"]
        assert "being loaded" in site.handlers.memory(page).layers_note
        there.set()
        assert run.end().state == "done"
        assert site.handlers.meter(page).fits


def test_an_answer_that_waits_for_the_model_to_load_can_be_stopped(tmp_path: Path) -> None:
    there = threading.Event()

    def load() -> ScriptedModel:
        assert there.wait(30)
        return ScriptedModel()

    with Site(tmp_path, None) as site:
        site.load = load
        page = site.page()
        site.add(page, "a.txt", "Text.")
        run = InThread(site.handlers.ask(page, "What?"))
        run.wait(lambda v: v.status == "Loading the model", "it is told")
        assert site.handlers.stop(page)
        assert run.end().state == "stopped"
        there.set()
        until(lambda: "pacellm-page" not in _threads(), "the thread ends")
        assert site.handlers.conversations(page) == []


# twenty at once


def _use(site: Site, number: int, faults: list[str], rounds: int = 3) -> None:
    """One visitor: uploads, questions, a stop, a table; everything must be the own."""
    owner, name = f"owner{number}", f"page{number}"
    fruit = f"fruit{number}x"
    try:
        page = site.page(owner, name)
        for file in range(2):
            upload = put(
                site.folder / "up" / name, f"{file}.txt", f"A {fruit} and {file}.".encode()
            )
            report = last(site.handlers.add_files(page, [upload]))
            assert report.state == "ready", report
        for turn in range(rounds):
            view = last(site.handlers.ask(page, f"Question {turn} of {number}?"))
            assert view.state == "done", view
            assert view.text == f"{fruit}.", view.text
            own = {d.id for d in site.handlers.documents(page)}
            assert {c.document_id for c in view.citations} <= own
            assert site.handlers.meter(page).fits
        stopped = site.handlers.ask(page, "Stop this.")
        view = next(stopped)
        site.handlers.stop(page)
        for view in stopped:  # noqa: B007 - the last one counts; it may have been the first
            pass
        assert view.final
        table = last(site.handlers.ask_every(page, "Which?"))
        assert [row.answer.text for row in table.rows] == [f"{fruit}.", f"{fruit}."]
        for role, text in site.said(page):
            assert f"of {number}?" in text or text in (f"{fruit}.", "Stop this.", fruit, ""), text
            assert role in ("user", "assistant")
        assert len(site.handlers.documents(page)) == 2
        site.handlers.leave(owner, name)
    except BaseException as error:
        faults.append(f"{number}: {error!r}")


class _EchoesFruit(ScriptedModel):
    """Answers with the fruit of its own prompt, slowly."""

    def __init__(self, visitors: int) -> None:
        super().__init__()
        self._fruits = {
            self.tokenizer.encode_text(f"fruit{n}x").token_ids[0]: f"fruit{n}x"
            for n in range(visitors)
        }
        self._one = threading.Lock()

    def prefill(self, token_ids: Any, **more: Any) -> Any:
        time.sleep(0.002)
        with self._one:
            return super().prefill(token_ids, **more)

    def stream(self, token_ids: Any, options: Any, **more: Any) -> Any:
        found = {self._fruits[token] for token in token_ids if token in self._fruits}
        assert len(found) == 1, "A prompt holds the documents of one owner."
        with self._one:
            self.answers = [f"{found.pop()} [D1 p1]."]
            return super().stream(token_ids, options, **more)


def _living_sessions() -> list[Session]:
    return [each for each in gc.get_objects() if type(each) is Session]


def test_twenty_pages_at_once_mix_nothing_up_and_leave_nothing_behind(tmp_path: Path) -> None:
    visitors = 20
    others = weakref.WeakSet(_living_sessions())  # of other tests
    with Site(tmp_path, _EchoesFruit(visitors)) as site:
        faults: list[str] = []
        threads = [
            threading.Thread(target=_use, args=(site, number, faults)) for number in range(visitors)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not faults, faults
        assert site.handlers.open_pages == 0
        until(lambda: not _threads(), "all threads end")
        gc.collect()
        assert [each for each in _living_sessions() if each not in others] == []
