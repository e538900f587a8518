from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.document_questions import score_answer
from pacellm_rag.evaluation.packed import PackedSuite
from pacellm_rag.evaluation.types import Group, Suite
from pacellm_rag.testing import ScriptedModel, WordTokenizer

TOKENIZER = WordTokenizer()


def write(path: Path, *, own: bool = False) -> Path:
    lines = []
    for title in ("Oak", "Elm", "Ash", "Fir", "Yew", "Bay"):
        for number in range(3):
            thing = f"{title}{number}"
            questions: list[Any] = [
                [f"What weighs the {thing} {i}?", [f"{thing} weighs {i} kg", f"{thing}, {i}"]]
                for i in range(3)
            ]
            if own:
                questions.append([f"Who owns the {thing}?", []])
            text = " ".join(f"{thing} weighs {i} kg." for i in range(3))
            lines.append({"source": "made-up", "title": title, "context": text,
                          "questions": questions})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "qa.jsonl")


def suite_of(data: Path, **options: Any) -> PackedSuite:
    small: dict[str, Any] = {"contexts": 3, "pages": (4, 6), "questions": 5, "unanswerable": 0.4}
    return PackedSuite(data, **{**small, **options})


def test_contexts_have_the_pages_and_questions_asked_for(data: Path) -> None:
    suite: Suite[Any] = suite_of(data)
    groups = suite.groups(TOKENIZER)
    assert [group.id for group in groups] == ["000", "001", "002"]
    ids = [sample.id for group in groups for sample in group.samples]
    assert len(set(ids)) == len(ids) == 15
    for group in groups:
        documents = group.samples[0].documents
        assert all(sample.documents is documents for sample in group.samples)
        assert 4 <= sum(len(d.pages) for d in documents) <= 6
        assert [bool(sample.answers) for sample in group.samples].count(False) == 2
        for sample in group.samples:
            if sample.answers:
                ((document, number),) = sample.evidence
                assert sample.answers[0] in documents[document].pages[number - 1].text
                assert sample.facts == {"source": "made-up", "origin": "page"}


def test_questions_without_an_answer_are_of_other_pages_and_each_is_asked_once(data: Path) -> None:
    groups = suite_of(data, contexts=3, pages=(2, 2), questions=4, unanswerable=1).groups(TOKENIZER)
    asked = [sample for group in groups for sample in group.samples]
    assert len(asked) == len({sample.question for sample in asked}) == 12
    for sample in asked:
        here = {document.title for document in sample.documents}
        (title,) = re.findall(r"the ([A-Z][a-z]+)\d", sample.question)
        assert title not in here
        assert sample.evidence == ()
        assert sample.facts["origin"] == "elsewhere"


def test_no_accepted_answer_of_such_a_question_stands_in_the_context(tmp_path: Path) -> None:
    lines = [
        {"title": "Here", "context": "The mast is The TALL one.", "questions": [["H?", ["tall"]]]},
        {"title": "There", "context": "x", "questions": [["Same?", ["a low one", "the tall one!"]],
                                                         ["Other?", ["al"]]]},
    ]  # fmt: skip
    data = tmp_path / "qa.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seed in range(6):
        suite = PackedSuite(data, contexts=1, pages=(1, 1), questions=3, unanswerable=1, seed=seed)
        (group,) = suite.groups(TOKENIZER)
        here = group.samples[0].documents[0].title
        expected = {"Other?"} if here == "Here" else {"H?"}
        assert {sample.question for sample in group.samples} <= expected


def test_the_data_s_own_questions_without_an_answer_come_first(tmp_path: Path) -> None:
    groups = suite_of(write(tmp_path / "qa.jsonl", own=True)).groups(TOKENIZER)
    without = [s for group in groups for s in group.samples if not s.answers]
    assert len(without) == 6
    assert all(sample.question.startswith("Who owns") for sample in without)
    assert all(sample.facts["origin"] == "page" for sample in without)


def test_pages_without_a_title_are_taken_only_when_asked_for(tmp_path: Path) -> None:
    rows = [{"title": title, "context": "x", "questions": [["Q?", ["a"]]]} for title in ("", "A")]
    data = tmp_path / "qa.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small: dict[str, Any] = {"contexts": 1, "pages": (1, 2), "unanswerable": 0}
    for untitled, titles in ((False, {"A"}), (True, {"A", "Untitled"})):
        found = {
            document.title
            for seed in range(9)
            for group in PackedSuite(data, untitled=untitled, seed=seed,
                                     **{**small, "pages": (1, 1)}).groups(TOKENIZER)
            for document in group.samples[0].documents
        }  # fmt: skip
        assert found == titles
    data.write_text(json.dumps(rows[0]))
    with pytest.raises(ConfigurationError, match="--untitled"):
        PackedSuite(data, **small).groups(TOKENIZER)


def test_a_document_has_no_more_pages_than_asked_for(data: Path) -> None:
    for most in (1, 2):
        for group in suite_of(data, document_pages=most).groups(TOKENIZER):
            sizes = [len(document.pages) for document in group.samples[0].documents]
            assert max(sizes) <= most


def test_samples_depend_on_the_seed_and_not_on_the_tokenizer(data: Path) -> None:
    def made(tokenizer: WordTokenizer, **options: Any) -> list[tuple[str, str]]:
        groups = suite_of(data, **options).groups(tokenizer)
        return [(sample.id, sample.question) for group in groups for sample in group.samples]

    assert made(TOKENIZER) == made(WordTokenizer(100_000, "other"))
    assert made(TOKENIZER) != made(TOKENIZER, seed=1)


