from __future__ import annotations

import csv
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from page_doubles import PATIENCE, GatedModel, InThread, Site, last, until

from pacellm_rag.errors import ModelError, QueueFullError
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.every_document import export_every
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.views import AskView, CitationView, EveryRow, EveryView


class _Echo(ScriptedModel):
    """Answers with the fruit that its prompt holds."""

    _FRUITS = ("apple", "pear", "fig")

    def __init__(self, fails_at: str = "") -> None:
        super().__init__()
        self._fails_at = fails_at
        self._answering = threading.Lock()

    def stream(self, token_ids: Any, options: Any, **more: Any) -> Any:
        ids = {fruit: self.tokenizer.encode_text(fruit).token_ids[0] for fruit in self._FRUITS}
        found = [fruit for fruit, token in ids.items() if token in token_ids]
        if self._fails_at in found:
            raise QueueFullError("Too many wait. Try again later.")
        with self._answering:
            self.answers = [" and ".join(found) + " [D1 p1]."]
            return super().stream(token_ids, options, **more)


def _three(site: Site) -> Any:
    page = site.page()
    for fruit in _Echo._FRUITS:
        site.add(page, f"{fruit}.txt", f"An {fruit}.")
    return page


def test_every_document_is_asked_on_its_own(tmp_path: Path) -> None:
    with Site(tmp_path, _Echo()) as site:
        page = _three(site)
        views = list(site.handlers.ask_every(page, "Which fruit?"))
        final = views[-1]
        assert (final.state, final.status) == ("done", "3 of 3 documents answered")
        assert [(row.title, row.answer.text) for row in final.rows] == [
            ("apple", "apple."),
            ("pear", "pear."),
            ("fig", "fig."),
        ]
        documents = [document.id for document in site.handlers.documents(page)]
        assert [row.document_id for row in final.rows] == documents
        assert [row.answer.citations[0].document_id for row in final.rows] == documents
        assert all(view.state == "working" for view in views[:-1])
        assert site.handlers.history(page) == []


def test_only_ticked_documents_are_asked_with_their_pages(tmp_path: Path) -> None:
    with Site(tmp_path, _Echo()) as site:
        page = site.page()
        both = site.add(page, "both.txt", "An apple.", "A pear.")
        fig = site.add(page, "fig.txt", "A fig.")
        site.handlers.keep_pages(page, both.id, (2, 2))
        site.handlers.choose(page, fig.id, False)
        final = last(site.handlers.ask_every(page, "Which fruit?"))
        assert [(row.title, row.answer.plain) for row in final.rows] == [("both", "pear.")]


def test_one_document_that_fails_leaves_the_others_their_answers(tmp_path: Path) -> None:
    with Site(tmp_path, _Echo(fails_at="pear")) as site:
        final = last(site.handlers.ask_every(_three(site), "Which fruit?"))
        assert [row.answer.state for row in final.rows] == ["done", "failed", "done"]
        assert final.rows[1].answer.error == "Too many wait. Try again later."
        assert final.state == "done"


def test_a_document_that_does_not_fit_is_told_and_the_others_are_asked(tmp_path: Path) -> None:
    model = _Echo()
    model.context_window = model.tokenizer.context_window = 500
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "long.txt", "An apple. " * 200)
        site.add(page, "short.txt", "A pear.")
        final = last(site.handlers.ask_every(page, "Which fruit?"))
        assert "too many" in final.rows[0].answer.error
        assert final.rows[1].answer.state == "done"


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_no_more_documents_are_worked_on_than_the_settings_say(
    tmp_path: Path, at_once: int
) -> None:
    model = GatedModel(["Yes."])
    with Site(tmp_path, model, PageSettings(documents_at_once=at_once)) as site:
        page = _three(site)
        run = InThread(site.handlers.ask_every(page, "Which fruit?"))
        until(lambda: model.reads.arrived >= min(at_once, 3), "as many as may")
        run.wait(lambda v: v.rows, "there is something to see")
        states = [row.answer.state for row in run.views[-1].rows]
        assert states.count("reading") <= at_once
        assert model.reads.arrived == min(at_once, 3)
        model.reads.let()
        model.words.let()
        assert run.end().state == "done"


