from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last

from pacellm_rag.errors import (
    DeadlineExceededError,
    InsufficientMemoryError,
    ModelError,
    QueueFullError,
)
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.library import LibraryLimits

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")
ANSWER = "The contract ends in 2030 [D1 p2]."


ERRORS = [
    QueueFullError("256 requests wait already. Try again later."),
    DeadlineExceededError("The answer took longer than 5 s. Allow more."),
    InsufficientMemoryError("It takes 9 GiB, 1 GiB are free.", needed_bytes=9, free_bytes=1),
    ModelError("The model is damaged. Install it again."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["model", "prefill", "stream", "words"])
def test_errors_of_the_engine_come_as_their_message(
    tmp_path: Path, error: Exception, where: str
) -> None:
    model = _Failing(error, where)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        model.armed = True
        if where == "model":
            site.model = None
            site.load = model.load
        view = last(site.handlers.ask(page, "When?"))
        assert (view.state, view.error) == ("failed", str(error))
        assert view.text == ("one two" if where == "words" else "")
        assert not page.busy
        if where == "model":
            assert view.question_id == ""
        else:
            details = site.handlers.history(page)[-1].details
            assert (details["error"], details["finish_reason"]) == (str(error), "failed")


def test_a_bug_is_logged_and_told_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _Failing(RuntimeError("shape mismatch in /opt/secret/path"), "stream")
    model.armed = True
    with Site(tmp_path, model) as site, caplog.at_level(logging.ERROR):
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        view = last(site.handlers.ask(page, "When?"))
    assert view.error.startswith("Something went wrong on the server (RuntimeError).")
    assert "secret" not in view.error
    assert "secret" in caplog.text


class _Failing(ScriptedModel):
    def __init__(self, error: Exception, where: str) -> None:
        super().__init__(["one two three"])
        self.error, self.where, self.armed = error, where, False

    def load(self) -> Any:
        raise self.error

    def prefill(self, token_ids: Any, **more: Any) -> Any:
        if self.armed and self.where == "prefill":
            raise self.error
        return super().prefill(token_ids, **more)

    def stream(self, token_ids: Any, options: GenerationOptions, **more: Any) -> Any:
        if self.armed and self.where == "stream":
            raise self.error
        generation = super().stream(token_ids, options, **more)
        if self.armed and self.where == "words":
            error = self.error

            class Breaks(type(generation)):  # type: ignore[misc]
                def __next__(self) -> str:
                    if len(self._ends) == 2:
                        raise error
                    return str(super().__next__())

            generation.__class__ = Breaks
        return generation


def test_an_answer_that_can_not_be_stored_is_shown_with_why(tmp_path: Path) -> None:
    model = GatedModel([ANSWER])
    model.reads.let()
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.question_id, "the question is stored")
        site.library.delete_conversation("ann", site.handlers.conversations(page)[0].id)
        model.words.let()
        view = run.end()
        assert (view.state, view.text) == ("failed", "The contract ends in 2030.")
        assert view.error
        assert site.handlers.history(page) == []


def test_a_conversation_that_is_full_takes_no_question(tmp_path: Path) -> None:
    model = ScriptedModel([ANSWER])
    with Site(tmp_path, model, limits=LibraryLimits(turns=2)) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        last(site.handlers.ask(page, "When?"))
        view = last(site.handlers.ask(page, "And then?"))
        assert (view.state, view.status, view.question_id) == ("failed", "Not sent", "")
        assert view.error.count("limit of this server is 2") == 1
        assert len(site.said(page)) == 2
        assert len(model.prompts) == 1
