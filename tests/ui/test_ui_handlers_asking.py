from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last, until

from pacellm_rag.errors import (
    QueueFullError,
)
from pacellm_rag.protocols import ReadProgress
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.page_settings import PageSettings

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")
ANSWER = "The contract ends in 2030 [D1 p2]."


def _words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def test_an_answer_ends_with_its_citations_and_is_stored(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel([ANSWER])) as site:
        page = site.page()
        document = site.add(page, "contract.txt", *PAGES)
        view = last(site.handlers.ask(page, "When does it end?"))
        assert (view.state, view.text, view.error) == ("done", "The contract ends in 2030.", "")
        (citation,) = view.citations
        assert (citation.document_id, citation.page, citation.verified) == (document.id, 2, True)
        asked, answered = site.handlers.history(page)
        assert (asked.id, answered.id) == (view.question_id, view.answer_id)
        assert answered.text == "The contract ends in 2030."
        assert answered.citations == (citation.as_dict(),)
        assert answered.details["finish_reason"] == "stop"
        assert answered.details["usage"]["completion_tokens"] == 7


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
        second = last(site.handlers.ask(page, "And now?"))
        assert (second.state, second.question_id) == ("failed", "")
        assert "Stop it" in second.error
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
        refused = last(site.handlers.ask(two, "Me too?"))
        assert "another window" in refused.error
        model.words.let()
        assert run.end().state == "done"
        assert last(site.handlers.ask(two, "Me too?")).state == "done"


def test_the_second_question_says_that_the_documents_are_read(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel([ANSWER])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        first = list(site.handlers.ask(page, "When?"))[-1]
        assert first.note == ""
        second = list(site.handlers.ask(page, "When?"))
        assert second[-1].note == "Documents already read."
        assert "reading" not in [view.state for view in second]


def test_a_reading_of_somebody_else_counts_as_read(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel([ANSWER])) as site:
        for owner in ("ann", "bob"):
            page = site.page(owner, owner)
            site.add(page, "a.txt", *PAGES)
            note = last(site.handlers.ask(page, "When?")).note
        assert note == "Documents already read."


def test_follow_ups_are_sent_with_what_was_said(tmp_path: Path) -> None:
    model = ScriptedModel([ANSWER, "In May."])
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        last(site.handlers.ask(page, "When does it end?"))
        last(site.handlers.ask(page, "In which month?"))
        prompt = model.prompts[1]
        earlier = model.tokenizer.encode_text(ANSWER).token_ids
        assert _contains(prompt, earlier), "with the marker, as the model has written it"
        assert _contains(prompt, model.tokenizer.encode_text("When does it end?").token_ids)


def test_markers_of_other_documents_are_not_sent_back(tmp_path: Path) -> None:
    model = ScriptedModel([ANSWER, "In May."])
    with Site(tmp_path, model) as site:
        page = site.page()
        document = site.add(page, "a.txt", *PAGES)
        site.add(page, "b.txt", "Other things.")
        site.handlers.choose(page, site.handlers.documents(page)[1].id, False)
        last(site.handlers.ask(page, "When does it end?"))
        site.handlers.move(page, document.id, 1)
        site.handlers.choose(page, site.handlers.documents(page)[0].id, True)
        last(site.handlers.ask(page, "In which month?"))
        assert not _contains(model.prompts[1], model.tokenizer.encode_text(ANSWER).token_ids)
        clean = model.tokenizer.encode_text("The contract ends in 2030.").token_ids
        assert _contains(model.prompts[1], clean)


def _contains(tokens: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens)))


def test_a_question_without_an_answer_is_not_sent_back(tmp_path: Path) -> None:
    class FailsOnce(ScriptedModel):
        failed = False

        def stream(self, *args: Any, **more: Any) -> Any:
            if not self.failed:
                self.failed = True
                raise QueueFullError("257 requests wait; no more than 256 may. Try again later.")
            return super().stream(*args, **more)

    model = FailsOnce([ANSWER])
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        failed = last(site.handlers.ask(page, "Unheard question?"))
        assert "257 requests wait" in failed.error
        last(site.handlers.ask(page, "When?"))
        unheard = model.tokenizer.encode_text("Unheard question?").token_ids
        assert not _contains(model.prompts[0], unheard)
        assert [role for role, _ in site.said(page)] == ["user", "assistant"] * 2


