"""The shell with a scripted model in place of a real one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pacellm_rag.cli import opening, shell
from pacellm_rag.settings import Settings
from pacellm_rag.testing import ScriptedModel

REPORT = "Results\n\nThe profit was 1,200 euros in 2023.\n\fOutlook\n\nThe plant closes in March."


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("PACELLM_RAG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PACELLM_RAG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("PACELLM_RAG_CONFIG", str(tmp_path / "config.toml"))
    # would change how transformers logs for the rest of the test run
    monkeypatch.setattr(opening, "hush_libraries", lambda: None)


@pytest.fixture
def report(tmp_path: Path) -> str:
    path = tmp_path / "report.txt"
    path.write_text(REPORT, encoding="utf-8")
    return str(path)


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[ScriptedModel], list[Settings]]:
    """Makes the shell use a model; the list fills with the settings it was opened with."""

    def use(model: ScriptedModel) -> list[Settings]:
        opened: list[Settings] = []

        def open_model(settings: Settings) -> ScriptedModel:
            opened.append(settings)
            return model

        monkeypatch.setattr(opening, "open_tokenizer", lambda _: model.tokenizer)
        monkeypatch.setattr(opening, "open_model", open_model)
        return opened

    return use


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs a command line; an exception that leaves it fails the test."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(shell, list(arguments), input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke
