from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacellm_rag.cli import cluster as command
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.clustering import undo
from pacellm_rag.pace.expert_map import ExpertMap, is_applied
from pacellm_rag.pace.experts import expert_activity

Run = Callable[..., Result]
IDS = torch.arange(20, 50)[None]


@pytest.fixture(autouse=True)
def quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    # would change how transformers logs for the rest of the test run
    monkeypatch.setattr(command, "hush_libraries", lambda: None)


@pytest.fixture
def folder(tiny: Callable[..., PaceModel], folder_of: Callable[[PaceModel], Path]) -> Path:
    return folder_of(tiny("llama", dtype="bfloat16"))


@torch.no_grad()
def test_the_copy_is_the_same_model_with_a_map(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "clustered"
    result = run("cluster", str(folder), str(out), "--experts", "8", "--seed", "3")
    assert (result.exit_code, result.stdout) == (0, f"3 layers of 8 experts each are in {out}\n")
    assert "Its answers are those of" in result.stderr
    assert [each.name for each in out.parent.iterdir()] == ["clustered"]

    plain, copied = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, out))
    assert copied.dtype == torch.bfloat16
    one, two = plain(IDS).logits.float(), copied(IDS).logits.float()
    assert (one - two).abs().max() <= 0.04 * one.abs().max()
    text = "What is it?"
    encoded = AutoTokenizer.from_pretrained(out).encode(text)
    assert encoded == AutoTokenizer.from_pretrained(folder).encode(text)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert "pace_causal" not in (out / "config.json").read_text()

    experts = ExpertMap.load(out / "experts.safetensors")
    assert is_applied(copied, experts)
    assert not is_applied(plain, experts)
    assert expert_activity(copied, list(range(20, 50)), experts).mean.shape == (3, 8)
    undo(copied, experts)
    before = plain.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in copied.state_dict().items())


def test_the_seed_and_the_number_of_experts_are_used(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = ("--experts", "5", "--seed", seed)
        assert run("cluster", str(folder), str(tmp_path / out), *arguments).exit_code == 0
    a, b, c = (ExpertMap.load(tmp_path / out / "experts.safetensors") for out in "abc")
    assert a.n_experts == 5
    assert torch.equal(a.layers[0].labels, b.layers[0].labels)
    assert not torch.equal(a.layers[0].labels, c.layers[0].labels)


def test_an_empty_folder_is_taken_and_a_full_one_refused(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("cluster", str(folder), str(empty), "--experts", "4").exit_code == 0
    before = sorted(path.name for path in empty.iterdir())
    for full in (empty, folder, folder / "config.json"):
        result = run("cluster", str(folder), str(full), "--experts", "4")
        assert result.exit_code == 2
        assert "is not an empty folder" in result.stderr
    assert sorted(path.name for path in empty.iterdir()) == before


def test_more_experts_than_neurons_write_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("cluster", str(folder), str(tmp_path / "out"), "--experts", "65")
    assert result.exit_code == 2
    assert "64 neurons" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(command, "_save", fail)
    place = tmp_path / "place"
    result = run("cluster", str(folder), str(place / "out"), "--experts", "4")
    assert result.exit_code == 5
    assert "disk full" in result.stderr
    assert list(place.iterdir()) == []


def test_the_default_model_goes_by_its_name(run: Run, tmp_path: Path) -> None:
    result = run("cluster", "SmolLM2-135M-Instruct", str(tmp_path / "out"))
    assert result.exit_code == 5
    assert "pacellm-rag models install" in result.stderr
    assert run("cluster", str(tmp_path / "none"), str(tmp_path / "out")).exit_code == 5
