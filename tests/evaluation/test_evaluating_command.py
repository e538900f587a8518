from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import small_command
from click.testing import CliRunner, Result
from small_suite import ACTING, SmallSuite

from pacellm_rag.cli import evaluating, opening
from pacellm_rag.cli.evaluation_progress import EvaluationProgress, time_left
from pacellm_rag.cli.evaluation_table import summary_lines
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ModelError
from pacellm_rag.evaluation import surroundings
from pacellm_rag.evaluation.records import read_run
from pacellm_rag.evaluation.runner import RunProgress
from pacellm_rag.evaluation.summarising import summarise
from pacellm_rag.models.model import PaceModel
from pacellm_rag.settings import Settings
from pacellm_rag.testing import ScriptedModel

Tiny = Callable[..., PaceModel]
Run = Callable[..., Result]
WIDE = f"wide={json.dumps(ACTING.to_dict())}"
IDLE = 'idle={"layers": [0], "low": 1, "high": 1}'


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("PACELLM_RAG_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("PACELLM_RAG_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("PACELLM_RAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which the command opened its model, a tiny one."""
    asked: list[Settings] = []

    def open_model(settings: Settings) -> PaceModel:
        asked.append(settings)
        return tiny("llama")

    monkeypatch.setattr(opening, "open_tokenizer", lambda _: tiny("llama").tokenizer)
    monkeypatch.setattr(opening, "open_model", open_model)
    return asked


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(small_command.shell, ["small", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_a_run_writes_its_results_and_prints_the_arms(
    run: Run, opened: list[Settings], tmp_path: Path
) -> None:
    result = run("--arms", "plain,placebo", "--arm", WIDE)
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "eval" / "small"
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "samples.jsonl", "summary.json", "summary.md", "report.html"} <= names
    rows = result.stdout.splitlines()
    assert rows[0] == "small: letters, against plain"
    assert [row.split()[:2] for row in rows[3:6]] == [
        ["plain", "6"],
        ["placebo", "6"],
        ["wide", "6"],
    ]
    assert "even" in result.stdout
    assert "mean of the tasks' scores" in result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"]
    assert [arm["effect"] for arm in summary["arms"]][2] == "changed"
    assert summary["arms"][2]["pace"] == ACTING.to_dict()
    notes = summary["notes"]
    assert notes["hardware"]["cores"] >= 1
    assert notes["versions"]["torch"]
    assert re.fullmatch(r"[0-9a-f]{40}\+?", notes["commit"] or "0" * 40)
    assert summary["identity"]["model"] == "tiny-llama"
    assert "6 samples in 3 groups under 3 arms; results go to eval/small" in result.stderr
    notes_seen = re.findall(r"(\d+) of 18 samples", result.stderr)
    assert notes_seen[0] == "0"
    assert notes_seen[-1] == "18"
    assert 5 < len(notes_seen) <= 11
    assert "Written to eval/small: summary.json" in result.stderr


def test_the_model_is_opened_plain_and_as_the_options_say(
    run: Run, opened: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELLM_RAG_DTYPE", "float32")
    run("--arms", "plain", "--model", "some/model", "--device", "cpu", "--window", "512",
        "--context-window", "4096", "--limit", "1")  # fmt: skip
    assert opened == [
        Settings(model="some/model", device="cpu", dtype="float32", window=512,
                 context_window=4096, pace="off", store_gb=0.0)
    ]  # fmt: skip
    run("--arms", "plain", "--limit", "1", "--model", "SmolLM2-135M-Instruct")
    assert opened[-1].model is None


def test_the_arm_pace_says_where_its_settings_come_from(
    run: Run, opened: list[Settings], tmp_path: Path
) -> None:
    result = run("--arms", "plain,pace", "--model", "x", "--out", str(tmp_path / "a"))
    assert "Settings of the arm pace: the defaults of PaceLLM" in result.stderr
    result = run("--arms", "plain,pace", "--out", str(tmp_path / "b"))
    assert "Settings of the arm pace: calibrated for the default model" in result.stderr
    assert "calibrated" in read_run(tmp_path / "b").notes["pace"]
    result = run("--arms", "plain", "--out", str(tmp_path / "c"))
    assert "Settings of the arm pace" not in result.stderr


def test_an_arm_without_effect_fails_the_run_when_all_is_written(
    run: Run, opened: list[Settings], tmp_path: Path
) -> None:
    result = run("--arms", "plain,placebo", "--arm", IDLE)
    assert result.exit_code == 6
    assert "Error: idle had no effect" in result.stderr
    assert "idle had no effect: it changed no bit of what plain computes." in result.stdout
    summary = json.loads((tmp_path / "eval/small/summary.json").read_text())
    assert [arm["effect"] for arm in summary["arms"]][2] == "none"
    assert (tmp_path / "eval/small/report.html").exists()


@pytest.mark.slow
def test_a_stopped_run_sums_up_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("small_command.py")
    command = [sys.executable, str(script), "small", "--out", str(tmp_path / "out")]
    command += ["--arms", "plain,placebo", "--arm", WIDE]
    samples = tmp_path / "out" / "samples.jsonl"
    process = subprocess.Popen([*command, "--pause", "0.3"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    try:
        while not samples.exists() or samples.read_bytes().count(b'"unit"') < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "What is done is kept: the same command goes on from there." in said
    assert said.endswith("Stopped.\n")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["arms"][0]["groups"] >= 1
    before = samples.read_bytes()[:300]
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert "Not complete" not in again.stdout
    assert samples.read_bytes().startswith(before)
    record = read_run(tmp_path / "out")
    assert len(record.units) == 9
    assert summarise(record).complete
    assert len(record.notes["earlier"]) == 1


def test_a_sample_that_fails_ends_the_run_and_keeps_what_is_done(
    run: Run, opened: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def small(at: str) -> Callable[..., SmallSuite]:
        return lambda **more: SmallSuite(fails_at=(at, ModelError("too hot")), **more)

    monkeypatch.setattr(small_command, "SmallSuite", small("t0-first"))
    result = run("--arms", "plain,placebo")
    assert result.exit_code == 5
    assert "No group was finished" in result.stderr
    assert not (tmp_path / "eval/small/summary.json").exists()
    monkeypatch.setattr(small_command, "SmallSuite", small("t2-last"))
    result = run("--arms", "plain,placebo")
    assert result.exit_code == 5
    assert result.stderr.endswith("Error: too hot\n")
    assert "Not complete. Of 3 groups are done: plain 2, placebo 2." in result.stdout
    assert json.loads((tmp_path / "eval/small/summary.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--arms", "plain,fast"], "no arm 'fast'"),
        (["--arms", "pace,placebo"], "there must be plain"),
        (["--arm", "wide"], "names no arm"),
        (["--arm", IDLE, "--arm", IDLE], "idle is set twice"),
        (["--arm", 'wide={"slots": 0}'], "slots is 0"),
        (["--window", "0"], "window is 0"),
        (["--texts", "0"], "no samples"),
    ],
)
def test_wrong_use_is_refused_before_the_model_is_loaded(
    run: Run, opened: list[Settings], arguments: list[str], match: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert match in result.stderr
    assert opened == []


def test_another_run_in_the_folder_is_left_as_it_is(
    run: Run, opened: list[Settings], tmp_path: Path
) -> None:
    assert run("--arms", "plain").exit_code == 0
    files = {path: path.read_bytes() for path in (tmp_path / "eval/small").iterdir()}
    result = run("--arms", "plain", "--words", "90")
    assert result.exit_code == 2
    assert "settings.words was 100 and is now 90" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "eval/small").iterdir()} == files
    assert run("--arms", "plain", "--words", "90", "--fresh").exit_code == 0


def test_a_model_without_weights_can_not_have_arms(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ScriptedModel()
    monkeypatch.setattr(opening, "open_tokenizer", lambda _: model.tokenizer)
    monkeypatch.setattr(opening, "open_model", lambda _: model)
    result = run()
    assert result.exit_code == 2
    assert "no arm can be put on it" in result.stderr


def test_results_that_can_not_be_summed_up_do_not_hide_why_the_run_ended(
    run: Run, opened: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no ink")

    def small(**more: Any) -> SmallSuite:
        return SmallSuite(fails_at=("t2-last", KeyboardInterrupt()), **more)

    monkeypatch.setattr(evaluating, "summarise", fail)
    monkeypatch.setattr(small_command, "SmallSuite", small)
    result = run("--arms", "plain")
    assert result.exit_code == 130
    assert "could not be summed up: RuntimeError('no ink')" in result.stderr


def test_every_option_is_in_the_help(run: Run) -> None:
    text = run("--help").stdout
    for option in ("--model", "--device", "--dtype", "--context-window", "--window", "--arms",
                   "--arm", "--limit", "--seed", "--out", "--fresh", "--debug"):  # fmt: skip
        assert f"{option} " in text
    assert isinstance(small_command.small, click.Command)


class OnTerminal(Terminal):
    shows_progress = True


def test_a_bar_shows_the_arm_the_samples_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = OnTerminal()
    with EvaluationProgress(terminal) as progress:
        progress(RunProgress(0, 4000, "plain", None))
        progress(RunProgress(1000, 4000, "pa\x1bce", 300.0))
        progress._progress.refresh()
    shown = capsys.readouterr().err
    assert "1,000 of 4,000 samples, 5 min left" in shown
    assert "pace" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"),
                          (6000, "1 h 40 min"), (90000, "25 h 0 min")]
)  # fmt: skip
def test_times_are_told_in_units_that_say_enough(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_a_table_is_made_where_intervals_are_unknown(
    run: Run, opened: list[Settings], tmp_path: Path
) -> None:
    result = run("--arms", "plain,placebo", "--limit", "1")
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    lines = list(summary_lines(summarise(read_run(tmp_path / "eval" / "small"))))
    assert "\n".join(lines) + "\n" == result.stdout


def test_the_commit_is_told_only_where_git_keeps_the_files(tmp_path: Path) -> None:
    assert surroundings.commit_of(tmp_path) is None
    assert surroundings.commit_of(tmp_path / "nowhere") is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True,
                       capture_output=True)  # fmt: skip

    git("init")
    assert surroundings.commit_of(tmp_path) is None
    (tmp_path / "file").write_text("1")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "installed").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = surroundings.commit_of(tmp_path)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert surroundings.commit_of(tmp_path / "inner") is None, "lies there, but is not kept"
    (tmp_path / "file").write_text("2")
    assert surroundings.commit_of(tmp_path) == f"{commit}+"
