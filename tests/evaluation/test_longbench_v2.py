"""LongBench v2 as a suite: the official prompt, and the letter that an answer names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation import longbench_v2
from pacellm_rag.evaluation.longbench_v2 import LongBenchV2, choice_prompt, chosen_letter
from pacellm_rag.testing import ScriptedModel, WordTokenizer

# the first 16 digits of the SHA-256 of the official template
OFFICIAL = "68a162252bc9ff71"


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "_id": f"id{number}",
        "domain": "Single-Document QA",
        "sub_domain": "Legal",
        "difficulty": "easy",
        "length": "short",
        "question": f" What is in paragraph {number}? ",
        "choice_A": "gold\n",
        "choice_B": "silver",
        "choice_C": "copper",
        "choice_D": " lead",
        "answer": "B",
        "context": f"\nParagraph {number} is about silver.\n",
        **changes,
    }


def write(folder: Path, rows: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, [row(1), row(2, difficulty="hard", length="long"), row(3, answer="D")])
    return tmp_path


def test_the_template_is_the_official_one_to_the_letter() -> None:
    template = longbench_v2._PROMPT
    assert hashlib.sha256(template.encode()).hexdigest().startswith(OFFICIAL)


def test_the_prompt_has_all_parts_without_blanks_around_them(folder: Path) -> None:
    suite = LongBenchV2(folder)
    prompt = choice_prompt(suite.groups(WordTokenizer())[0].samples[0])
    assert "<text>\nParagraph 1 is about silver.\n</text>" in prompt
    assert "question: What is in paragraph 1?\nChoices:" in prompt
    assert "(A) gold\n(B) silver\n(C) copper\n(D) lead\n\nFormat" in prompt


def test_marks_in_the_text_are_filled_as_in_the_official_script(tmp_path: Path) -> None:
    write(tmp_path, [row(1, context="see $Q$")])
    suite = LongBenchV2(tmp_path)
    prompt = choice_prompt(suite.groups(WordTokenizer())[0].samples[0])
    assert "see What is in paragraph 1?" in prompt


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("The correct answer is B", "B"),
        ("The correct answer is **(C)**", "C"),
        ("**The correct answer is D**", "D"),
        ("The correct answer is A, no: The correct answer is (D)", "D"),  # brackets go first
        ("The correct answer is (A). The correct answer is (B).", "A"),
        ("\n I think.\nThe correct answer is (A)", "A"),
        ("the correct answer is (A)", None),
        ("The correct answer is: (A)", None),
        ("The correct answer is (E)", None),
        ("The correct answer is\n(A)", None),
        ("The correct answer is (insert answer here)", None),
        ("The correct answer is (B", None),
        ("The correct answer is Bananas", "B"),
        ("B", None),
        ("", None),
    ],
)
def test_the_letter_is_taken_by_the_official_patterns(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer) == letter


def test_answers_are_scored_and_broken_down(folder: Path) -> None:
    suite = LongBenchV2(folder)
    model = ScriptedModel(answers=["The correct answer is (B)"])
    groups = suite.groups(model.tokenizer)
    outcomes = [outcome for group in groups for outcome in suite.answer(model, group)]
    assert [outcome.scores["accuracy"] for outcome in outcomes] == [1.0, 1.0, 0.0]
    assert [outcome.facts["kind"] for outcome in outcomes] == ["easy", "hard", "easy"]
    assert [outcome.facts["length"] for outcome in outcomes] == ["short", "long", "short"]
    assert outcomes[2].facts["answers"] == ["D"]
    assert outcomes[2].facts["chosen"] == "B"
    assert all("user" in model.tokenizer.encode_messages(suite.prompt(g.samples[0]).messages or ())
               .text for g in groups)  # fmt: skip


def test_an_answer_without_a_letter_is_wrong(folder: Path) -> None:
    suite = LongBenchV2(folder)
    model = ScriptedModel(answers=[""])
    (outcome,) = suite.answer(model, suite.groups(model.tokenizer)[0])
    assert outcome.scores == {"accuracy": 0.0}
    assert outcome.facts["chosen"] is None


def test_it_is_asked_with_128_tokens_and_said_to_be_greedy(folder: Path) -> None:
    suite = LongBenchV2(folder, max_length=120_000)
    sample = suite.prompt(suite.groups(WordTokenizer())[0].samples[0])
    assert sample.max_new_tokens == 128
    assert sample.max_length == 120_000
    assert sample.stop == ()
    assert "greedy" in suite.settings["decoding"]
    assert json.loads(json.dumps(suite.settings)) == suite.settings
    assert LongBenchV2(folder, bare=True).settings != LongBenchV2(folder).settings


def test_questions_about_one_text_are_one_group(tmp_path: Path) -> None:
    write(tmp_path, [row(1, context="x"), row(2), row(3, context="x")])
    groups = LongBenchV2(tmp_path).groups(WordTokenizer())
    assert [len(group.samples) for group in groups] == [2, 1]


def test_the_file_itself_can_be_named(folder: Path) -> None:
    named = LongBenchV2(folder / "data.json").groups(WordTokenizer())
    assert [g.id for g in named] == [g.id for g in LongBenchV2(folder).groups(WordTokenizer())]


def test_without_data_it_says_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"hf download THUDM/LongBench-v2 data\.json") as e:
        LongBenchV2(tmp_path).check()
    assert f"--local-dir {tmp_path}" in str(e.value)


def test_a_length_of_one_token_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_length is 1"):
        LongBenchV2(folder, max_length=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is not a list of rows"),
        ({"a": 1}, "is not a list of rows"),
        ([row(1), 2], "There is no JSON object in row 2 of"),
        ([row(1), row(2, answer="E")], "`answer` is 'E' in row 2 of"),
        ([row(1), row(2, answer="AB")], "`answer` is 'AB' in row 2 of"),
        ([row(1, choice_C=None)], "`choice_C` is None in row 1 of"),
        ([row(1), row(1)], "The id 'id1' stands twice in"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, rows: Any, message: str) -> None:
    write(tmp_path, rows)
    with pytest.raises(ConfigurationError, match=message):
        LongBenchV2(tmp_path).check()


def test_a_file_that_is_no_json_says_so(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"data\.json is no JSON .*load it anew"):
        LongBenchV2(tmp_path).check()
