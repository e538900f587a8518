from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from pacellm_rag.errors import ModelError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.architectures import LAYOUTS, FeedForward, Layout, find_feed_forwards
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]

SIZES: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}

# family -> configuration class, its arguments, path of layer 1's network, names, width
OTHERS: dict[str, tuple[str, dict[str, Any], str, str, int]] = {
    "opt": (
        "OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "model.decoder.layers.1", "fc1/fc2", 64,
    ),
    "phi": (
        "PhiConfig", {**SIZES, "intermediate_size": 64}, "model.layers.1.mlp", "fc1/fc2", 64,
    ),
    "starcoder2": ("Starcoder2Config", GROUPED, "model.layers.1.mlp", "c_fc/c_proj", 64),
    "falcon": (
        "FalconConfig", {**SIZES, "bias": True},
        "transformer.h.1.mlp", "dense_h_to_4h/dense_4h_to_h", 128,
    ),
    "bloom": (
        "BloomConfig", {**SIZES, "n_layer": 2, "n_head": 4},
        "transformer.h.1.mlp", "dense_h_to_4h/dense_4h_to_h", 128,
    ),
    "nemotron": ("NemotronConfig", GROUPED, "model.layers.1.mlp", "up_proj/down_proj", 64),
    "lfm2": (
        "Lfm2Config", {**GROUPED, "block_auto_adjust_ff_dim": False},
        "model.layers.1.feed_forward", "w1/w3/w2", 64,
    ),
    "glm": (
        "GlmConfig", {**GROUPED, "head_dim": 8},
        "model.layers.1.mlp", "gate_up_proj/down_proj", 64,
    ),
    "gptj": (
        "GPTJConfig",
        {
            "vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4,
            "bos_token_id": 0, "eos_token_id": 3,
        },
        "transformer.h.1.mlp", "fc_in/fc_out", 128,
    ),
    "mpt": (
        "MptConfig", {"vocab_size": 260, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "transformer.blocks.1.ffn", "up_proj/down_proj", 128,
    ),
}  # fmt: skip

_built: dict[str, nn.Module] = {}


def build(family: str) -> nn.Module:
    """A copy of a random model of a family that `pacellm_rag.testing` does not have."""
    torch.set_num_threads(1)
    if family not in _built:
        name, arguments, *_ = OTHERS[family]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = getattr(transformers, name)(**arguments)
            _built[family] = transformers.AutoModelForCausalLM.from_config(config).eval()
    return copy.deepcopy(_built[family])


def watch(model: nn.Module, feed_forward: FeedForward) -> list[torch.Tensor]:
    """What the output projection reads in one forward pass over ten tokens."""
    seen: list[torch.Tensor] = []
    handle = feed_forward.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(10, 20)[None])
    handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_test_doubles_fits(tiny: Tiny, family: str) -> None:
    model = tiny(family).module
    found = find_feed_forwards(model)
    assert [each.layer for each in found] == [0, 1, 2]
    for each in found:
        assert each.width == 64
        assert model.get_submodule(each.path) is each.block
        assert each.fused == (family == "phi3")
        (activation,) = watch(model, each)
        assert activation.numel() == 10 * 64


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_fit(family: str) -> None:
    _, _, path, names, width = OTHERS[family]
    model = build(family)
    first, second = find_feed_forwards(model)
    assert (first.layer, second.layer) == (0, 1)
    assert (second.path, str(second.layout), second.width) == (path, names, width)
    assert model.get_submodule(path) is second.block
    (activation,) = watch(model, second)
    assert activation.numel() == 10 * width


def test_a_model_without_its_head_fits(tiny: Tiny) -> None:
    model = tiny("llama").module
    assert [each.path for each in find_feed_forwards(model.model)] == [
        f"layers.{index}.mlp" for index in range(3)
    ]


def test_the_text_model_of_a_multimodal_model_fits() -> None:
    text = {**GROUPED, "head_dim": 8}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    model = transformers.Gemma3ForConditionalGeneration(config)
    found = find_feed_forwards(model)
    assert [each.path for each in found] == [
        f"model.language_model.layers.{index}.mlp" for index in range(2)
    ]
    assert {each.width for each in found} == {64}