def test_settings_tell_apart_all_that_changes_the_samples(data: Path, tmp_path: Path) -> None:
    base = suite_of(data)
    assert json.loads(json.dumps(base.settings)) == base.settings
    changed = [
        suite_of(data, contexts=2), suite_of(data, pages=(4, 5)), suite_of(data, questions=4),
        suite_of(data, unanswerable=0.2), suite_of(data, most_words=99), suite_of(data, seed=1),
        suite_of(data, source="made-up"), suite_of(data, untitled=True),
        suite_of(data, document_pages=2), suite_of(data, answer_tokens=9),
        suite_of(write(tmp_path / "other.jsonl", own=True)),
    ]  # fmt: skip
    assert all(suite.settings != base.settings for suite in changed)
    assert suite_of(data, extra_readings=("bm25:4",)).settings == base.settings


def test_contexts_beyond_the_window_are_refused_with_what_to_do(data: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--page-words.*--context-window"):
        suite_of(data).groups(WordTokenizer(300))


@pytest.mark.parametrize(
    "wrong",
    [{"pages": (0, 3)}, {"pages": (5, 4)}, {"unanswerable": 1.1}, {"contexts": 0},
     {"questions": 0}, {"extra_readings": ("best",)}],
)  # fmt: skip
def test_values_out_of_range_are_refused(data: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        suite_of(data, **wrong)


def test_answers_are_scored_by_words_pages_and_refusals(data: Path) -> None:
    suite = suite_of(data, contexts=1, pages=(3, 3), questions=2, unanswerable=0.5,
                     extra_readings=("bm25:1",))  # fmt: skip
    (group,) = suite.groups(TOKENIZER)
    right = [f"{s.answers[0]}. [D1 p{s.evidence[0][1]}]" if s.answers else NOT_ANSWERED
             for s in group.samples]  # fmt: skip
    outcomes = list(suite.answer(ScriptedModel(right), group))
    assert [outcome.sample for outcome in outcomes] == [sample.id for sample in group.samples]
    for sample, outcome in zip(group.samples, outcomes, strict=True):
        if sample.answers:
            assert outcome.scores == {
                "f1": 1, "em": 1, "contains": 1, "declined": 0, "citation": 1,
                "citation_if_right": 1,
            }  # fmt: skip
            assert outcome.facts["kind"] == "answerable"
            assert outcome.facts["citations"][0]["page"] == sample.evidence[0][1]
        else:
            assert outcome.scores == {"answered_when_unanswerable": 0}
            assert outcome.facts["kind"] == "unanswerable"
        json.dumps(dict(outcome.facts), allow_nan=False)
    assert [outcome.facts["position"] for outcome in outcomes] == [0, 1]
    wrong = list(suite.answer(ScriptedModel(["No idea."]), group, reading="bm25:1"))
    assert [outcome.scores.get("f1", outcome.scores.get("answered_when_unanswerable"))
            for outcome in wrong] == [0 if s.answers else 1 for s in group.samples]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "evidence", "text", "cited", "scores"),
    [
        (["Rome"], [(0, 1)], "In Rome", [(1, 1), (0, 1)],
         {"f1": 2 / 3, "em": 0, "contains": 1, "declined": 0, "citation": 0,
          "citation_if_right": 0}),
        (["Rome"], [(0, 1), (1, 1)], "Oslo", [(1, 1)],
         {"f1": 0, "em": 0, "contains": 0, "declined": 0, "citation": 1}),
        (["Rome"], [(0, 1)], NOT_ANSWERED, [],
         {"f1": 0, "em": 0, "contains": 0, "declined": 1, "citation": 0}),
        (["Rome"], [], "rome!", [], {"f1": 1, "em": 1, "contains": 1, "declined": 0}),
        (["Rome"], [], "", [], {"f1": 0, "em": 0, "contains": 0, "declined": 1}),
        ([], [(0, 1)], "Rome", [(0, 1)], {"answered_when_unanswerable": 1}),
        ([], [], f"{NOT_ANSWERED} [D1 p1]", [], {"answered_when_unanswerable": 0}),
        ([], [], " ", [], {"answered_when_unanswerable": 0}),
    ],
)  # fmt: skip
def test_scores_are_those_of_the_table(
    answers: list[str],
    evidence: list[tuple[int, int]],
    text: str,
    cited: list[tuple[int, int]],
    scores: dict[str, float],
) -> None:
    assert score_answer(answers, evidence, text, cited) == pytest.approx(scores)


def test_a_group_has_as_many_questions_as_there_are(tmp_path: Path) -> None:
    data = tmp_path / "qa.jsonl"
    data.write_text(json.dumps({"title": "A", "context": "x", "questions": [["Q?", ["x"]]]}))
    suite = PackedSuite(data, contexts=1, pages=(1, 1), questions=9, unanswerable=0.5)
    groups: list[Group[Any]] = list(suite.groups(TOKENIZER))
    assert [len(group.samples) for group in groups] == [1]


def test_the_share_without_an_answer_stays_where_there_are_few_questions(data: Path) -> None:
    suite = suite_of(data, contexts=2, pages=(2, 2), questions=100, unanswerable=0.4)
    for group in suite.groups(TOKENIZER):  # two pages of three questions
        assert [bool(sample.answers) for sample in group.samples].count(True) == 6
        assert len(group.samples) == 10
