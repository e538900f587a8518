"""InfiniteBench as a suite, on a few rows made for these tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pacellm_rag.errors import CancelledError, ConfigurationError
from pacellm_rag.evaluation.infinitebench import BenchSample, InfiniteBench
from pacellm_rag.evaluation.infinitebench_tasks import TASKS
from pacellm_rag.evaluation.types import Outcome, Suite
from pacellm_rag.testing import ScriptedModel, WordTokenizer

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

BOOKS = ("Mira lives in Oslo. She has a red boat.", "Tom went to sea in a blue coat.")
OPTIONS = ["Oslo", "Rome", "Bonn", "Kyiv"]


def _rows(answer: Any, question: str = "Where?", **more: Any) -> list[dict[str, Any]]:
    texts = (BOOKS[0], BOOKS[1], BOOKS[0])
    return [
        {"id": i, "context": text, "input": question, "answer": answer, "options": [], **more}
        for i, text in enumerate(texts)
    ]


ROWS: dict[str, list[dict[str, Any]]] = {
    "passkey": _rows("71432"),
    "number_string": _rows("1123344"),
    "kv_retrieval": _rows(["c0-ffee"]),
    "longbook_sum_eng": _rows(["Mira lives.\nTom went."], ""),
    "longbook_choice_eng": _rows(["Oslo"], options=OPTIONS),
    "longbook_qa_eng": _rows(["in Oslo", "Norway"]),
    "longbook_qa_chn": _rows(["奥斯陆"], "在哪里？"),
    "longdialogue_qa_eng": _rows(["MIRA", "MIRA BELL"], ""),
    "math_find": _rows([7], "The largest number of the list is: "),
    "math_calc": _rows([3, 1], ""),
    "code_run": _rows(-4, "What is func_3(-1)?"),
    "code_debug": _rows(["two"], options=["one", "two", "three", "four"]),
}
RIGHT = {
    "passkey": "71432", "number_string": "1123344", "kv_retrieval": '"c0-ffee"',
    "longbook_sum_eng": "Tom went.\nMira lives.", "longbook_choice_eng": "A",
    "longbook_qa_eng": "Norway.", "longbook_qa_chn": "奥斯陆。", "longdialogue_qa_eng": "Mira",
    "math_find": "7", "math_calc": "1, 3, 1", "code_run": "-4", "code_debug": "B. two",
}  # fmt: skip
ALL = tuple(TASKS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task, rows in ROWS.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def ask(suite: InfiniteBench, model: ScriptedModel) -> list[Outcome]:
    groups = suite.groups(model.tokenizer)
    return [outcome for group in groups for outcome in suite.answer(model, group)]


def prompt_of(model: ScriptedModel, suite: InfiniteBench, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the model was asked first, as text."""
    texts: list[str] = []
    tokenizer = model.tokenizer
    encode = tokenizer.encode_text

    def noting(text: str) -> Any:
        texts.append(text)
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode_text", noting)
    next(iter(suite.answer(model, suite.groups(tokenizer)[0])))
    return texts[-1]


def test_it_is_a_suite(folder: Path) -> None:
    suite: Suite[BenchSample] = InfiniteBench(folder, ("passkey",))
    assert (suite.name, suite.metric, suite.readings) == ("infinitebench", "score", ("whole",))


@pytest.mark.parametrize("task", ALL)
def test_right_answers_of_every_task_score_in_full(folder: Path, task: str) -> None:
    outcomes = ask(InfiniteBench(folder, (task,)), ScriptedModel([RIGHT[task]]))
    assert [outcome.scores for outcome in outcomes] == [{"score": 1.0}] * 3
    assert {outcome.task for outcome in outcomes} == {TASKS[task].short}
    assert sorted(outcome.sample for outcome in outcomes) == [f"{task}-{i}" for i in (1, 2, 3)]
    assert all(outcome.tokens_left_out == 0 for outcome in outcomes)


@pytest.mark.parametrize("task", ALL)
def test_empty_answers_score_nothing(folder: Path, task: str) -> None:
    outcomes = ask(InfiniteBench(folder, (task,)), ScriptedModel([""]))
    assert [outcome.scores["score"] for outcome in outcomes] == [0.0] * 3


def test_only_chat_prompts_drop_the_repeated_number(folder: Path) -> None:
    model = ScriptedModel(["3, 1"])
    (first, *_) = ask(InfiniteBench(folder, ("math_calc",)), model)
    assert first.scores["score"] == 0.0
    (first, *_) = ask(InfiniteBench(folder, ("math_calc",), prompts="yarn_mistral"), model)
    assert first.scores["score"] == 1.0