def test_stop_ends_all_rows(tmp_path: Path) -> None:
    model = GatedModel(["Yes."])
    with Site(tmp_path, model) as site:
        page = _three(site)
        run = InThread(site.handlers.ask_every(page, "Which fruit?"))
        until(lambda: model.reads.arrived == 2, "two are read")
        assert site.handlers.stop(page)
        final = run.end()
        assert final.state == "stopped"
        assert {row.answer.state for row in final.rows} == {"stopped"}
        until(lambda: model.read_cancels == 2, "both readings stop")
        assert not model.generations
        assert not page.busy


@pytest.mark.parametrize("question", ["", "x" * 20_001])
def test_a_question_that_can_not_be_put_is_refused(tmp_path: Path, question: str) -> None:
    with Site(tmp_path, _Echo()) as site:
        view = last(site.handlers.ask_every(_three(site), question))
        assert (view.state, view.rows) == ("failed", ())
        assert view.error


def test_the_table_is_exported_and_spreadsheets_take_it_for_text(tmp_path: Path) -> None:
    with Site(tmp_path, _Echo(fails_at="fig")) as site:
        handlers: Handlers = site.handlers
        view = last(handlers.ask_every(_three(site), "Which *fruit*?"))
        rows = list(csv.reader(io.StringIO(handlers.export_every(view, "csv"))))
        assert rows[0] == ["Document", "Answer", "Pages", "Quotes", "State"]
        assert rows[1] == ["apple", "apple.", "p. 1", "“An apple.”", "done"]
        assert rows[3] == ["fig", "Too many wait. Try again later.", "", "", "failed"]
        text = handlers.export_every(view, "markdown")
        assert "# Which &#42;fruit&#42;?" in text
        assert "## apple\n\napple.\n\n* p. 1: “An apple.”" in text
        hostile = EveryRow("id", '=HYPERLINK("http://evil")', AskView("done", plain="+1\n@x"))
        table = handlers.export_every(EveryView("q", (hostile,), "done"), "csv")
        cells = list(csv.reader(io.StringIO(table)))[1]
        assert cells[:2] == ['\'=HYPERLINK("http://evil")', "'+1\n@x"]


def test_names_questions_and_quotes_are_only_text_in_the_exported_markdown() -> None:
    live = "![x](http://evil/p) <img src=x> [a](b) http://evil.example $$x$$ www.evil.example"
    cited = CitationView("id", live, 1, live, live, True, 1.0, "model")
    answer = AskView("done", "Done", text="Yes.", plain="Yes.", citations=(cited,))
    failed = AskView("failed", "", error=live)
    rows = (EveryRow("id", live, answer), EveryRow("id", f"- {live}", failed))
    text = export_every(EveryView(f"1. {live}\n# {live}", rows, "done"), "markdown")
    for sign in ("![", "<img", "](", "://", "$$", "www.", "\n# ![", "\n- "):
        assert sign not in text, sign
    lines = [line for line in text.split("\n") if line]
    assert [line.split(" ")[0] for line in lines[:5]] == ["#", "##", "Yes.", "*", "##"]
    assert len(lines) == 6, "Each stays in its line."


# summary and suggestions


def test_a_summary_is_made_when_asked_for_and_cites_the_pages_it_names(tmp_path: Path) -> None:
    model = ScriptedModel(["It is about fruit [D1 p1]. It ends with a pear [D1 p2]."])
    with Site(tmp_path, model) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.", "A pear.")
        assert model.prompts == []
        view = last(site.handlers.summary(page, document.id))
        assert (view.state, view.plain) == ("done", "It is about fruit. It ends with a pear.")
        assert {c.page for c in view.citations} == {1, 2}
        assert {c.document_id for c in view.citations} == {document.id}
        assert site.handlers.history(page) == []
        few = model.tokenizer.encode_text("Answer in a few words").token_ids
        prompt = model.prompts[0]
        assert not any(prompt[i : i + len(few)] == few for i in range(len(prompt)))


