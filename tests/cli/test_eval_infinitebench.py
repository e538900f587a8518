"""`pacellm-rag eval infinitebench`: from options to a suite, and through to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from pacellm_rag.cli import eval_infinitebench, opening
from pacellm_rag.cli.eval_infinitebench import infinitebench
from pacellm_rag.cli.evaluating import EvaluationOptions
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench import InfiniteBench
from pacellm_rag.evaluation.infinitebench_tasks import TASKS
from pacellm_rag.evaluation.synthetic import SyntheticBench

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

KINDS = ("passkey", "number_string", "kv_retrieval")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in ("longbook_qa_eng", "longdialogue_qa_eng"):
        rows = [
            {"id": i, "context": f"Text {i}. " * 4, "input": "Who?", "answer": ["ANN"]}
            for i in range(3)
        ]
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{task}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The suites that the command would run."""
    suites: list[Any] = []

    def note(suite: Any, evaluation: EvaluationOptions, terminal: Terminal) -> None:
        suites.append(suite)

    monkeypatch.setattr(eval_infinitebench, "evaluate", note)
    return suites


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(infinitebench, [str(a) for a in arguments], obj=Terminal())


def test_tasks_and_options_reach_the_suite(data: Path, asked: list[Any]) -> None:
    invoke("--data", data, "--tasks", "en.dia,en.qa")
    invoke("--data", data, "--tasks", "en.qa", "--prompts", "yarn_mistral", "--max-length", 900,
           "--answer-tokens", 20)  # fmt: skip
    assert asked == [
        InfiniteBench(data, ("longdialogue_qa_eng", "longbook_qa_eng")),
        InfiniteBench(data, ("longbook_qa_eng",), "yarn_mistral", 900, 20),
    ]


def test_all_tasks_are_asked_where_none_is_named(tmp_path: Path, asked: list[Any]) -> None:
    for task in TASKS:
        (tmp_path / f"{task}.jsonl").touch()
    invoke("--data", tmp_path)
    assert asked == [InfiniteBench(tmp_path, tuple(TASKS))]


def test_texts_are_made_by_lengths_depths_and_seed(asked: list[Any]) -> None:
    invoke("--synthetic", "passkey,number,kv")
    invoke("--synthetic", "kv", "--lengths", "1k,2k", "--depths", "0:100:3", "--samples", 4,
           "--seed", 7, "--prompts", "yarn_mistral", "--answer-tokens", 60)  # fmt: skip
    assert asked == [
        SyntheticBench(KINDS, (1024, 3413, 5803, 8192), (0.0, 25.0, 50.0, 75.0, 100.0)),
        SyntheticBench(
            ("kv_retrieval",),
            (1024, 2048),
            (0.0, 50.0, 100.0),
            samples=4,
            seed=7,
            prompts="yarn_mistral",
            answer_tokens=60,
        ),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --data with the folder of InfiniteBench, or --synthetic"),
        (["--tasks", "kv"], "There is nothing to ask"),
        (["--synthetic", "kv", "--data", "x"], "--data is about the data set"),
        (["--synthetic", "kv", "--tasks", "kv"], "--tasks is about the data set"),
        (["--synthetic", "kv", "--max-length", "9"], "--max-length is about the data set"),
        (["--data", "x", "--lengths", "1k"], "--lengths is about texts that are made"),
        (["--data", "x", "--depths", "5"], "--depths is about texts that are made"),
        (["--data", "x", "--samples", "5"], "--samples is about texts that are made"),
        (["--synthetic", "en.mc"], "Of en.mc no text can be made"),
        (["--synthetic", "kv", "--lengths", "1k..2k"], "do not say how many"),
        (["--data", "x", "--tasks", "poetry"], "no task 'poetry'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    asked: list[Any], options: list[str], says: str
) -> None:
    result = invoke(*options)
    assert isinstance(result.exception, ConfigurationError)
    assert says in str(result.exception)
    assert asked == []


def test_missing_data_are_told_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", lambda _: pytest.fail("a model was looked for"))
    result = invoke("--data", tmp_path)
    assert isinstance(result.exception, ConfigurationError)
    assert "hf download xinrongzhang2022/InfiniteBench" in str(result.exception)


def test_help_says_what_it_measures_and_where_data_come_from() -> None:
    said = invoke("--help").output
    for words in ("hf download xinrongzhang2022/InfiniteBench", "en.sum, en.qa, en.mc, zh.qa",
                  "--synthetic passkey,number,kv", "Prompts, lengths of answers"):  # fmt: skip
        assert words in said


@pytest.fixture
def use_tiny(tiny: Callable[..., PaceModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(opening, "open_tokenizer", lambda _: model.tokenizer)
    monkeypatch.setattr(opening, "open_model", lambda _: model)


@pytest.mark.usefixtures("use_tiny")
@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        (["--tasks", "en.qa,en.dia", "--limit", "4"], ["en.dia", "en.qa"]),
        (
            ["--synthetic", "all", "--lengths", "1k", "--depths", "0,100", "--answer-tokens", "1"],
            ["kv", "number", "passkey"],
        ),
    ],
)
def test_a_run_leaves_a_line_for_every_sample_and_a_summary(
    data: Path, tmp_path: Path, options: list[str], tasks: list[str]
) -> None:
    source = [] if "--synthetic" in options else ["--data", data]
    out = tmp_path / "out"
    result = invoke(*source, *options, "--arms", "plain,placebo", "--out", out)
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"]
    assert summary["metric"] == "score"
    assert sorted({s["task"] for s in summary["arms"][1]["scores"] if s["task"]}) == tasks
    lines = (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    answered = [json.loads(line) for line in lines if "scores" in json.loads(line)]
    assert len(answered) == 2 * (4 if source else 6)


@pytest.mark.usefixtures("use_tiny")
def test_the_same_command_again_does_nothing_anew(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("--data", data, "--tasks", "en.qa", "--arms", "plain,placebo", "--out", out)
    assert invoke(*command).exit_code == 0
    before = (out / "samples.jsonl").read_bytes()
    assert invoke(*command).exit_code == 0
    assert (out / "samples.jsonl").read_bytes() == before
    (data / "longbook_qa_eng.jsonl").write_text(
        json.dumps({"context": "x", "input": "?", "answer": "y"}), encoding="utf-8"
    )
    assert isinstance(invoke(*command).exception, ConfigurationError)  # other data, other run
