"""An adapter is merged exactly: as if it were computed beside the weights, and as peft does it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import RANK, layers_of, random_parts, same, weights, write_adapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from pacellm_rag.errors import ModelError
from pacellm_rag.models.adapter import merge_adapter
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel, weights_fingerprint

Tiny = Callable[..., PaceModel]

TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gemma3": ("o_proj", "down_proj"),
    "phi3": ("qkv_proj", "gate_up_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neox": ("query_key_value", "dense_h_to_4h"),
}
IDS = torch.arange(20, 60)[None]


@torch.no_grad()
def with_hooks(module: PreTrainedModel, parts: dict[str, Tensor], scale: float) -> Tensor:
    """Logits with the low-rank parts computed beside the weights."""
    hooks = []
    for key in (key for key in parts if "lora_A" in key):
        down, up = parts[key], parts[key.replace("lora_A", "lora_B")]

        def add(
            _: nn.Module, given: tuple[Tensor], out: Tensor, down: Tensor = down, up: Tensor = up
        ) -> Tensor:
            return out + scale * (given[0] @ down.T @ up.T)

        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        hooks.append(module.get_submodule(name).register_forward_hook(add))
    logits: Tensor = module(IDS).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", list(TARGETS))
@torch.no_grad()
def test_merged_is_the_same_as_computed_beside(tiny: Tiny, family: str, tmp_path: Path) -> None:
    module = tiny(family).module
    targets = TARGETS[family]
    parts = random_parts(module, layers_of(module, targets))
    folder = write_adapter(tmp_path, parts, target_modules=list(targets))
    plain, expected = module(IDS).logits, with_hooks(module, parts, 2.0)
    merge_adapter(module, folder)
    merged = module(IDS).logits
    assert (plain - expected).abs().max() > 0.05
    assert torch.allclose(merged, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_are_rounded_once(tiny: Tiny, tmp_path: Path) -> None:
    module = tiny(dtype="bfloat16").module
    (layer,) = layers_of(module, ["down_proj"])[:1]
    parts = random_parts(module, [layer])
    parts = {name: tensor.bfloat16() for name, tensor in parts.items()}
    before = weights(module)
    merge_adapter(module, write_adapter(tmp_path, parts))
    down, up = (
        parts[f"base_model.model.{layer}.{part}.weight"].double() for part in ("lora_A", "lora_B")
    )
    exact = before[f"{layer}.weight"].double() + 2.0 * up @ down
    after = weights(module)
    changed = after.pop(f"{layer}.weight")
    assert changed.dtype == torch.bfloat16
    assert (changed == exact.bfloat16()).float().mean() > 0.999  # ties of float32 and float64
    assert same(after, {name: before[name] for name in after})


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 2.0}, 0.5),
        ({"use_rslora": True}, 8 / math.sqrt(RANK)),
        ({"alpha_pattern": {"self_attn.q_proj": 12}}, 3.0),
        ({"alpha_pattern": {"q_proj": 12}, "lora_alpha": 1}, 3.0),
        ({"alpha_pattern": {"proj": 12}}, 2.0),
        ({"rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": RANK}, "r": 1}, 2.0),
    ],
    ids=str,
)
def test_the_scale_is_the_configurations(
    tiny: Tiny, tmp_path: Path, fields: dict[str, Any], scale: float
) -> None:
    module = tiny().module
    parts = random_parts(module, layers_of(module, ["q_proj"]))
    expected = with_hooks(module, parts, scale)
    merge_adapter(module, write_adapter(tmp_path, parts, **fields))
    with torch.no_grad():
        assert torch.allclose(module(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_can_be_adapted_and_a_tied_one_not(tiny: Tiny, tmp_path: Path) -> None:
    free = tiny(tie_word_embeddings=False).module
    parts = random_parts(free, ["lm_head"])
    folder = write_adapter(tmp_path, parts)
    embeddings = free.get_input_embeddings().weight.clone()
    expected = with_hooks(free, parts, 2.0)
    merge_adapter(free, folder)
    with torch.no_grad():
        assert torch.allclose(free(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(free.get_input_embeddings().weight, embeddings)

    tied = tiny(tie_word_embeddings=True).module
    before = weights(tied)
    with pytest.raises(ModelError, match=r"those of model\.embed_tokens\.weight too \(tied\)"):
        merge_adapter(tied, folder)
    assert same(weights(tied), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_merges_to_the_same_weights(tiny: Tiny, family: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        base, module = tiny(family).module, tiny(family).module
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=8,
            target_modules=list(TARGETS[family]),
            rank_pattern={r"layers\.0\.self_attn\.q_proj": 2, r"h\.1\.attn\.c_attn": 2},
            alpha_pattern={"down_proj": 3, "mlp.c_proj": 3},
        )
        wrapped = peft.get_peft_model(tiny(family).module, config)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        wrapped.save_pretrained(tmp_path)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    merge_adapter(module, tmp_path)
    ours = weights(module)
    assert theirs.state_dict().keys() == ours.keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(tensor, ours[name], rtol=1e-5, atol=1e-6), name


def test_however_little_an_adapter_changes_the_fingerprint_is_another(
    tiny: Tiny, tmp_path: Path
) -> None:
    module, again, plain = (tiny(dtype="bfloat16").module for _ in range(3))
    layer = layers_of(module, ["q_proj"])[:1]
    folder = write_adapter(tmp_path / "a", random_parts(module, layer, size=1e-6))
    merge_adapter(module, folder)
    merge_adapter(again, folder)
    assert same(weights(module), weights(plain))  # lost in rounding
    prints = [weights_fingerprint(each) for each in (plain, module)]
    other = tiny(dtype="bfloat16").module
    parts = random_parts(module, layer, size=1e-6)
    merge_adapter(other, write_adapter(tmp_path / "b", parts, lora_alpha=3))
    prints.append(weights_fingerprint(other))
    merge_adapter(other, folder)
    prints.append(weights_fingerprint(other))
    assert len(set(prints)) == 4
    assert weights_fingerprint(again) == prints[1]


def test_what_was_read_with_an_adapter_is_not_taken_for_what_was_read_without(
    tiny: Tiny,
    folder_of: Callable[[PaceModel], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path / "readings"))
    model = tiny()
    saved = folder_of(model)
    parts = random_parts(model.module, layers_of(model.module, ["v_proj"]))
    laid = write_adapter(tmp_path / "lora", parts)
    ids = [20 + i % 97 for i in range(400)]

    def known(adapter: Path | None) -> int:
        loaded = load_model(saved, adapter=adapter, device="cpu", dtype="float32")
        reused = loaded.prefill(ids).tokens_reused
        loaded.flush()
        return reused

    assert [known(each) for each in (None, laid, None, laid)] == [0, 0, 400, 400]