class Adapter(nn.Module):
    """As PEFT wraps a projection: the layer inside, its sizes outside."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.base_layer(hidden)


class Wrapper(nn.Module):
    def __init__(self, **inner: nn.Module) -> None:
        super().__init__()
        for name, module in inner.items():
            self.add_module(name, module)


def test_a_wrapped_model_gives_the_wrapped_projection(tiny: Tiny) -> None:
    model = tiny("llama").module
    model.model.layers[1].mlp.down_proj = Adapter(model.model.layers[1].mlp.down_proj)
    wrapped = Wrapper(base_model=Wrapper(model=model))
    found = find_feed_forwards(wrapped)
    assert found[1].path == "base_model.model.model.layers.1.mlp"
    assert isinstance(found[1].down, Adapter)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_peft_models_fit(tiny: Tiny) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj", "q_proj"], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("llama").module, config)
    found = find_feed_forwards(model)
    assert [each.width for each in found] == [64] * 3
    assert all(hasattr(each.down, "base_layer") for each in found)


def test_quantised_projections_need_only_tell_their_sizes(tiny: Tiny) -> None:
    class Packed(nn.Module):
        in_features, out_features = 64, 32

    model = tiny("llama").module
    model.model.layers[0].mlp.down_proj = Packed()
    assert find_feed_forwards(model)[0].width == 64
    model.model.layers[0].mlp.down_proj = nn.Identity()
    with pytest.raises(ModelError, match=r"Identity as model\.layers\.0\.mlp\.down_proj.*width"):
        find_feed_forwards(model)


def mixture(name: str) -> nn.Module:
    arguments = {
        "Qwen2MoeConfig": {
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48, "num_experts": 4,
        },
        "MixtralConfig": {"num_local_experts": 4},
        "GptOssConfig": {"num_local_experts": 4, "head_dim": 8},
    }[name]  # fmt: skip
    config = getattr(transformers, name)(**{**GROUPED, **arguments})
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Qwen2MoeConfig", ["Qwen2MoeForCausalLM", "Qwen2MoeExperts", "layers.0.mlp.experts"]),
        ("MixtralConfig", ["MixtralForCausalLM", "MixtralExperts", "gate_up_proj (4, 128, 32)"]),
        ("GptOssConfig", ["GptOssForCausalLM", "GptOssExperts", "layout=Layout("]),
    ],
)
def test_mixtures_of_experts_are_refused_by_name(name: str, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        find_feed_forwards(mixture(name))
    for word in [*words, "mixture of experts"]:
        assert word in str(caught.value)


def test_the_shared_expert_of_a_mixture_can_be_named() -> None:
    layout = Layout(gate="gate_proj", up="up_proj", down="down_proj", blocks=("mlp.shared_expert",))
    found = find_feed_forwards(mixture("Qwen2MoeConfig"), layout)
    assert [each.width for each in found] == [48, 48]
    assert found[0].path == "model.layers.0.mlp.shared_expert"


class Odd(nn.Module):
    """A decoder of no known architecture."""

    def __init__(self, rows: int = 12) -> None:
        super().__init__()
        block = nn.ModuleDict({"widen": nn.Linear(4, rows), "narrow": nn.Linear(12, 4)})
        self.tower = nn.ModuleList([nn.ModuleDict({"net": block})])


def test_an_unknown_architecture_is_refused_with_what_was_looked_for(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match=r"found in Odd; looked for model\.layers.*Layout\(layers"):
        find_feed_forwards(Odd())
    model = tiny("llama").module
    model.model.layers[2].mlp = nn.Identity()
    with pytest.raises(ModelError) as caught:
        find_feed_forwards(model)
    message = str(caught.value)
    assert "Layer 2 of LlamaForCausalLM" in message
    assert "mlp (Identity)" in message
    for layout in LAYOUTS:
        assert str(layout) in message
    assert "layout=Layout(" in message


def test_an_unknown_architecture_fits_with_its_names() -> None:
    layout = Layout(up="widen", down="narrow", blocks=("net",), layers="tower")
    (found,) = find_feed_forwards(Odd(), layout)
    assert (found.path, found.width, found.gate) == ("tower.0.net", 12, None)


def test_projections_that_do_not_fit_each_other_are_refused() -> None:
    layout = Layout(up="widen", down="narrow", blocks=("net",), layers="tower")
    with pytest.raises(ModelError, match=r"24 rows .* 12 columns .* plain layout needs 12"):
        find_feed_forwards(Odd(rows=24), layout)


def test_encoder_decoders_are_refused() -> None:
    config = transformers.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=260,
        bos_token_id=0, eos_token_id=3, pad_token_id=1, decoder_start_token_id=3,
        forced_eos_token_id=3,
    )  # fmt: skip
    with pytest.raises(ModelError, match="BartForConditionalGeneration is an encoder-decoder"):
        find_feed_forwards(transformers.BartForConditionalGeneration(config))
