"""`pacellm-rag eval longbench`: from options to a suite, and through to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from pacellm_rag.cli import eval_longbench, opening
from pacellm_rag.cli.eval_longbench import longbench
from pacellm_rag.cli.evaluating import EvaluationOptions
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.longbench import LongBench
from pacellm_rag.evaluation.longbench_v2 import LongBenchV2

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel


def task_row(number: int) -> dict[str, Any]:
    return {
        "_id": str(number),
        "input": f"Question {number}?",
        "context": f"Text {number}. " * 4,
        "answers": ["answer"],
        "length": 12,
        "all_classes": None,
    }


def choice_row(number: int) -> dict[str, Any]:
    names = ("domain", "sub_domain", "difficulty", "length", "question", "context",
             "choice_A", "choice_B", "choice_C", "choice_D")  # fmt: skip
    return {"_id": str(number), "answer": "A", **{name: f"{name} {number}" for name in names}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in ("hotpotqa", "2wikimqa", "musique", "lcc", "lcc_e", "hotpotqa_e", "2wikimqa_e"):
        lines = [json.dumps(task_row(number)) for number in range(3)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [choice_row(number) for number in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The suites that the command would run."""
    suites: list[Any] = []

    def note(suite: Any, evaluation: EvaluationOptions, terminal: Terminal) -> None:
        suites.append(suite)

    monkeypatch.setattr(eval_longbench, "evaluate", note)
    return suites


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(longbench, [str(a) for a in arguments], obj=Terminal())


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        (["--tasks", "multi-doc"], ("hotpotqa", "2wikimqa", "musique")),
        (["--tasks", "lcc, hotpotqa"], ("hotpotqa", "lcc")),
        (["--tasks", "lcc", "--tasks", "hotpotqa"], ("hotpotqa", "lcc")),
        (["--tasks", "multi-doc,lcc", "--e"], ("hotpotqa", "2wikimqa", "lcc")),
    ],
)
def test_tasks_are_named_with_commas_or_repeated(
    data: Path, asked: list[Any], options: list[str], tasks: tuple[str, ...]
) -> None:
    assert invoke("--data", data, *options).exit_code == 0
    assert asked == [LongBench(data, tasks, even="--e" in options)]


def test_options_reach_the_suite(data: Path, asked: list[Any]) -> None:
    invoke("--data", data, "--tasks", "lcc", "--max-length", 3500, "--newline-stop", "--bare")
    invoke("--data", data, "--v2", "--max-length", 3500, "--bare")
    assert asked == [
        LongBench(data, ("lcc",), max_length=3500, newline_stop=True, bare=True),
        LongBenchV2(data, max_length=3500, bare=True),
    ]


@pytest.mark.parametrize("option", [["--tasks", "all"], ["--e"], ["--newline-stop"]])
def test_options_of_version_1_are_refused_with_version_2(
    data: Path, asked: list[Any], option: list[str]
) -> None:
    result = invoke("--data", data, "--v2", *option)
    assert isinstance(result.exception, ConfigurationError)
    assert option[0] in str(result.exception)
    assert asked == []


def test_missing_data_are_told_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", lambda _: pytest.fail("a model was looked for"))
    result = invoke("--data", tmp_path)  # all tasks
    assert isinstance(result.exception, ConfigurationError)
    assert "hf download THUDM/LongBench data.zip" in str(result.exception)
    assert str(tmp_path / "narrativeqa.jsonl") in str(result.exception)


def test_help_says_what_it_measures_and_where_data_come_from() -> None:
    said = invoke("--help").output
    for words in ("hf download THUDM/LongBench data.zip", "hf download THUDM/LongBench-v2",
                  "multi-doc", "greedily", "pacellm-rag eval longbench --data"):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(("options", "samples"), [(["--tasks", "hotpotqa,lcc"], 6), (["--v2"], 3)])
def test_a_run_leaves_a_line_for_every_sample_and_a_summary(
    data: Path,
    tmp_path: Path,
    tiny: Callable[..., PaceModel],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    samples: int,
) -> None:
    model = tiny()
    monkeypatch.setattr(opening, "open_tokenizer", lambda _: model.tokenizer)
    monkeypatch.setattr(opening, "open_model", lambda _: model)
    out = tmp_path / "out"
    result = invoke("--data", data, *options, "--arms", "plain,placebo", "--out", out)
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"]
    assert [arm["samples"] for arm in summary["arms"]] == [samples, samples]
    assert summary["metric"] == ("accuracy" if "--v2" in options else "score")
