"""Cortical Experts: clustering, the permutation, and its way back.

Over 400 lines because every family goes through the same few questions.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.clustering import (
    apply_permutation,
    balanced_kmeans,
    cluster_neurons,
    inertia,
    undo,
)
from pacellm_rag.pace.expert_map import ExpertMap, LayerExperts, is_applied
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]

SIZES: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi": ("PhiConfig", {**SIZES, "intermediate_size": 64}),
    "starcoder2": ("Starcoder2Config", GROUPED),
    "falcon": ("FalconConfig", {**SIZES, "bias": True}),
    "bloom": ("BloomConfig", {**SIZES, "n_layer": 2, "n_head": 4}),
    "nemotron": ("NemotronConfig", {**GROUPED, "mlp_bias": True}),
    "lfm2": ("Lfm2Config", {**GROUPED, "block_auto_adjust_ff_dim": False}),
    "glm": ("GlmConfig", {**GROUPED, "head_dim": 8}),
}
IDS = torch.arange(20, 60)[None]

_built: dict[tuple[str, str], nn.Module] = {}


def build(tiny: Tiny, family: str, dtype: str = "float32") -> nn.Module:
    """A copy of a random model, its biases random as well."""
    torch.set_num_threads(1)
    if (family, dtype) not in _built:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if family in OTHERS:
                name, arguments = OTHERS[family]
                config = getattr(transformers, name)(**arguments)
                model = transformers.AutoModelForCausalLM.from_config(config).eval()
            else:
                model = tiny(family).module
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.15)
        _built[family, dtype] = model.to(getattr(torch, dtype))
    return copy.deepcopy(_built[family, dtype])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS).logits
    return result.float()


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_permutation_changes_no_output_and_comes_off_to_the_bit(
    tiny: Tiny, family: str, dtype: str
) -> None:
    model = build(tiny, family, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model)
    experts = cluster_neurons(model, 8)
    assert same_bits(before, model.state_dict())
    assert not is_applied(model, experts)

    apply_permutation(model, experts)
    assert is_applied(model, experts)
    moved = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    for each in find_feed_forwards(model):
        for projection in (each.gate, each.up, each.down):
            for name, parameter in () if projection is None else projection.named_parameters():
                held = next(n for n, p in model.named_parameters() if p is parameter)
                # each neuron has a bias in what widens, and none in what reads the neurons
                assert (held in moved) == (name == "weight" or projection is not each.down)
                moved.discard(held)
    assert not moved, "nothing but the feed-forward networks is touched"
    tolerance = {"float32": 1e-5, "bfloat16": 4e-2}[dtype]
    assert (logits(model) - plain).abs().max() <= tolerance * plain.abs().max()

    undo(model, experts)
    assert same_bits(before, model.state_dict())
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_neurons_of_an_expert_lie_together(tiny: Tiny, family: str) -> None:
    model = build(tiny, family)
    experts = cluster_neurons(model, 8)
    seen: list[Tensor] = []

    def read() -> Tensor:
        handle = find_feed_forwards(model)[0].down.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].reshape(-1, 64))
        )
        logits(model)
        handle.remove()
        return seen.pop()

    before = read()
    apply_permutation(model, experts)
    labels = experts.layers[0].labels
    for expert, part in enumerate(read().split(experts.layers[0].sizes.tolist(), dim=1)):
        torch.testing.assert_close(part, before[:, labels == expert], atol=1e-5, rtol=1e-5)


def test_permutation_and_inverse_undo_each_other() -> None:
    labels = torch.tensor([2, 0, 1, 2, 0, 1, 0])
    layer = LayerExperts(0, 3, labels, "")
    assert layer.sizes.tolist() == [3, 2, 2]
    assert layer.permutation.tolist() == [1, 4, 6, 2, 5, 0, 3]
    assert layer.permutation[layer.inverse].tolist() == list(range(7))
    assert labels[layer.permutation].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_some_layers_can_be_chosen(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = cluster_neurons(model, 4, layers=[2, 0])
    assert [each.layer for each in experts.layers] == [0, 2]
    apply_permutation(model, experts)
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {
        f"model.layers.{layer}.mlp.{name}_proj.weight"
        for layer in (0, 2)
        for name in ("gate", "up", "down")
    }
    with pytest.raises(ConfigurationError, match="layers 0 to 2; there is no layer 3"):
        cluster_neurons(model, 4, layers=[3])


def test_progress_is_told(tiny: Tiny) -> None:
    told: list[tuple[int, int]] = []
    cluster_neurons(build(tiny, "llama"), 4, progress=lambda *each: told.append(each))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


# k-means


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 90),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["random", "equal", "zero", "two"]),
    rounds=st.integers(0, 6),
)
def test_sizes_differ_by_at_most_one(
    rows: int, share: float, seed: int, kind: str, rounds: int
) -> None:
    clusters = 1 + math.floor(share * (rows - 1))
    points = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))
    if kind == "equal":
        points = points[:1].expand(rows, 5)
    elif kind == "zero":
        points = torch.zeros(rows, 5)
    elif kind == "two":
        points = points[torch.arange(rows) % min(2, rows)]
    labels = balanced_kmeans(points, clusters, seeds=(seed,), rounds=rounds)
    sizes = torch.bincount(labels, minlength=clusters)
    assert len(labels) == rows
    assert sizes.tolist() == [rows // clusters + (i < rows % clusters) for i in range(clusters)]


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(8, 80), clusters=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_every_round_lowers_the_inertia(rows: int, clusters: int, seed: int) -> None:
    points = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    values = [
        inertia(points, balanced_kmeans(points, clusters, seeds=(seed,), rounds=rounds))
        for rounds in range(8)
    ]
    assert all(after <= before + 1e-5 for before, after in pairwise(values))


def test_inertia_is_the_squared_distance_to_the_means() -> None:
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    labels = balanced_kmeans(points, 7)
    unit = points.double() / points.double().norm(dim=1, keepdim=True)
    by_hand = sum(
        float((unit[labels == c] - unit[labels == c].mean(0)).square().sum()) for c in range(7)
    )
    assert inertia(points, labels) == pytest.approx(by_hand)


@pytest.mark.parametrize("rows", [240, 247])
def test_clusters_that_are_there_are_found(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(10, 32, generator=generator), dim=1)
    truth = torch.arange(rows) % 10
    points = centres[truth] + 0.05 * torch.randn(rows, 32, generator=generator)
    points = points * (0.5 + torch.rand(rows, 1, generator=generator))  # length does not matter
    labels = balanced_kmeans(points, 10, rounds=50)
    together = torch.zeros(10, 10).index_put_((truth, labels), torch.ones(rows), accumulate=True)
    misplaced = rows - int(together.amax(1).sum())
    assert misplaced <= rows % 10  # which clusters are larger by one is not searched for


@pytest.mark.parametrize("seed", range(4))
def test_placing_alone_gains_most_of_what_exchanges_reach(seed: int) -> None:
    points = torch.randn(240, 32, generator=torch.Generator().manual_seed(seed))
    by_chance = inertia(points, torch.arange(240) % 12)
    placed, reached = (
        inertia(points, balanced_kmeans(points, 12, seeds=(seed,), rounds=rounds))
        for rounds in (0, 300)
    )
    assert by_chance - placed > 0.7 * (by_chance - reached)


def test_exchanges_beat_the_best_single_exchange_of_a_plain_search() -> None:
    """At the end no single exchange lowers the inertia by much, found by trying them all."""
    points = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    labels = balanced_kmeans(points, 5, rounds=200)
    reached = inertia(points, labels)
    best = reached
    for i in range(40):
        for j in range(i):
            if labels[i] != labels[j]:
                other = labels.clone()
                other[i], other[j] = labels[j], labels[i]
                best = min(best, inertia(points, other))
    assert best >= reached * 0.99


def test_the_same_seed_gives_the_same_experts(tiny: Tiny) -> None:
    one, two, other = (
        cluster_neurons(build(tiny, "qwen2"), 8, seeds=(seed,), layers=[1]) for seed in (5, 5, 6)
    )
    assert torch.equal(one.layers[0].labels, two.layers[0].labels)
    assert not torch.equal(one.layers[0].labels, other.layers[0].labels)
    before = torch.random.get_rng_state()
    cluster_neurons(build(tiny, "qwen2"), 8)
    assert torch.equal(before, torch.random.get_rng_state())


def test_of_several_seeds_the_best_run_is_kept() -> None:
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    alone = [inertia(points, balanced_kmeans(points, 6, seeds=(seed,))) for seed in range(4)]
    assert inertia(points, balanced_kmeans(points, 6, seeds=range(4))) == min(alone)
    assert len(set(alone)) > 1


def test_a_width_that_does_not_divide(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    plain = logits(model)
    experts = cluster_neurons(model, 7)
    assert experts.layers[0].sizes.tolist() == [10, 9, 9, 9, 9, 9, 9]
    apply_permutation(model, experts)
    torch.testing.assert_close(logits(model), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("number", [1, 64])
def test_one_expert_and_one_per_neuron(tiny: Tiny, number: int) -> None:
    model = build(tiny, "llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = cluster_neurons(model, number)
    apply_permutation(model, experts)
    undo_or_nothing = experts.layers[0].permutation.equal(torch.arange(64))
    assert undo_or_nothing == (number == 1)
    undo(model, experts)
    assert same_bits(before, model.state_dict())


@pytest.mark.parametrize("number", [0, 65])
def test_a_number_of_experts_that_can_not_be(tiny: Tiny, number: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"{number} experts .* has 1 to 64"):
        cluster_neurons(build(tiny, "llama"), number)


def test_no_seed_and_negative_rounds_are_refused() -> None:
    for arguments in ({"seeds": ()}, {"rounds": -1}):
        with pytest.raises(ConfigurationError, match="seed or more"):
            balanced_kmeans(torch.ones(4, 2), 2, **arguments)  # type: ignore[arg-type]


# the map and the weights that it belongs to


def test_a_map_belongs_to_its_weights_only(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    experts = cluster_neurons(model, 8)
    other = build(tiny, "llama")
    with torch.no_grad():
        other.model.layers[1].mlp.gate_proj.weight[3, 4] += 1e-3
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for act in (apply_permutation, undo, is_applied):
        with pytest.raises(ModelError, match=r"does not belong.*model\.layers\.1\.mlp"):
            act(other, experts)
    assert same_bits(before, other.state_dict())
    with pytest.raises(ModelError, match="does not belong"):
        apply_permutation(build(tiny, "falcon"), experts)


def test_applying_twice_and_undoing_nothing_are_refused(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    experts = cluster_neurons(model, 8)
    with pytest.raises(ModelError, match="nothing to undo"):
        undo(model, experts)
    apply_permutation(model, experts)
    with pytest.raises(ModelError, match="applied to this model already"):
        apply_permutation(model, experts)


def test_a_map_made_in_bfloat16_fits_the_same_values_in_float32(tiny: Tiny) -> None:
    model = build(tiny, "llama", "bfloat16")
    experts = cluster_neurons(model, 8)
    wide = copy.deepcopy(model).float()
    apply_permutation(wide, experts)
    apply_permutation(model, experts)
    assert same_bits(model.float().state_dict(), wide.state_dict())


def test_the_fingerprint_tells_weights_apart(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    one, two = cluster_neurons(model, 8), cluster_neurons(model, 4)
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight.neg_()
    assert cluster_neurons(model, 8).fingerprint != one.fingerprint


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> tuple[ExpertMap, Path]:
    experts = cluster_neurons(build(tiny, "llama"), 8)
    path = tmp_path / "experts.safetensors"
    experts.save(path)
    return experts, path


def test_a_map_is_saved_and_loaded(saved: tuple[ExpertMap, Path], tiny: Tiny) -> None:
    experts, path = saved
    loaded = ExpertMap.load(path)
    assert (loaded.n_experts, loaded.fingerprint) == (8, experts.fingerprint)
    for one, two in zip(experts.layers, loaded.layers, strict=True):
        assert (one.layer, one.n_experts, one.fingerprint) == (
            two.layer,
            two.n_experts,
            two.fingerprint,
        )
        assert torch.equal(one.labels, two.labels)
    apply_permutation(build(tiny, "llama"), loaded)


def test_more_than_ten_layers_keep_their_order(tmp_path: Path) -> None:
    layers = tuple(LayerExperts(i, 2, torch.tensor([i % 2, 1 - i % 2]), str(i)) for i in range(12))
    ExpertMap(2, layers).save(tmp_path / "map")
    assert [each.layer for each in ExpertMap.load(tmp_path / "map").layers] == list(range(12))


def spoil_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def spoil_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def spoil_header(path: Path) -> None:
    path.write_bytes(b"not a map")


def spoil_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def change_metadata(path: Path, **changes: object) -> None:
    with safe_open(path, framework="pt") as file:
        ((name, text),) = (file.metadata() or {}).items()
    save_file(load_file(path), path, metadata={name: json.dumps({**json.loads(text), **changes})})


def spoil_number(path: Path) -> None:
    change_metadata(path, n_experts=7)


def spoil_layers(path: Path) -> None:
    change_metadata(path, fingerprints={"0": "x"})


@pytest.mark.parametrize(
    "spoil",
    [spoil_bytes, spoil_end, spoil_header, spoil_metadata, spoil_number, spoil_layers, Path.unlink],
)
def test_a_damaged_map_is_refused(
    saved: tuple[ExpertMap, Path], spoil: Callable[[Path], None]
) -> None:
    _, path = saved
    spoil(path)
    with pytest.raises(ModelError, match=r"experts\.safetensors can not be read as an expert map"):
        ExpertMap.load(path)


def test_a_map_of_another_format_is_refused(saved: tuple[ExpertMap, Path]) -> None:
    _, path = saved
    change_metadata(path, format=2)
    with pytest.raises(ModelError, match="has format 2; this version reads 1"):
        ExpertMap.load(path)


# what is refused


class Adapter(nn.Module):
    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight = base_layer, base_layer.weight
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features


class Packed(nn.Module):
    in_features, out_features = 64, 32

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["adapter", "packed", "meta", "norm"])
def test_what_can_not_be_moved_is_refused_with_advice(tiny: Tiny, kind: str) -> None:
    model = build(tiny, "llama")
    experts = cluster_neurons(model, 8)
    block = model.model.layers[1].mlp
    if kind == "adapter":
        block.down_proj = Adapter(block.down_proj)
    elif kind == "packed":
        block.down_proj = Packed()
    elif kind == "meta":
        block.down_proj.to("meta")
    else:
        nn.utils.parametrizations.weight_norm(block.down_proj)
    before = model.model.layers[0].mlp.gate_proj.weight.clone()
    advice = r"layers\.1\.mlp\.down_proj .* Merge adapters first .* without quantisation"
    with pytest.raises(ModelError, match=advice):
        cluster_neurons(model, 8)
    with pytest.raises(ModelError, match=advice):
        apply_permutation(model, experts)
    assert torch.equal(before, model.model.layers[0].mlp.gate_proj.weight)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_peft_wrapped_projections_are_refused_and_merged_ones_taken(tiny: Tiny) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj"], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build(tiny, "llama"), config)
    with pytest.raises(ModelError, match="Merge adapters first"):
        cluster_neurons(model, 8)
    merged = model.merge_and_unload()
    apply_permutation(merged, cluster_neurons(merged, 8))


def test_further_tensors_per_neuron_are_refused() -> None:
    config = transformers.BitNetConfig(**GROUPED)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.ffn_sub_norm\.weight has a value for"):
        cluster_neurons(model, 8)


def test_weights_that_are_no_numbers_are_refused(tiny: Tiny) -> None:
    model = build(tiny, "llama")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        cluster_neurons(model, 8)


def test_mixtures_of_experts_are_refused() -> None:
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="MixtralForCausalLM is a mixture of experts"):
        cluster_neurons(model, 8)


@pytest.mark.gpu
def test_a_gpu_gives_balanced_experts(tiny: Tiny) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = build(tiny, "llama")
    experts = cluster_neurons(model, 8, device="cuda")
    assert experts.layers[0].sizes.tolist() == [8] * 8
    apply_permutation(model, experts)
