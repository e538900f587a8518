"""`--adapter` reaches the model, from every command that loads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from transformers import AutoModelForCausalLM

from pacellm_rag.cli import calibrate, cluster, evaluating, opening
from pacellm_rag.cli.evaluating import EvaluationOptions
from pacellm_rag.errors import ModelError
from pacellm_rag.models import loading
from pacellm_rag.models.adapter import merge_adapter
from pacellm_rag.models.model import PaceModel
from pacellm_rag.settings import Settings
from pacellm_rag.testing import ScriptedModel
from training.lora import add_adapters, save_adapter

Run = Callable[..., Result]
IDS = torch.arange(20, 50)[None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Names and adapters that models are loaded with."""
    found: list[tuple[Any, Any]] = []

    def load_model(name: object, *, adapter: object, **_: object) -> ScriptedModel:
        found.append((name, adapter))
        return ScriptedModel()

    monkeypatch.setattr(loading, "load_model", load_model)
    return found


@pytest.mark.parametrize(
    ("setting", "adapter"),
    [("auto", "auto"), ("none", None), ("./lora", "./lora"), ("owner/lora", "owner/lora")],
)
def test_what_settings_say_is_what_is_loaded(
    asked: list[tuple[Any, Any]], setting: str, adapter: str | None
) -> None:
    opening.open_model(Settings(model="m", adapter=setting))
    assert asked == [("m", adapter)]


@pytest.mark.parametrize(
    "words",
    ["ask", "chat", "calibrate", "cluster", *(f"eval {name}" for name in (
        "niah", "longbench", "infinitebench", "mydocs", "packed", "lm-eval"))],
)  # fmt: skip
def test_every_command_that_loads_a_model_takes_an_adapter(run: Run, words: str) -> None:
    result = run(*words.split(), "--help")
    assert result.exit_code == 0
    assert "--adapter NAME" in result.stdout


def test_a_model_or_an_adapter_of_the_hub_is_told_of(
    run: Run,
    use_model: Callable[[ScriptedModel], list[Settings]],
    report: str,
    tmp_path: Path,
) -> None:
    use_model(ScriptedModel())
    asking = ("ask", report, "-q", "Why?", "--model", str(tmp_path))
    there = run(*asking, "--adapter", str(tmp_path))
    assert "from the hub" not in there.stderr
    away = run(*asking, "--adapter", "owner/lora")
    assert f"Loading {tmp_path} with owner/lora from the hub or its cache" in away.stderr


@torch.no_grad()
def test_an_adapter_becomes_part_of_a_clustered_copy(
    run: Run,
    tiny: Callable[..., PaceModel],
    folder_of: Callable[[PaceModel], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "hush_libraries", lambda: None)
    model = tiny("llama")
    folder, out = folder_of(model), tmp_path / "out"
    trained = add_adapters(tiny("llama").module, 4, 8.0)
    for part in trained.values():
        torch.nn.init.normal_(part.lora_B, std=0.1)
    adapter = tmp_path / "lora"
    save_adapter(trained, adapter, alpha=8.0, base="tiny")
    given = ("--experts", "8", "--adapter", str(adapter))
    assert run("cluster", str(folder), str(out), *given).exit_code == 0
    merge_adapter(model.module, adapter)
    copied = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(copied(IDS).logits, model.module(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_evaluation_loads_and_notes_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(**given: Any) -> str:
        return EvaluationOptions(**given).adapter_in_words

    assert EvaluationOptions(adapter="./lora").model_settings.adapter == "./lora"
    monkeypatch.setattr(evaluating, "default_adapter", lambda: None)
    assert words() == "none"
    monkeypatch.setattr(evaluating, "default_adapter", lambda: Path("own"))
    assert words() == words(model="SmolLM2-135M-Instruct") == "the default model's own"
    assert words(model="another") == words(adapter="none") == "none"
    assert words(adapter="./lora") == words(model="m", adapter="./lora") == "./lora"


def test_a_calibration_is_of_the_model_with_its_adapter(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(name: str, *, adapter: object, **_: object) -> None:
        raise ModelError(f"{name} with {adapter}")

    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr(calibrate, "hush_libraries", lambda: None)
    data = tmp_path / "qa.jsonl"
    row = {
        "title": "Oak",
        "context": "An oak is a tree.",
        "questions": [[f"What is {i}?", ["a tree"]] for i in range(4)],
    }
    lines = [json.dumps(row | {"title": f"Oak {i}", "context": f"Oak {i}."}) for i in range(8)]
    data.write_text("\n".join(lines))
    small = ("--data", str(data), "--contexts", "2", "--pages", "1", "--questions", "2")
    assert "m with auto" in run("calibrate", "m", *small).stderr
    assert "m with None" in run("calibrate", "m", *small, "--adapter", "none").stderr
