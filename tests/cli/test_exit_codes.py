from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result

from pacellm_rag import __version__
from pacellm_rag.cli import app, opening
from pacellm_rag.errors import (
    CancelledError,
    ConfigurationError,
    ContextOverflowError,
    DocumentError,
    EncryptedDocumentError,
    MissingDependencyError,
    ModelError,
    ModelNotInstalledError,
    PaceLLMError,
)
from pacellm_rag.testing import ScriptedModel

Run = Callable[..., Result]


def fail_with(error: BaseException) -> Callable[[object], object]:
    def fail(_: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PaceLLMError("x"), 1),
        (ConfigurationError("x"), 2),
        (DocumentError("x", path="p"), 3),
        (EncryptedDocumentError("x", path="p"), 3),
        (MissingDependencyError("x"), 3),
        (ContextOverflowError("x", needed_tokens=2, available_tokens=1), 4),
        (ModelError("x"), 5),
        (ModelNotInstalledError("x"), 5),
        (CancelledError("x"), 130),
    ],
)
def test_each_kind_of_error_has_its_code_and_no_traceback(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch, error: PaceLLMError, code: int
) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", fail_with(error))
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == code
    assert result.stderr == "Error: x\n"


def test_a_bug_shows_its_traceback_only_when_asked(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", fail_with(KeyError("lost")))
    plain = run("ask", report, "-q", "Why?")
    assert plain.exit_code == 1
    assert plain.stderr.startswith("Error: KeyError: 'lost'")
    assert "--debug" in plain.stderr
    assert "Traceback" not in plain.stderr
    for arguments in (["--debug", "ask"], ["ask", "--debug"]):
        assert "Traceback" in run(*arguments, report, "-q", "Why?").stderr
    monkeypatch.setenv("PACELLM_RAG_DEBUG", "1")
    assert "Traceback" in run("ask", report, "-q", "Why?").stderr


def test_used_up_memory_is_a_matter_of_the_model(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", fail_with(MemoryError()))
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == 5
    assert "smaller model" in result.stderr


def test_ctrl_c_ends_with_130(run: Run, report: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_tokenizer", fail_with(KeyboardInterrupt()))
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == 130
    assert result.stderr == "Stopped.\n"


def test_the_default_model_that_is_not_installed_is_named_with_its_command(
    run: Run, report: str
) -> None:
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == 5
    assert "pacellm-rag models install" in result.stderr


def test_a_setting_that_can_not_work_is_wrong_use(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELLM_RAG_WINDOW", "none")
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: PACELLM_RAG_WINDOW is 'none'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask"],
        ["ask", "x.txt", "--no-such-option"],
        ["no-such-command"],
        ["ask", "x.txt", "-q", "?", "--dtype", "int8"],
        ["ask", "x.txt", "-q", "?", "--max-new-tokens", "many"],
        ["ask", "x.txt", "-q", "?", "--max-new-tokens", "0"],
    ],
)
def test_wrong_use_ends_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_every_exit_code_is_in_the_help(run: Run) -> None:
    text = run("--help").stdout
    codes = {code for _, code in app._EXIT_CODES}
    codes |= {0, app.UNEXPECTED, app.USAGE, app.INTERRUPTED, app.PIPE_CLOSED}
    listed = {
        int(line.split()[0])
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0].isdigit()
    }
    assert codes <= listed


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout == f"pacellm-rag, version {__version__}\n"


def test_a_failing_question_keeps_the_answers_before_it(
    run: Run, report: str, use_model: Callable[[ScriptedModel], object]
) -> None:
    model = ScriptedModel(["One."], context_window=600)
    use_model(model)
    result = run("ask", report, "--no-citations", stdin=f"Short?\n{'long ' * 400}\n")
    assert result.exit_code == 4
    assert result.stdout.startswith("Question: Short?\nOne.\n")
