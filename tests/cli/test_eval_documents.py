"""`pacellm-rag eval niah|packed|mydocs`: from options to a suite, and through to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result

from pacellm_rag.cli import eval_mydocs, eval_niah, eval_packed
from pacellm_rag.cli.eval_mydocs import mydocs
from pacellm_rag.cli.eval_niah import niah
from pacellm_rag.cli.eval_packed import packed
from pacellm_rag.cli.evaluating import EvaluationOptions
from pacellm_rag.cli.reading_option import with_readings
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.mydocs import MyDocsSuite
from pacellm_rag.evaluation.needle import NeedleSuite
from pacellm_rag.evaluation.packed import PackedSuite

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

Asked = list[tuple[Any, EvaluationOptions]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The suites that the commands would run, with the options of the run."""
    noted: Asked = []

    def note(suite: Any, evaluation: EvaluationOptions, terminal: Terminal) -> None:
        noted.append((suite, evaluation))

    for module in (eval_niah, eval_packed, eval_mydocs):
        monkeypatch.setattr(module, "evaluate", note)
    return noted


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question": "When does the plant close?", "answers": ["March"], "page": 2},
        {"question": "Who is the chair?", "answers": []},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    rows = [
        {"title": title, "context": f"The {title} has number {n}.", "source": title,
         "questions": [[f"What has the {title}?", [f"{title} {n}"]]]}
        for title in ("oak", "elm", "ash") for n in (1, 2)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], obj=Terminal())


def test_needles_are_made_as_the_options_say(asked: Asked, tmp_path: Path) -> None:
    assert invoke(niah).exit_code == 0
    result = invoke(niah, "--lengths", "1k,4k", "--depths", "0:100:3", "--needles", "multikey",
                    "--haystack", tmp_path, "--trials", 2, "--seed", 5,
                    "--reading", "bm25:2")  # fmt: skip
    assert result.exit_code == 0, result.output
    (default, _), (suite, evaluation) = asked
    assert (len(default.lengths), default.lengths[0], default.lengths[-1]) == (8, 1024, 8192)
    assert (len(default.depths), default.haystack, default.needles) == (11, None, "single")
    assert suite == NeedleSuite((1024, 4096), (0, 50, 100), needles="multikey", haystack=tmp_path,
                                trials=2, extra_readings=("bm25:2",), seed=5)  # fmt: skip
    assert evaluation.arms == "plain,pace,placebo,plain@bm25:2"


def test_contexts_are_packed_as_the_options_say(asked: Asked, data: Path) -> None:
    assert invoke(packed, "--data", data).exit_code == 0
    result = invoke(packed, "--data", data, "--contexts", 3, "--pages", "2..4", "--questions", 5,
                    "--untitled", "--document-pages", 2,
                    "--unanswerable", 0.5, "--page-words", 90, "--source", "oak", "--seed", 7,
                    "--reading", "bm25:4", "--reading", "window:1024")  # fmt: skip
    assert result.exit_code == 0, result.output
    (default, _), (suite, evaluation) = asked
    assert default == PackedSuite(data)
    assert default.contexts * default.questions >= 400
    assert suite == PackedSuite(data, contexts=3, pages=(2, 4), questions=5, untitled=True,
                                document_pages=2, unanswerable=0.5, most_words=90,
                                source="oak", seed=7,
                                extra_readings=("bm25:4", "window:1024"))  # fmt: skip
    assert evaluation.arms == "plain,pace,placebo,plain@bm25:4,plain@window:1024"
    assert invoke(packed, "--data", data, "--pages", "9").exit_code == 0
    assert asked[-1][0].pages == (9, 9)
    assert "no range" in invoke(packed, "--data", data, "--pages", "x..9").output


def test_documents_are_given_behind_files_as_a_shell_lists_them(
    asked: Asked, questions: Path, report: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Something else.")
    result = invoke(mydocs, "--data", questions, "--files", report, other, "--arms", "plain")
    assert result.exit_code == 0, result.output
    result = invoke(mydocs, "--files", report, "--files", other, "--data", questions)
    assert result.exit_code == 0, result.output
    for suite, _ in asked:
        assert isinstance(suite, MyDocsSuite)
        assert [Path(d.source).name for d in suite.documents] == ["report.txt", "other.txt"]
    assert asked[0][1].arms == "plain"


def test_documents_that_are_missing_are_asked_for(asked: Asked, questions: Path) -> None:
    result = invoke(mydocs, "--data", questions)
    assert isinstance(result.exception, ConfigurationError)
    assert "--files" in str(result.exception)
    assert asked == []


def test_readings_add_arms_and_those_that_arms_name_are_known() -> None:
    options = EvaluationOptions(arms="plain, pace@bm25:3,plain@window:9")
    evaluation, readings = with_readings(options, ["window:09", "whole", "bm25:1", "bm25:1"])
    assert evaluation.arms == "plain,pace@bm25:3,plain@window:9,plain@bm25:1"
    assert readings == ("bm25:3", "window:9", "bm25:1")
    assert with_readings(EvaluationOptions(), []) == (EvaluationOptions(), ())
    for arms, names in (("plain", ["best"]), ("plain@best", [])):
        with pytest.raises(ConfigurationError, match="no way of reading"):
            with_readings(EvaluationOptions(arms=arms), names)


@pytest.mark.parametrize("command", [niah, packed, mydocs], ids=lambda c: str(c.name))
def test_the_help_says_what_is_measured_and_shows_an_example(command: click.Command) -> None:
    text = invoke(command, "--help").output
    assert f"pacellm-rag eval {command.name} " in text
    assert "score" in text


@pytest.fixture
def folder(tiny: Callable[..., PaceModel], folder_of: Callable[[PaceModel], Path]) -> Path:
    return folder_of(tiny("llama"))


@pytest.mark.slow
def test_the_three_commands_run_through_to_results(
    folder: Path,
    data: Path,
    questions: Path,
    report: str,
    tmp_path: Path,
) -> None:
    lines: dict[click.Command, list[str]] = {
        niah: ["--lengths", "1200", "--depths", "0,100", "--arms", "plain,placebo"],
        packed: ["--data", str(data), "--contexts", "2", "--pages", "2", "--questions", "2",
                 "--unanswerable", "0.5", "--reading", "bm25:1", "--arms", "plain"],
        mydocs: ["--data", str(questions), "--files", report, "--per-reading", "1",
                 "--arms", "plain,plain@window:20"],
    }  # fmt: skip
    for (command, options), samples in zip(lines.items(), (2, 4, 2), strict=True):
        out = tmp_path / str(command.name)
        result = invoke(command, *options, "--model", folder, "--out", out)
        assert result.exit_code == 0, result.output
        summary = json.loads((out / "summary.json").read_text())
        arms = [arm["name"] for arm in summary["arms"]]
        assert (summary["suite"], summary["complete"]) == (command.name, True)
        assert (arms[0], len(arms)) == ("plain", 2)
        text = (out / "samples.jsonl").read_text().splitlines()
        asked = [line for line in map(json.loads, text) if "sample" in line]
        assert len(asked) == 2 * samples