@pytest.mark.parametrize("which", ["question", "answer"])
def test_retry_takes_the_turn_and_all_that_follow_back(tmp_path: Path, which: str) -> None:
    model = ScriptedModel(["First.", "Second.", "Third."])
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        first = last(site.handlers.ask(page, "One?"))
        last(site.handlers.ask(page, "Two?"))
        turn = first.question_id if which == "question" else first.answer_id
        view = last(site.handlers.retry(page, turn))
        assert view.text == "Third."
        assert site.said(page) == [("user", "One?"), ("assistant", "Third.")]
        assert not _contains(model.prompts[2], model.tokenizer.encode_text("Two?").token_ids)


def test_an_edited_question_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["First.", "Second.", "Third."])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        last(site.handlers.ask(page, "One?"))
        second = last(site.handlers.ask(page, "Two?"))
        last(site.handlers.retry(page, second.question_id, "Zwei?"))
        assert site.said(page) == [
            ("user", "One?"),
            ("assistant", "First."),
            ("user", "Zwei?"),
            ("assistant", "Third."),
        ]


def test_a_retry_that_is_refused_takes_nothing_back(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["First."], context_window=400)) as site:
        page = site.page()
        site.handlers.set_options(page, answer_tokens=50)
        site.add(page, "a.txt", *PAGES)
        view = last(site.handlers.ask(page, "One?"))
        before = site.said(page)
        for question in ("", "  ", _words(500)):
            refused = last(site.handlers.retry(page, view.question_id, question))
            assert (refused.state, refused.status) == ("failed", "Not sent")
        assert "no such turn" in last(site.handlers.retry(page, "unknown")).error
        assert site.said(page) == before


def test_what_does_not_fit_is_refused_before_anything_is_stored_or_read(tmp_path: Path) -> None:
    model = ScriptedModel([ANSWER], context_window=500)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", _words(400))
        view = last(site.handlers.ask(page, "When?"))
        assert (view.state, view.question_id) == ("failed", "")
        assert view.error.startswith("The question was not sent: ")
        assert "tokens too many" in view.error
        assert (site.said(page), model.prefills, model.prompts) == ([], [], [])
        assert site.handlers.conversations(page) == []


@pytest.mark.parametrize(
    ("documents", "question", "told"),
    [
        (0, "When?", "no document"),
        (1, "", "empty"),
        (1, " \n", "empty"),
        (1, "x" * 20_001, "20,001 characters"),
    ],
)
def test_what_can_not_be_asked_is_refused_in_words(
    tmp_path: Path, documents: int, question: str, told: str
) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        for _ in range(documents):
            site.add(page, "a.txt", *PAGES)
        view = last(site.handlers.ask(page, question))
        assert (view.state, view.status, view.question_id) == ("failed", "Not sent", "")
        assert told in view.error


def test_no_ticked_document_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = site.page()
        document = site.add(page, "a.txt", *PAGES)
        site.handlers.choose(page, document.id, False)
        assert "ticked" in last(site.handlers.ask(page, "When?")).error


def test_a_cut_off_answer_says_so(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["one two three"])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        site.handlers.set_options(page, answer_tokens=2)
        view = last(site.handlers.ask(page, "Count."))
        assert view.text == "one two"
        assert "cut off at 2 tokens" in view.note


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


def test_hostile_words_of_the_model_are_made_safe(tmp_path: Path) -> None:
    words = "![x](https://evil.example/?q=1) <script>alert(1)</script> [here](https://evil.example)"
    with Site(tmp_path, ScriptedModel([words])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        for view in site.handlers.ask(page, "When?"):
            assert "](https" not in view.text
            assert "<script" not in view.text


def _page_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pacellm-page"]
