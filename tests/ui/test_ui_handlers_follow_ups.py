"""Follow-ups: what the model sees of what was said, asking again, editing a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_doubles import Site, last

from pacellm_rag.errors import QueueFullError
from pacellm_rag.testing import ScriptedModel

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")
ANSWER = "The contract ends in 2030 [D1 p2]."


def _words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


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


def _contains(tokens: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens)))