def test_the_reading_of_a_summary_is_known_to_questions(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple. " * 50)
        last(site.handlers.summary(page, document.id))
        assert last(site.handlers.ask(page, "What?")).note == "Documents already read."


@pytest.mark.parametrize(
    ("written", "questions"),
    [
        ("1. What is it?\n2) Who wrote it?\n", ("What is it?", "Who wrote it?")),
        ("- What   is *it*?\n\nSure!\nWhat   is *it*?", ("What is *it*?",)),
        ("a?\nb?\nc?\nd?\ne?", ("a?", "b?", "c?", "d?")),
    ],
)
def test_suggestions_are_the_questions_that_the_model_wrote(
    tmp_path: Path, written: str, questions: tuple[str, ...]
) -> None:
    with Site(tmp_path, ScriptedModel([written])) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.")
        view = last(site.handlers.suggest_questions(page, document.id))
        assert (view.answer.state, view.questions) == ("done", questions)


def test_a_model_that_writes_no_questions_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["I can not.", ""])) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.")
        for _ in range(2):
            view = last(site.handlers.suggest_questions(page, document.id))
            assert (view.answer.state, view.questions) == ("failed", ())
            assert "no questions" in view.answer.error


def test_a_summary_can_be_stopped(tmp_path: Path) -> None:
    model = GatedModel(["one two three"])
    model.reads.let()
    model.words.let(1)
    with Site(tmp_path, model) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.")
        run = InThread(site.handlers.summary(page, document.id))
        until(lambda: model.words.arrived == 2, "a word is out")
        assert site.handlers.stop(page)
        assert (run.end().state, run.end().text) == ("stopped", "one")
        assert model.generations[0].closed


def test_a_document_too_long_for_a_summary_is_told(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(context_window=400)) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple. " * 200)
        view = last(site.handlers.summary(page, document.id))
        assert view.state == "failed"
        assert "too many" in view.error


# comparison


class _Banked(ScriptedModel):
    pace = object()


def test_a_comparison_needs_banks_and_a_model_without(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel()) as site:
        page = _three(site)
        view = last(site.handlers.compare(page, "What?"))
        assert not view.available
        assert "without PaceLLM's memory banks" in view.message
        site.model = _Banked()
        view = last(site.handlers.compare(page, "What?"))
        assert not view.available
        assert "no model without" in view.message
        assert not site.model.prompts


def test_both_models_answer_side_by_side(tmp_path: Path) -> None:
    plain = ScriptedModel(["Without."])
    settings = PageSettings(plain_model=lambda: plain)
    with Site(tmp_path, _Banked(["With."]), settings) as site:
        page = _three(site)
        view = last(site.handlers.compare(page, "What?"))
        assert view.available
        assert (view.on.text, view.off.text) == ("With.", "Without.")
        assert site.model.prompts == plain.prompts
        assert site.handlers.history(page) == []


def test_one_model_that_fails_leaves_the_other_its_answer(tmp_path: Path) -> None:
    def load() -> Any:
        raise ModelError("There is no room for a second model.")

    with Site(tmp_path, _Banked(["With."]), PageSettings(plain_model=load)) as site:
        view = last(site.handlers.compare(_three(site), "What?"))
        assert (view.on.text, view.off.state) == ("With.", "failed")
        assert view.off.error == "There is no room for a second model."


@pytest.mark.parametrize("banked", [True, False])
def test_a_comparison_waits_for_a_model_that_is_being_loaded(tmp_path: Path, banked: bool) -> None:
    loaded = threading.Event()
    plain = ScriptedModel(["Without."])
    model = _Banked(["With."]) if banked else ScriptedModel(["Never said."])
    with Site(tmp_path, model, PageSettings(plain_model=lambda: plain)) as site:
        site.load = lambda: loaded.wait(PATIENCE) and model
        run = InThread(site.handlers.compare(_three(site), "What?"))
        run.wait(lambda view: view.available, "something is shown meanwhile")
        loaded.set()
        view = run.end()
    assert view.off.text == "Without."
    assert view.on.text == ("With." if banked else "")
    assert ("runs without PaceLLM's memory banks" in view.on.error) is not banked