def test_questions_about_one_text_make_a_group_and_tasks_take_turns(folder: Path) -> None:
    suite = InfiniteBench(folder, ("longbook_qa_eng", "kv_retrieval"))
    groups = suite.groups(WordTokenizer())
    assert [(group.id, [sample.line for sample in group.samples]) for group in groups] == [
        ("longbook_qa_eng-1", [1, 3]),
        ("kv_retrieval-1", [1, 3]),
        ("longbook_qa_eng-2", [2]),
        ("kv_retrieval-2", [2]),
    ]


def test_the_outcome_tells_what_was_asked_and_accepted(folder: Path) -> None:
    (outcome, *_) = ask(InfiniteBench(folder, ("longbook_choice_eng",)), ScriptedModel(["B"]))
    assert outcome.facts == {
        "question": "Where?",
        "accepted": ["Oslo", "A"],
        "max_new_tokens": 40,
        "line": 1,
    }
    assert outcome.text == "B"


def test_long_calculations_are_shown_in_part(tmp_path: Path) -> None:
    row = {"context": "1 + 1", "input": "", "answer": list(range(5000))}
    (tmp_path / "math_calc.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (outcome,) = ask(InfiniteBench(tmp_path, ("math_calc",)), ScriptedModel(["0"]))
    assert outcome.facts["accepted"] == list(range(20))


def test_chat_prompts_have_a_system_turn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = InfiniteBench(folder, ("longbook_qa_eng",))
    assert prompt_of(ScriptedModel(["x"]), suite, monkeypatch) == (
        "<system>\nYou are a helpful assistant\n<user>\nRead the book below and answer a question."
        f"\n\n{BOOKS[0]}\n\nQuestion: Where?\n\nBe very concise.\n<assistant>\n"
    )


def test_text_prompts_stand_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = InfiniteBench(folder, ("longbook_qa_eng",), prompts="yarn_mistral")
    assert prompt_of(ScriptedModel(["x"]), suite, monkeypatch) == (
        "Read the book and answer the question. Be very concise in your answer."
        f"\n\n{BOOKS[0]}\n\nQuestion: Where?\nAnswer:"
    )


def _book(folder: Path, words: int) -> Path:
    text = " ".join(f"word{i}" for i in range(words))
    row = {"context": text, "input": "Where?", "answer": ["word"], "options": []}
    (folder / "longbook_qa_eng.jsonl").write_text(json.dumps(row), encoding="utf-8")
    return folder


def test_texts_that_do_not_fit_lose_their_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = InfiniteBench(_book(tmp_path, 2000), ("longbook_qa_eng",))
    model = ScriptedModel(["x"], context_window=600)
    prompt = prompt_of(model, suite, monkeypatch)
    assert len(model.prompts[0]) <= 600 - 40
    assert "Read the book below and answer a question.\n\nword0 word1 " in prompt
    assert "word1999\n\nQuestion: Where?\n\nBe very concise.\n<assistant>" in prompt
    assert "word1000 " not in prompt


def test_a_prompt_keeps_to_the_length_asked_for(tmp_path: Path) -> None:
    suite = InfiniteBench(_book(tmp_path, 2000), ("longbook_qa_eng",), "yarn_mistral", 300)
    model = ScriptedModel(["x"], context_window=8192)
    (outcome,) = ask(suite, model)
    assert outcome.prompt_tokens in (299, 300, 301)
    assert outcome.tokens_left_out > 3000


def test_an_answer_gets_no_more_than_half_of_the_window(folder: Path) -> None:
    model = ScriptedModel(["1 3 1"], context_window=1000)
    (outcome, *_) = ask(InfiniteBench(folder, ("math_calc",)), model)
    assert outcome.facts["max_new_tokens"] == 500
    assert outcome.scores["score"] == 1.0


def test_answers_can_be_given_more_room_but_not_less(folder: Path) -> None:
    model = ScriptedModel(["I would say that the pass key is 71432"])
    (outcome, *_) = ask(InfiniteBench(folder, ("passkey",)), model)
    assert (outcome.scores["score"], outcome.completion_tokens) == (0.0, 6)
    (outcome, *_) = ask(InfiniteBench(folder, ("passkey",), answer_tokens=9), model)
    assert (outcome.scores["score"], outcome.completion_tokens) == (1.0, 9)
    suite = InfiniteBench(folder, ("longbook_sum_eng",), answer_tokens=9)
    assert suite.max_new_tokens("longbook_sum_eng") == 1200


def test_settings_can_be_kept_as_json_and_change_with_the_data(folder: Path) -> None:
    before = InfiniteBench(folder, ("passkey", "code_run")).settings
    assert json.loads(json.dumps(before)) == before
    assert InfiniteBench(folder, ("passkey", "code_run")).settings == before
    with (folder / "passkey.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS["passkey"][0]))
    after = InfiniteBench(folder, ("passkey", "code_run")).settings
    assert after["data"]["passkey.jsonl"] != before["data"]["passkey.jsonl"]
    assert after["data"]["code_run.jsonl"] == before["data"]["code_run.jsonl"]
    assert InfiniteBench(folder, ("passkey",), max_length=9).settings["max_length"] == 9


def test_blank_lines_a_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS["passkey"]]
    text = "\ufeff" + "\r\n\r\n".join(lines)
    (tmp_path / "passkey.jsonl").write_bytes(text.encode())
    outcomes = ask(InfiniteBench(tmp_path, ("passkey",)), ScriptedModel(["71432"]))
    assert [outcome.sample for outcome in outcomes] == ["passkey-1", "passkey-5", "passkey-3"]
    assert [outcome.scores["score"] for outcome in outcomes] == [1.0] * 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "Expecting"),
        (b"[1]", "it is a list, not an object"),
        (b'{"context": "x", "input": "y"}', "'answer' is missing"),
        (b'{"context": "\xff", "input": "y", "answer": "1"}', "utf-8"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_not_as_needed_is_named(folder: Path, line: bytes, says: str) -> None:
    path = folder / "passkey.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(ConfigurationError, match=f"(?s)Line 5 of .*passkey.jsonl is not.*{says}"):
        InfiniteBench(folder, ("code_run", "passkey")).groups(WordTokenizer())


def test_a_file_without_rows_is_refused(folder: Path) -> None:
    (folder / "passkey.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"passkey\.jsonl holds no row"):
        InfiniteBench(folder, ("passkey",)).groups(WordTokenizer())


def test_without_the_data_it_says_what_to_get(tmp_path: Path) -> None:
    suite = InfiniteBench(tmp_path / "none", ("passkey",))
    says = "There is no folder .*none.*hf download xinrongzhang2022/InfiniteBench"
    with pytest.raises(ConfigurationError, match=says):
        suite.check()
    with pytest.raises(ConfigurationError, match=says):
        suite.groups(WordTokenizer())


def test_missing_files_are_named_with_the_tasks_that_are_there(folder: Path) -> None:
    for name in ("longbook_qa_chn", "math_find"):
        (folder / f"{name}.jsonl").unlink()
    with pytest.raises(ConfigurationError) as caught:
        InfiniteBench(folder, ALL).check()
    message = str(caught.value)
    assert "has no longbook_qa_chn.jsonl, math_find.jsonl." in message
    assert "hf download" in message
    assert "passkey,number,kv,en.sum,en.mc,en.qa,en.dia,math.calc,code.run,code.debug." in message


def test_data_that_vanish_during_a_run_are_told(folder: Path) -> None:
    suite = InfiniteBench(folder, ("passkey",))
    (group, *_) = suite.groups(WordTokenizer())
    (folder / "passkey.jsonl").write_text("{}\n" * 9, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="Line 1 of"):
        list(suite.answer(ScriptedModel(), group))
    (folder / "passkey.jsonl").unlink()
    with pytest.raises(ConfigurationError, match="can not be read"):
        list(suite.answer(ScriptedModel(), group))


def test_there_is_one_way_of_reading(folder: Path) -> None:
    suite = InfiniteBench(folder, ("passkey",))
    (group, *_) = suite.groups(WordTokenizer())
    with pytest.raises(ConfigurationError, match="'chunks', only whole"):
        list(suite.answer(ScriptedModel(), group, reading="chunks"))


def test_an_unknown_prompt_set_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no prompt set 'kimi'; there are gpt4, yarn_mis"):
        InfiniteBench(folder, ("passkey",), prompts="kimi")


def test_it_can_be_cancelled(folder: Path) -> None:
    suite = InfiniteBench(folder, ("passkey",))
    (group, *_) = suite.groups(WordTokenizer())
    cancel = threading.Event()
    answers = suite.answer(ScriptedModel(["71432"]), group, cancel=cancel)
    assert next(answers).scores["score"] == 1.0
    cancel.set()
    with pytest.raises(CancelledError):
        next(answers)


@pytest.mark.parametrize("prompts", ["gpt4", "yarn_mistral"])
def test_a_real_decoder_answers_the_same_twice(
    folder: Path, tiny: Callable[..., PaceModel], prompts: str
) -> None:
    model = tiny("llama")
    suite = InfiniteBench(folder, ("passkey", "longbook_qa_chn", "code_debug"), prompts=prompts)
    groups = suite.groups(model.tokenizer)[:3]
    outcomes = [outcome for group in groups for outcome in suite.answer(model, group)]
    assert [outcome.task for outcome in outcomes] == [
        "passkey", "passkey", "zh.qa", "zh.qa", "code.debug", "code.debug",
    ]  # fmt: skip
    assert all(0 <= outcome.scores["score"] <= 1 for outcome in outcomes)
    again = [outcome for group in groups for outcome in suite.answer(model, group)]
    assert [outcome.text for outcome in again] == [outcome.text for outcome in outcomes]
