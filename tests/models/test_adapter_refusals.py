"""What can not be merged exactly is refused, and a model changes as a whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import RANK, layers_of, random_parts, same, weights, write_adapter
from torch import nn
from transformers import PreTrainedModel

from pacellm_rag.errors import ModelError
from pacellm_rag.models.adapter import merge_adapter
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.pace.clustering import apply_permutation, cluster_neurons

Tiny = Callable[..., PaceModel]


def refused(module: PreTrainedModel, folder: Path, message: str) -> None:
    before, noted = weights(module), weights_fingerprint(module)
    with pytest.raises(ModelError, match=message):
        merge_adapter(module, folder)
    assert same(weights(module), before)
    assert weights_fingerprint(module) == noted


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "IA3"},
        {"peft_type": "ADALORA"},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts"]},
        {"alora_invocation_tokens": [5]},
        {"invented_tomorrow": True},
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused_by_field(
    tiny: Tiny, tmp_path: Path, fields: dict[str, Any]
) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])), **fields)
    ((name, value),) = fields.items()
    refused(module, folder, "Merge it with peft")
    with pytest.raises(ModelError) as caught:
        merge_adapter(module, folder)
    assert f"has {name} = {value!r}, which can not be merged" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0},
        {"r": 4.0},
        {"r": True},
        {"r": None},
        {"lora_alpha": "8"},
        {"lora_alpha": math.inf},
        {"lora_alpha": math.nan},
        {"rank_pattern": {"q_proj": "4"}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"(": 4}},
        {"alpha_pattern": {"(?i)q_proj": 4}},
        {"lora_alpha": 10**400},
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_damaged(
    tiny: Tiny, tmp_path: Path, fields: dict[str, Any]
) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])), **fields)
    refused(module, folder, r"adapter_config\.json is damaged")


@pytest.mark.parametrize("field", ["peft_type", "r", "lora_alpha"])
def test_a_configuration_without_a_field_is_damaged(tiny: Tiny, tmp_path: Path, field: str) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    del fields[field]
    path.write_text(json.dumps(fields))
    refused(module, folder, f"is damaged.*{field}")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe{}"])
def test_a_configuration_that_is_no_json_object_can_not_be_read(
    tiny: Tiny, tmp_path: Path, content: bytes
) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    (folder / "adapter_config.json").write_bytes(content)
    refused(module, folder, r"adapter_config\.json can not be read")


def test_missing_and_damaged_files_are_named(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], content[:4], b"", b"\xff" * 100):
        file.write_bytes(damaged)
        refused(module, folder, r"adapter_model\.safetensors is damaged")
    write_adapter(folder, {})
    refused(module, folder, "holds no tensors")
    file.unlink()
    refused(module, folder, r"holds no adapter_model\.safetensors\. Get the adapter again")
    (folder / "adapter_model.bin").write_bytes(content)
    refused(module, folder, "a pickle, which can run any code and is never opened")
    (folder / "adapter_config.json").unlink()
    refused(module, folder, r"is no adapter: it holds no adapter_config\.json")


KEY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (f"{KEY}.lora_magnitude_vector", (32,), "no low-rank part of a linear layer"),
        (f"{KEY}.lora_B.bias", (32,), "no low-rank part of a linear layer"),
        (f"{KEY}.base_layer.weight", (32, 32), "no low-rank part of a linear layer"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 260), "no low-rank part"),
        ("base_model.model.lm_head.weight", (260, 32), "no low-rank part"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 32), "no low-rank part"),
        (f"{KEY.replace('q_proj', 'k_proj')}.lora_A.weight", (4, 32), "lora_A and lora_B only"),
    ],
)
def test_tensors_that_are_no_parts_of_linear_layers_are_refused(
    tiny: Tiny, tmp_path: Path, key: str, shape: tuple[int, ...], message: str
) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"])) | {key: torch.ones(shape)}
    refused(module, write_adapter(tmp_path, parts), message)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("model.layers.7.self_attn.q_proj", "does not have. Load the model it was made for"),
        ("model.embed_tokens", "a Embedding that is no plain linear layer"),
        ("model.norm", "a LlamaRMSNorm that is no plain linear layer"),
    ],
)
def test_layers_that_are_missing_or_of_another_kind_are_refused(
    tiny: Tiny, tmp_path: Path, layer: str, message: str
) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    parts |= {
        f"base_model.model.{layer}.lora_A.weight": torch.ones(RANK, 32),
        f"base_model.model.{layer}.lora_B.weight": torch.ones(32, RANK),
    }
    refused(module, write_adapter(tmp_path, parts), message)


@pytest.mark.parametrize(
    ("part", "shape"),
    [("lora_A", (RANK, 33)), ("lora_B", (32, 3)), ("lora_A", (0,)), ("lora_B", (0, RANK))],
)
def test_parts_of_another_shape_are_refused_with_both_shapes(
    tiny: Tiny, tmp_path: Path, part: str, shape: tuple[int, ...]
) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    parts[f"{KEY}.{part}.weight"] = torch.ones(shape)
    refused(module, write_adapter(tmp_path, parts), r"this model needs \(32, 4\) and \(4, 32\)")


def test_a_rank_other_than_the_configurations_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]), rank=3)
    refused(module, write_adapter(tmp_path, parts), r"this model needs \(32, 4\) and \(4, 32\)")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(tiny: Tiny, tmp_path: Path, value: float) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    parts[f"{KEY}.lora_B.weight"][5, 1] = value
    refused(module, write_adapter(tmp_path, parts), "holds what is no finite number")


def test_whole_numbers_are_no_adapter(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    parts[f"{KEY}.lora_B.weight"] = parts[f"{KEY}.lora_B.weight"].to(torch.int8)
    refused(module, write_adapter(tmp_path, parts), "holds what is no finite number")


def test_a_sum_too_large_for_the_number_type_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module.half()
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    last = "base_model.model.model.layers.2.self_attn.q_proj"
    for part in ("lora_A", "lora_B"):
        parts[f"{last}.{part}.weight"] *= 1e4
    refused(module, write_adapter(tmp_path, parts), r"layers\.2.* not finite in float16")


def test_parts_that_look_too_large_and_are_not_are_merged(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module.half()
    layer = "model.layers.0.self_attn.q_proj"
    parts = {key: torch.zeros_like(part) for key, part in random_parts(module, [layer]).items()}
    parts[f"{KEY}.lora_A.weight"][0, 0] = parts[f"{KEY}.lora_B.weight"][0, 1] = 1e4
    before = weights(module)
    merge_adapter(module, write_adapter(tmp_path, parts))  # the product is zero everywhere
    assert same(weights(module), before)


def test_an_adapter_that_lacks_layers_of_its_targets_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny().module
    layers = layers_of(module, ["q_proj", "v_proj"])
    parts = random_parts(module, layers[:-1])
    targets: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
    refused(module, write_adapter(tmp_path, parts, **targets), f"has nothing for {layers[-1]}")
    targets["layers_to_transform"] = [0, 1]  # then not all are its targets
    merge_adapter(module, write_adapter(tmp_path, parts, **targets))


def test_weights_that_are_not_there_or_not_in_floating_point_are_refused(
    tiny: Tiny, tmp_path: Path
) -> None:
    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    layer: Any = module.get_submodule("model.layers.1.self_attn.q_proj")
    kept = layer.weight
    layer.weight = nn.Parameter(kept.to(torch.int8), requires_grad=False)
    refused(module, folder, r"whose weights are torch\.int8\. Load the model without quantis")
    layer.weight = nn.Parameter(kept.to("meta"))
    before = weights(module)
    with pytest.raises(ModelError, match=r"not in memory \(meta, or offloaded\)"):
        merge_adapter(module, folder)
    layer.weight = kept
    before[f"{'model.layers.1.self_attn.q_proj'}.weight"] = kept
    assert same(weights(module), before)


def test_linear_layers_with_a_forward_of_their_own_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    class Linear4bit(nn.Linear):
        pass

    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    module.get_submodule("model.layers.0.self_attn").q_proj = Linear4bit(32, 32, bias=False)
    refused(module, folder, "a Linear4bit that is no plain linear layer")


def test_weights_of_a_tensor_type_of_their_own_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    class Packed(nn.Parameter):
        pass

    module = tiny().module
    folder = write_adapter(tmp_path, random_parts(module, layers_of(module, ["q_proj"])))
    layer: Any = module.get_submodule("model.layers.0.self_attn.q_proj")
    layer.weight = Packed(layer.weight.detach())
    refused(module, folder, "that is no plain linear layer")


def test_neurons_in_another_order_take_no_adapter(
    tiny: Tiny, folder_of: Callable[[PaceModel], Path], tmp_path: Path
) -> None:
    model = tiny()
    module = model.module
    experts = cluster_neurons(module, 8, seeds=(0,))
    apply_permutation(module, experts)
    folder = folder_of(model)
    experts.save(folder / "experts.safetensors")
    module.name_or_path = str(folder)
    parts = random_parts(module, layers_of(module, ["down_proj"]))
    refused(module, write_adapter(tmp_path / "a", parts), "--adapter NAME")
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    merge_adapter(module, write_adapter(tmp_path / "b", parts))  # attention is in its order
