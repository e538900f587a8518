"""LongBench v1 as a suite: data in, official prompts out, answers scored."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.longbench import LongBench, choose_tasks
from pacellm_rag.evaluation.longbench_data import read_task
from pacellm_rag.evaluation.longbench_prompts import (
    EVEN_TASKS,
    MAX_NEW_TOKENS,
    PROMPTS,
    TASKS,
    WITHOUT_CHAT_TEMPLATE,
)
from pacellm_rag.testing import ScriptedModel, WordTokenizer

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

# the first 16 digits of the SHA-256 of the official templates
OFFICIAL = {
    "narrativeqa": "5178f3835db90239",
    "qasper": "0fbdd123fe7f83d6",
    "multifieldqa_en": "20b4666a2de8a1f7",
    "hotpotqa": "9ec4ae308865bd0c",
    "2wikimqa": "9ec4ae308865bd0c",
    "musique": "9ec4ae308865bd0c",
    "gov_report": "91c25d585b189ced",
    "qmsum": "dca23b678fe0183b",
    "multi_news": "2af3f28c40b902e6",
    "trec": "0eff8bebdba99d91",
    "triviaqa": "00a802e6377e72fc",
    "samsum": "a68d884234907eef",
    "lcc": "6a1f24cf0bb83cd9",
    "repobench-p": "ee9ec182ea5ffeb7",
}


def row(number: int, task: str = "hotpotqa", **changes: Any) -> dict[str, Any]:
    return {
        "input": f"Who wrote book {number}?",
        "context": f"Passage {number}: {{braces}} and {{input}} stay as they are.",
        "answers": [f"Author {number}", f"A. {number}"],
        "length": 3999 + number,
        "dataset": task,
        "language": "en",
        "all_classes": ["Author 1", "Author 2"] if task == "trec" else None,
        "_id": f"id{number}",
        **changes,
    }


def write(folder: Path, task: str, rows: list[dict[str, Any]], suffix: str = "") -> Path:
    path = folder / f"{task}{suffix}.jsonl"
    lines = [json.dumps(each, ensure_ascii=False) for each in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in TASKS:
        write(tmp_path, task, [row(number, task) for number in (1, 2, 3)])
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_the_official_ones_to_the_letter(task: str) -> None:
    digest = hashlib.sha256(PROMPTS[task].encode()).hexdigest()
    assert digest.startswith(OFFICIAL[task])


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        (["multi-doc"], ("hotpotqa", "2wikimqa", "musique")),
        (["musique", "hotpotqa", "musique"], ("hotpotqa", "musique")),
        (["code", "trec"], ("trec", "lcc", "repobench-p")),
        (["all"], TASKS),
        (["all", "multi-doc"], TASKS),
    ],
)
def test_tasks_are_chosen_by_name_and_by_category(names: list[str], tasks: tuple[str, ...]) -> None:
    assert choose_tasks(names) == tasks


def test_the_even_variant_has_fewer_tasks() -> None:
    assert choose_tasks(["multi-doc"], even=True) == ("hotpotqa", "2wikimqa")
    assert choose_tasks(["all"], even=True) == EVEN_TASKS
    assert len(EVEN_TASKS) == 11
    with pytest.raises(ConfigurationError, match="LongBench-E has no task 'musique'"):
        choose_tasks(["musique"], even=True)


@pytest.mark.parametrize("names", [["multidoc"], ["hotpotqa_e"], [""]])
def test_unknown_tasks_name_the_known_ones(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"Choose from all, single-doc, .*repobench-p"):
        choose_tasks(names)


def test_no_task_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name one, or all"):
        choose_tasks([])


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_asked_as_officially(task: str, folder: Path) -> None:
    suite = LongBench(folder, (task,))
    groups = suite.groups(WordTokenizer())
    sample = suite.prompt(groups[0].samples[0])
    assert sample.max_new_tokens == MAX_NEW_TOKENS[task]
    assert sample.stop == (("\n",) if task == "samsum" else ())
    assert (sample.text is not None) == (task in WITHOUT_CHAT_TEMPLATE)
    text = sample.text or (sample.messages or ())[0].content
    context = "Passage 1: {braces} and {input} stay as they are."
    assert text.count(context) == 1
    expected = PROMPTS[task].replace("{input}", "Who wrote book 1?").replace("{context}", context)
    assert text == expected


def test_template_exceptions_are_the_official_ones() -> None:
    assert {"trec", "triviaqa", "samsum", "lcc", "repobench-p"} == WITHOUT_CHAT_TEMPLATE


def test_bare_prompts_have_no_template(folder: Path) -> None:
    suite = LongBench(folder, ("qasper",), bare=True)
    assert suite.prompt(suite.groups(WordTokenizer())[0].samples[0]).messages is None
    assert suite.settings["chat_template"] == "never"


def test_newline_stop_ends_answers_to_questions_about_documents(folder: Path) -> None:
    suite = LongBench(folder, TASKS, newline_stop=True)
    rows = {g.samples[0].task: g.samples[0] for g in suite.groups(WordTokenizer())}
    stopped = [task for task in TASKS if suite.prompt(rows[task]).stop]
    assert stopped == [
        "narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "samsum",
    ]  # fmt: skip
    assert suite.settings["stopped_at_newline"] == stopped
    assert suite.settings != LongBench(folder, TASKS).settings


def test_tasks_take_turns_so_that_a_limit_has_some_of_each(folder: Path) -> None:
    groups = LongBench(folder, ("hotpotqa", "trec")).groups(WordTokenizer())
    assert [group.id for group in groups][:4] == [
        "hotpotqa:id1", "trec:id1", "hotpotqa:id2", "trec:id2",
    ]  # fmt: skip


def test_questions_about_one_text_are_one_group(tmp_path: Path) -> None:
    write(tmp_path, "qasper", [row(1, context="x"), row(2, context="y"), row(3, context="x")])
    groups = LongBench(tmp_path, ("qasper",)).groups(WordTokenizer())
    assert [[sample.id for sample in group.samples] for group in groups] == [
        ["qasper:id1", "qasper:id3"],
        ["qasper:id2"],
    ]


def test_answers_are_scored_and_facts_kept(folder: Path) -> None:
    suite = LongBench(folder, ("hotpotqa", "samsum"))
    model = ScriptedModel(answers=["Author 1", "Author 1\n"])
    groups = suite.groups(model.tokenizer)
    (outcome,) = suite.answer(model, groups[0])
    assert outcome.sample == "hotpotqa:id1"
    assert outcome.task == "hotpotqa"
    assert outcome.scores == {"score": 1.0}
    assert outcome.facts == {
        "kind": "multi-doc",
        "metric": "qa_f1",
        "words": 4000,
        "question": "Who wrote book 1?",
        "answers": ["Author 1", "A. 1"],
    }
    assert outcome.tokens_left_out == 0
    (summary,) = suite.answer(model, groups[1])
    assert summary.facts["metric"] == "rouge_l"
    assert json.loads(json.dumps(dict(summary.facts))) == summary.facts


def test_long_prompts_lose_their_middle(tmp_path: Path) -> None:
    write(tmp_path, "hotpotqa", [row(1, context="word " * 900)])
    suite = LongBench(tmp_path, ("hotpotqa",))
    model = ScriptedModel(answers=["Author 1"], context_window=600)
    (outcome,) = suite.answer(model, suite.groups(model.tokenizer)[0])
    assert outcome.tokens_left_out > 0
    assert outcome.prompt_tokens <= 600 - 32
    capped = LongBench(tmp_path, ("hotpotqa",), max_length=101)
    (shorter,) = capped.answer(model, capped.groups(model.tokenizer)[0])
    assert 100 < shorter.prompt_tokens < 112  # and the chat format


@pytest.mark.parametrize(("words", "length"), [(3999, "0-4k"), (4000, "4-8k"), (7999, "4-8k"),
                                               (8000, "8k+")])  # fmt: skip
def test_the_even_variant_tells_its_range_of_lengths(
    tmp_path: Path, words: int, length: str
) -> None:
    write(tmp_path, "trec", [row(1, "trec", length=words)], suffix="_e")
    suite = LongBench(tmp_path, ("trec",), even=True)
    assert suite.name == "longbench-e"
    model = ScriptedModel(answers=["Author 1 and Author 2"])
    (outcome,) = suite.answer(model, suite.groups(model.tokenizer)[0])
    assert outcome.facts["length"] == length
    assert outcome.scores == {"score": 0.5}


def test_a_real_decoder_gives_the_same_outcome_twice(
    folder: Path, tiny: Callable[..., PaceModel]
) -> None:
    model = tiny()
    suite = LongBench(folder, ("hotpotqa", "lcc"))
    groups = suite.groups(model.tokenizer)[:2]
    once = [o for g in groups for o in suite.answer(model, g)]
    twice = [o for g in groups for o in suite.answer(model, g)]
    assert [(o.text, o.scores) for o in once] == [(o.text, o.scores) for o in twice]
    assert all(0 < o.completion_tokens <= 64 for o in once)


def test_settings_change_with_the_data_and_are_json(folder: Path) -> None:
    before = LongBench(folder, ("trec", "lcc")).settings
    assert json.loads(json.dumps(before)) == before
    assert LongBench(folder, ("trec", "lcc")).settings == before
    write(folder, "lcc", [row(9)])
    after = LongBench(folder, ("trec", "lcc")).settings
    assert after["data"]["trec"] == before["data"]["trec"]
    assert after["data"]["lcc"] != before["data"]["lcc"]
    assert LongBench(folder, ("trec", "lcc"), max_length=99).settings["max_length"] == 99


def test_a_length_of_one_token_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_length is 1"):
        LongBench(folder, ("lcc",), max_length=1)


@pytest.mark.parametrize("inside", ["data/hotpotqa.jsonl", "hotpotqa.jsonl"])
def test_rows_are_read_from_the_archive(tmp_path: Path, inside: str) -> None:
    lines = "\n".join(json.dumps(row(number)) for number in (1, 2, 3))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa_e.jsonl", "no JSON")
        archive.writestr(inside, lines)
    rows, digest = read_task(tmp_path, "hotpotqa")
    assert [each.id for each in rows] == ["hotpotqa:id1", "hotpotqa:id2", "hotpotqa:id3"]
    assert read_task(tmp_path / "data.zip", "hotpotqa") == (rows, digest)
    with pytest.raises(ConfigurationError, match=r"data\.zip has no trec\.jsonl\. .*hf download"):
        read_task(tmp_path, "trec")


def test_rows_are_read_from_the_unpacked_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "lcc", [row(1)])
    assert read_task(tmp_path, "lcc")[0][0].answers == ("Author 1", "A. 1")


def test_without_data_it_says_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    suite = LongBench(tmp_path, ("trec",))
    for look in (suite.check, lambda: suite.groups(WordTokenizer()), lambda: suite.settings):
        with pytest.raises(ConfigurationError, match=r"hf download THUDM/LongBench data\.zip") as e:
            look()
        assert f"--local-dir {tmp_path}" in str(e.value)
        assert str(tmp_path / "trec.jsonl") in str(e.value)


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ConfigurationError, match=r"data\.zip can not be read .*load it anew"):
        read_task(tmp_path, "trec")


def test_an_archive_with_damaged_content_says_so(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/trec.jsonl", json.dumps(row(1, "trec")) * 50)
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=r"data\.zip can not be read"):
        read_task(tmp_path, "trec")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "There is no JSON in line 2 of"),
        ("[1]", "There is no JSON object in line 2 of"),
        (json.dumps(row(2, answers=[])), "`answers` is empty in line 2 of"),
        (json.dumps(row(2, answers="Author")), "`answers` is 'Author' in line 2 of"),
        (json.dumps(row(2, answers=[1])), r"`answers` is \[1\] in line 2 of"),
        (json.dumps(row(2, context=None)), "`context` is None in line 2 of"),
        (json.dumps({k: v for k, v in row(2).items() if k != "input"}), "`input` is None"),
        (json.dumps(row(2, length="long")), "`length` is 'long' in line 2 of"),
        (json.dumps(row(2, all_classes=["a", 2])), "`all_classes` is .* in line 2 of"),
        (json.dumps(row(1)), "The id 'hotpotqa:id1' stands twice in .* line 2 of"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "hotpotqa.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_task(tmp_path, "hotpotqa")
    assert str(path) in str(caught.value)


def test_classification_needs_its_classes(tmp_path: Path) -> None:
    write(tmp_path, "trec", [row(1, "trec", all_classes=[])])
    with pytest.raises(ConfigurationError, match="`all_classes` is empty in line 1"):
        read_task(tmp_path, "trec")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "lcc.jsonl").write_bytes(b'{"_id": "\xff\xfe"}\n')
    with pytest.raises(ConfigurationError, match="There is no JSON in line 1"):
        read_task(tmp_path, "lcc")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lcc.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="has no rows"):
        read_task(tmp_path, "lcc")


def test_line_separators_within_texts_do_not_end_a_line(tmp_path: Path) -> None:
    write(tmp_path, "lcc", [row(1, context="a\u2028b\u0085c"), row(2)])
    rows, _ = read_task(tmp_path, "lcc")
    assert rows[0].context == "a\u2028b\u0085c"
    assert len(rows) == 2
