from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pacellm_rag.errors import ConfigurationError, ContextOverflowError, ModelError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.clustering import apply_permutation, cluster_neurons
from pacellm_rag.pace.expert_map import ExpertMap
from pacellm_rag.pace.experts import expert_activity, label_experts
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
IDS = [(7 * i) % 50 + 20 for i in range(60)]


@torch.no_grad()
def activations(model: nn.Module, layer: int) -> Tensor:
    """What the output projection of a layer reads, shape (tokens, width)."""
    seen: list[Tensor] = []
    handle = find_feed_forwards(model)[layer].down.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].reshape(len(IDS), -1))
    )
    model(input_ids=torch.tensor([IDS]))
    handle.remove()
    return seen[0]


def hooks_of(model: nn.Module) -> int:
    return sum(len(each._forward_pre_hooks) for each in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_activity_is_the_mean_magnitude_of_an_experts_neurons(tiny: Tiny, family: str) -> None:
    model = tiny(family).module
    experts = cluster_neurons(model, 7)
    result = expert_activity(model, IDS, experts, spans=[(0, 10), (10, 60)])
    assert result.layers == (0, 1, 2)
    assert result.mean.shape == (3, 7)
    assert result.spans is not None
    assert result.spans.shape == (3, 2, 7)
    magnitude = activations(model, 1).abs()
    for expert in range(7):
        own = magnitude[:, experts.layers[1].labels == expert]
        torch.testing.assert_close(result.mean[1, expert], own.mean())
        torch.testing.assert_close(result.spans[1, 1, expert], own[10:].mean())
    assert hooks_of(model) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activity_is_the_same_before_and_after_the_permutation(tiny: Tiny, dtype: str) -> None:
    model = tiny("qwen2", dtype=dtype).module
    experts = cluster_neurons(model, 8)
    before = expert_activity(model, IDS, experts).mean
    apply_permutation(model, experts)
    after = expert_activity(model, torch.tensor(IDS), experts).mean
    torch.testing.assert_close(before, after, rtol=1e-4 if dtype == "float32" else 3e-2, atol=1e-4)
    assert before.std() > 0


def test_some_layers_can_be_watched(tiny: Tiny) -> None:
    model = tiny("llama").module
    experts = cluster_neurons(model, 8, layers=[0, 2])
    both = expert_activity(model, IDS, experts)
    one = expert_activity(model, IDS, experts, layers=[2])
    assert (both.layers, one.layers, one.spans) == ((0, 2), (2,), None)
    assert torch.equal(both.mean[1], one.mean[0])
    for layers in ([1], []):
        with pytest.raises(ConfigurationError, match=r"map has layers \[0, 2\]; asked for was"):
            expert_activity(model, IDS, experts, layers=layers)


def test_hooks_are_gone_after_an_error(tiny: Tiny) -> None:
    model = tiny("llama").module
    experts = cluster_neurons(model, 8)

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    handle = model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        expert_activity(model, IDS, experts)
    handle.remove()
    assert hooks_of(model) == 0


def test_layers_after_the_last_watched_one_do_not_run(tiny: Tiny) -> None:
    model = tiny("llama").module
    experts = cluster_neurons(model, 8)
    ran: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    expert_activity(model, IDS, experts, layers=[1])
    assert ran == [0, 1]
    with torch.no_grad():
        model(input_ids=torch.tensor([IDS]))
    assert ran == [0, 1, 0, 1, 2]


def test_a_model_with_banks_can_be_watched(tiny: Tiny) -> None:
    attach = pytest.importorskip("pacellm_rag.pace.attach").attach
    model = tiny("llama").module
    experts = cluster_neurons(model, 8)
    before = expert_activity(model, IDS, experts).mean
    with attach(model):
        torch.testing.assert_close(
            expert_activity(model, IDS, experts, layers=[0]).mean, before[:1]
        )
        with torch.no_grad():
            model(input_ids=torch.tensor([IDS]))
    assert torch.equal(expert_activity(model, IDS, experts).mean, before)


@pytest.mark.parametrize("span", [(0, 0), (5, 4), (-1, 3), (50, 61)])
def test_spans_that_can_not_be_are_refused(tiny: Tiny, span: tuple[int, int]) -> None:
    model = tiny("llama").module
    with pytest.raises(ConfigurationError, match="within the 60 tokens"):
        expert_activity(model, IDS, cluster_neurons(model, 8), spans=[span])


def test_texts_that_can_not_be_are_refused(tiny: Tiny) -> None:
    model = tiny("llama", max_position_embeddings=32).module
    experts = cluster_neurons(model, 8)
    with pytest.raises(ContextOverflowError, match="60 tokens; the model takes 32"):
        expert_activity(model, IDS, experts)
    for ids in ([], torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(ConfigurationError, match="token_ids has shape"):
            expert_activity(model, ids, experts)


def test_another_models_map_is_refused(tiny: Tiny) -> None:
    experts = cluster_neurons(tiny("llama").module, 8)
    with pytest.raises(ModelError, match="does not belong"):
        expert_activity(tiny("llama", seed=1).module, IDS, experts)


class Names:
    def decode(self, token_ids: list[int], /) -> str:
        (token,) = token_ids
        return f"<{token}>"


def test_labels_name_the_tokens_with_the_largest_share(tiny: Tiny) -> None:
    model = tiny("llama").module
    experts = cluster_neurons(model, 8)
    ids = [20, 21, 22, 20, 21, 22, 23]
    labels = label_experts(model, Names(), ids, experts, top=2, layers=[1])
    assert set(labels) == {1}
    assert [each.expert for each in labels[1]] == list(range(8))

    with torch.no_grad():
        seen: list[Tensor] = []
        down = find_feed_forwards(model)[1].down
        handle = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].abs()))
        model(input_ids=torch.tensor([ids]))
        handle.remove()
    mine = experts.layers[1].labels
    by_expert = torch.stack([seen[0][:, mine == e].mean(1) for e in range(8)], dim=1)
    share = by_expert / by_expert.sum(1, keepdim=True)
    for label in labels[1]:
        own = share[:, label.expert] / share[:, label.expert].mean()
        score = {f"<{t}>": float((own[t - 20] + own[t - 17]) / 2) for t in (20, 21, 22)}
        expected = sorted(score, key=lambda name: -score[name])[:2]
        assert list(label.tokens) == expected  # token 23 occurs only once
        assert label.scores == pytest.approx([score[name] for name in expected], rel=1e-4)


def test_labels_of_rare_tokens_are_empty_or_asked_for(tiny: Tiny) -> None:
    model = tiny("llama").module
    experts = cluster_neurons(model, 4)
    rare = label_experts(model, Names(), [20, 21, 22], experts)
    assert rare[0][0].tokens == ()
    assert len(label_experts(model, Names(), [20, 21, 22], experts, fewest=1)[0][0].tokens) == 3


def test_a_tokenizer_of_transformers_fits(tiny: Tiny) -> None:
    model = tiny("llama")
    experts = cluster_neurons(model.module, 4)
    ids = model.tokenizer.hf.encode("to be or not to be")
    labels = label_experts(model.module, model.tokenizer.hf, ids, experts, top=3)
    assert set("".join(labels[0][0].tokens)) <= set("to be or not")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_peft_models_can_be_watched(tiny: Tiny) -> None:
    peft = pytest.importorskip("peft")
    plain = tiny("llama").module
    experts: ExpertMap = cluster_neurons(plain, 8)
    expected = expert_activity(plain, IDS, experts).mean
    config = peft.LoraConfig(target_modules=["down_proj", "gate_proj"], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain, config)
    torch.testing.assert_close(expert_activity(model, IDS, experts).mean, expected)
