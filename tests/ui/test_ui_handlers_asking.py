"""One question: refused before it is sent, or answered, cited and stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_doubles import Site, last

from pacellm_rag.testing import ScriptedModel

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


def test_hostile_words_of_the_model_are_made_safe(tmp_path: Path) -> None:
    words = "![x](https://evil.example/?q=1) <script>alert(1)</script> [here](https://evil.example)"
    with Site(tmp_path, ScriptedModel([words])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        for view in site.handlers.ask(page, "When?"):
            assert "](https" not in view.text
            assert "<script" not in view.text
