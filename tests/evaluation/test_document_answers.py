from __future__ import annotations

import threading

import pytest

from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import CancelledError, ConfigurationError
from pacellm_rag.evaluation.document_answers import answer_questions, declines
from pacellm_rag.evaluation.types import WHOLE
from pacellm_rag.testing import ScriptedModel

DOCUMENTS = (
    Document("a", "Trees", (Page(1, "1", "The oak is green."), Page(2, "2", "The elm is red."))),
    Document("b", "Birds", (Page(1, "1", "The owl is grey."), Page(2, "2", "The jay is blue."))),
)
QUESTIONS = ["What colour is the elm?", "What colour is the jay?", "What colour is the fox?"]
ANSWERS = ["Red. [D1 p2]", "Blue [D2 p2]", NOT_ANSWERED]


def ask(model: ScriptedModel, reading: str = WHOLE, questions: list[str] = QUESTIONS) -> list:
    return list(answer_questions(model, DOCUMENTS, questions, reading=reading, max_new_tokens=16))


def prompt(model: ScriptedModel, index: int) -> str:
    words = model.tokenizer.encode_text
    texts = [*(page.text for d in DOCUMENTS for page in d.pages)]
    return "|".join(t for t in texts if _within(words(t).token_ids, model.prompts[index]))


def _within(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def test_questions_are_asked_one_after_the_other_on_one_reading() -> None:
    model = ScriptedModel(ANSWERS)
    answers = ask(model)
    assert [answer.text for answer in answers] == ["Red.", "Blue", NOT_ANSWERED]
    assert [answer.position for answer in answers] == [0, 1, 2]
    assert len(model.prefills) == 1
    assert [len(answer.citations) for answer in answers] == [1, 1, 0]
    assert [(c.document, c.title, c.page, c.verified) for a in answers for c in a.citations] == [
        (0, "Trees", 2, True), (1, "Birds", 2, True),
    ]  # fmt: skip
    assert all(answer.seconds > 0 for answer in answers)
    assert [answer.completion_tokens for answer in answers] == [3, 3, 5]
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_what_the_first_question_read_is_not_counted_as_reused() -> None:
    model = ScriptedModel(ANSWERS)
    first, second, _ = ask(model)
    assert first.tokens_reused == 0
    assert second.tokens_reused == len(model.prefills[0])
    assert second.tokens_reused < second.prompt_tokens == len(model.prompts[1])
    again, *_ = ask(model)  # another reader on a model that knows the text
    assert again.tokens_reused == len(model.prefills[0])


def test_nothing_is_asked_before_somebody_wants_the_answer() -> None:
    model = ScriptedModel(ANSWERS)
    answers = answer_questions(model, DOCUMENTS, QUESTIONS, max_new_tokens=16)
    assert model.prompts == []
    next(answers)
    assert len(model.prompts) == 1


def test_chunks_are_chosen_anew_for_every_question_and_cited_as_pages_of_the_whole() -> None:
    model = ScriptedModel(["Red [D1 p2]", "Blue [D1 p2]", "None."])
    answers = ask(model, "bm25:1")
    assert prompt(model, 0) == "The elm is red."
    assert prompt(model, 1) == "The jay is blue."
    assert len(model.prefills) == 3
    assert [(c.document, c.page) for c in answers[0].citations] == [(0, 2)]
    assert [(c.document, c.page) for c in answers[1].citations] == [(1, 2)]  # D1 of what is left
    assert [answer.tokens_left_out for answer in answers] == [0, 0, 0]


def test_a_window_is_read_once_and_says_what_it_leaves_out() -> None:
    model = ScriptedModel(ANSWERS)
    answers = ask(model, "window:20")
    assert prompt(model, 0) == prompt(model, 1) == "The jay is blue."
    assert len(model.prefills) == 1
    assert {answer.tokens_left_out for answer in answers} == {answers[0].tokens_left_out}
    assert answers[0].tokens_left_out > 20


def test_an_unknown_reading_is_refused_and_a_cancelled_one_stops() -> None:
    with pytest.raises(ConfigurationError, match="no way of reading"):
        ask(ScriptedModel(), "best")
    stop = threading.Event()
    answers = answer_questions(
        ScriptedModel(ANSWERS), DOCUMENTS, QUESTIONS, max_new_tokens=16, cancel=stop
    )
    next(answers)
    stop.set()
    with pytest.raises(CancelledError):
        next(answers)


@pytest.mark.parametrize(
    ("text", "claims_nothing"),
    [
        (NOT_ANSWERED, True),
        ("the documents do NOT say", True),
        (f"{NOT_ANSWERED} But I think so.", True),
        ("", True),
        (" . ", True),
        ("I think the documents do not say.", False),
        ("The documents say so.", False),
        ("Yes", False),
    ],
)
def test_an_answer_declines_with_the_agreed_words_or_none(text: str, claims_nothing: bool) -> None:
    assert declines(text) is claims_nothing
