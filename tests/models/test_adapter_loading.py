"""Which adapter lies on a model when it is loaded, where it comes from, and what it is called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_files import layers_of, random_parts, same, weights, write_adapter

from pacellm_rag.errors import ModelError
from pacellm_rag.models import adapter as adapters
from pacellm_rag.models import default_model, loading
from pacellm_rag.models.adapter import adapter_name, find_adapter, merge_adapter
from pacellm_rag.models.default_model import default_adapter
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.shared import release_shared_models, shared_model

Tiny = Callable[..., PaceModel]
WHERE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def folder(tiny: Tiny, folder_of: Callable[[PaceModel], Path]) -> Path:
    return folder_of(tiny())


@pytest.fixture
def laid(tiny: Tiny, tmp_path: Path) -> Path:
    module = tiny().module
    return write_adapter(tmp_path / "lora", random_parts(module, layers_of(module, ["q_proj"])))


def merged(tiny: Tiny, adapter: Path) -> dict[str, torch.Tensor]:
    module = tiny().module
    merge_adapter(module, adapter)
    return weights(module)


def test_a_named_adapter_is_merged_and_in_the_name(tiny: Tiny, folder: Path, laid: Path) -> None:
    for form in (laid, str(laid)):
        model = load_model(folder, adapter=form, **WHERE)  # type: ignore[arg-type]
        assert model.name == "tiny-llama+lora"
        assert same(weights(model.module), merged(tiny, laid))


def test_the_files_of_the_model_stay_as_they_are(folder: Path, laid: Path) -> None:
    file = folder / "model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    for dtype in ("float32", "bfloat16"):  # as in the file, and converted
        load_model(folder, adapter=laid, device="cpu", dtype=dtype)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_without_one_a_model_is_as_it_is(
    tiny: Tiny, folder: Path, laid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "default_adapter", lambda: laid)
    for model in (load_model(folder, **WHERE), load_model(folder, adapter=None, **WHERE)):  # type: ignore[arg-type]
        assert model.name == "tiny-llama"
        assert same(weights(model.module), weights(tiny().module))


def test_the_default_model_gets_its_own_unless_told_otherwise(
    tiny: Tiny, folder: Path, laid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "default_model_folder", lambda: folder)
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["v_proj"]))
    own = write_adapter(tmp_path / "own", parts)
    plain = weights(module)

    monkeypatch.setattr(loading, "default_adapter", lambda: None)
    assert same(weights(load_model(**WHERE).module), plain)  # type: ignore[arg-type]
    monkeypatch.setattr(loading, "default_adapter", lambda: own)
    model = load_model(**WHERE)  # type: ignore[arg-type]
    assert model.name == "tiny-llama"
    assert same(weights(model.module), merged(tiny, own))
    assert same(weights(load_model(adapter=None, **WHERE).module), plain)  # type: ignore[arg-type]
    other = load_model(adapter=laid, **WHERE)  # type: ignore[arg-type]
    assert other.name == "tiny-llama+lora"
    assert same(weights(other.module), merged(tiny, laid))


def test_the_default_adapter_is_there_when_its_weights_are(
    laid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "_ADAPTER", tmp_path / "nothing")
    assert default_adapter() is None
    monkeypatch.setattr(default_model, "_ADAPTER", laid)
    assert default_adapter() == laid
    (laid / "adapter_model.safetensors").unlink()
    assert default_adapter() is None


def test_an_adapter_that_is_not_there_is_refused_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_load_config", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(ModelError, match="There is no adapter at"):
        load_model(folder, adapter="./nothing")


def test_shared_models_differ_by_their_adapter(
    folder: Path, laid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(laid.parent)
    try:
        with_it = shared_model(folder, adapter="lora", store_bytes=0)
        assert shared_model(folder, adapter=laid, store_bytes=0) is with_it
        assert shared_model(folder, store_bytes=0) is not with_it
    finally:
        release_shared_models()


def test_a_folder_is_found_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(adapters, "snapshot_download", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "lora").mkdir(parents=True)
    assert find_adapter("owner/lora") == Path("owner/lora")
    assert adapter_name("owner/lora/") == adapter_name(Path("owner/lora")) == "lora"
    monkeypatch.chdir(tmp_path / "owner" / "lora")
    assert adapter_name(".") == "lora"
    for name in ("./no/lora", "/no/lora", "~/lora", "a/b/c", "lora", "none", Path("owner/lora")):
        with pytest.raises(ModelError, match=r"There is no adapter at .*: no such folder"):
            find_adapter(name)
    file = tmp_path / "adapter_model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match=r"is a file\. Name the folder"):
        find_adapter(file)


def test_an_id_of_the_hub_brings_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def download(name: str, *, allow_patterns: object) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(adapters, "snapshot_download", download)
    assert find_adapter("owner/lora") == tmp_path
    assert adapter_name("owner/lora") == "lora"
    assert asked == [("owner/lora", ["adapter_config.json", "adapter_model.safetensors"])]


@pytest.mark.parametrize("name", ["nobody/no-such-adapter", "no body/not an id"])
def test_what_the_hub_does_not_give_says_what_to_do(name: str) -> None:
    with pytest.raises(ModelError, match="needs the network once"):
        find_adapter(name)
