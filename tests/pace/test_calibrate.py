"""The search for settings. A few lines over 400, as its claims share losses computed by hand."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pacellm_rag.errors import CancelledError, ConfigurationError, ModelError
from pacellm_rag.models.decoder import Batch
from pacellm_rag.models.kv_cache import Block, Part
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace import calibrate as module
from pacellm_rag.pace.answer_loss import Measured, Sample, answer_losses, measure
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.calibrate import Calibration, calibrate
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.paired_interval import paired_interval

Tiny = Callable[..., PaceModel]
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
families = pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2", "gpt_neox"])


def tokens(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(int(i) for i in torch.randint(4, 260, (count,), generator=generator))


def sample(seed: int, turns: int = 2, prefix: int = 70) -> Sample:
    each = tuple(
        (tokens(9 + 4 * i, seed + 10 * i), tokens(1 + i % 4, seed + 10 * i + 1))
        for i in range(turns)
    )
    return Sample(tokens(prefix, seed + 5000), each)


SAMPLES = [sample(1, 3), sample(2, 2, 41)]


def direct_losses(model: torch.nn.Module, samples: Sequence[Sample]) -> list[float]:
    """By one forward pass over everything, without a cache."""
    losses = []
    for each in samples:
        for question, answer in each.turns:
            ids = torch.tensor([[*each.prefix, *question, *answer]])
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0].float()
            said = logits[-len(answer) - 1 : -1].log_softmax(-1)
            losses.append(-sum(float(said[i, t]) for i, t in enumerate(answer)) / len(answer))
    return losses


def losses_by_hand(model: torch.nn.Module, samples: Sequence[Sample]) -> list[float]:
    """In transformers' own cache, read anew for every answer, which is fed a token at a time."""
    losses = []
    for each in samples:
        for question, answer in each.turns:
            cache = PaceCache(model.config)  # type: ignore[arg-type]
            cache.reading()
            loss = 0.0
            with torch.inference_mode():
                for start in range(0, len(each.prefix), 7):
                    window = each.prefix[start : start + 7]
                    model(torch.tensor([window]), past_key_values=cache, use_cache=True)
                cache.end_segment()
                feed: tuple[int, ...] = question
                for token in answer:
                    output = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
                    loss -= float(output.logits[0, -1].log_softmax(-1)[token])
                    feed = (token,)
                    cache.decoding()
            losses.append(loss / len(answer))
    return losses


def engine_losses(model: PaceModel, samples: Sequence[Sample]) -> list[float]:
    """By the engine's forward passes: a prefix read once, a branch of it for every answer."""
    decoder, losses = model.engine.runner.decoder, []
    for each in samples:
        length = len(each.prefix)
        block = Block(length)
        origin = decoder.open((), None, block)
        for start in range(0, length, 7):
            decoder.read(origin, each.prefix[start : start + 7])
        decoder.close_windows(origin)
        snapshot = decoder.snapshot(origin)
        for question, answer in each.turns:
            cache = decoder.open((Part(block, 0, length),), snapshot, Block(len(question)))
            said = [decoder.start(cache, question, None)]
            batch = Batch(decoder, [cache])
            for place, token in enumerate(answer[:-1], length + len(question)):
                said.append(batch.step([token], [place], [None]))
            batch.close()
            pairs = zip(said, answer, strict=True)
            loss = -sum(float(logits[0].log_softmax(-1)[token]) for logits, token in pairs)
            losses.append(loss / len(answer))
    return losses


@families
def test_plain_losses_are_those_of_one_forward_pass(tiny: Tiny, family: str) -> None:
    model = tiny(family).module
    found = answer_losses(model, SAMPLES, None, window=16)
    assert found == pytest.approx(direct_losses(model, SAMPLES), abs=2e-4)
    assert len(found) == 5


@families
def test_losses_with_memory_are_those_of_reading_and_answering(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    found = measure(model.module, SAMPLES, ACTING)
    paced = tiny(family, pace=ACTING)
    assert found.losses == pytest.approx(losses_by_hand(paced.module, SAMPLES), abs=5e-4)
    assert found.losses == pytest.approx(engine_losses(paced, SAMPLES), abs=5e-4)
    plain = measure(model.module, SAMPLES, None)
    assert max(abs(a - b) for a, b in zip(found.losses, plain.losses, strict=True)) > 1e-2
    assert 0 < found.acted <= 1
    assert plain.acted == 0


def test_the_pieces_that_are_read_do_not_matter(tiny: Tiny) -> None:
    model = tiny("llama").module
    whole = answer_losses(model, SAMPLES, ACTING)
    for window in (1, 7, 64):
        assert answer_losses(model, SAMPLES, ACTING, window=window) == pytest.approx(
            whole, abs=5e-4
        )


def test_questions_and_samples_do_not_touch_each_other(tiny: Tiny) -> None:
    model = tiny("llama").module
    alone = [
        loss
        for each in SAMPLES
        for turn in each.turns
        for loss in answer_losses(model, [Sample(each.prefix, (turn,))], ACTING)
    ]
    assert answer_losses(model, SAMPLES, ACTING) == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_blend_of_0_changes_nothing_at_all(tiny: Tiny, dtype: str) -> None:
    model = tiny("llama", dtype=dtype).module
    still = PaceConfig(layers=(0, 1), window=20, low=-0.2, high=0.5, blend=0)
    assert answer_losses(model, SAMPLES, still) == answer_losses(model, SAMPLES, None)


def test_the_model_is_left_as_it_was(tiny: Tiny) -> None:
    model = tiny("llama").module
    model.model.layers[0].train()
    modes = [each.training for each in model.modules()]
    first = answer_losses(model, SAMPLES, None)
    answer_losses(model, SAMPLES, ACTING)
    assert answer_losses(model, SAMPLES, None) == first
    assert [each.training for each in model.modules()] == modes
    assert not hasattr(model.config, "pacellm")


def test_progress_counts_answers_and_a_signal_stops(tiny: Tiny) -> None:
    model, seen, signal = tiny("llama").module, list[tuple[int, int]](), threading.Event()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 7:
            signal.set()

    answer_losses(model, SAMPLES, None, progress=progress)
    assert seen == [(i, 5) for i in range(1, 6)]
    with pytest.raises(CancelledError, match="answer 2 of 5"):
        answer_losses(model, SAMPLES, ACTING, progress=progress, cancel=signal)
    assert not hasattr(model, "_pacellm_handle")


def test_wrong_use_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="detach"):
        answer_losses(tiny("llama", pace=ACTING).module, SAMPLES, None)
    with pytest.raises(ConfigurationError, match="window is 0"):
        answer_losses(tiny("llama").module, SAMPLES, None, window=0)
    for prefix, turns in (((), (((1,), (2,)),)), ((1,), ()), ((1,), (((1,), ()),))):
        with pytest.raises(ConfigurationError, match="without tokens"):
            Sample(prefix, turns)  # type: ignore[arg-type]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Normal values; with skewed ones (exponential) of this number it covers 93 %, not 95.
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for draw in range(200):
        values = torch.randn(80, generator=generator, dtype=torch.float64) + 0.3
        mean, low, high = paired_interval(values.tolist(), seed=draw, resamples=1000)
        assert mean == pytest.approx(float(values.mean()))
        assert low < mean < high
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_interval_is_the_same_again_and_narrow_where_nothing_varies() -> None:
    values = [random.Random(i).gauss(0, 1) for i in range(50)]
    assert paired_interval(values, seed=4) == paired_interval(values, seed=4)
    assert paired_interval(values, seed=4) != paired_interval(values, seed=5)
    assert paired_interval([0.0] * 30) == (0, 0, 0)
    assert paired_interval([-1.0]) == (-1, float("-inf"), float("inf"))
    assert paired_interval([1.0, float("nan")])[1:] == (float("-inf"), float("inf"))
    with pytest.raises(ConfigurationError, match="0 differences"):
        paired_interval([])


def test_answers_that_share_documents_are_drawn_with_them() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = naive = 0
    for draw in range(200):
        sizes = torch.randint(2, 7, (20,), generator=generator)
        shared = torch.randn(20, generator=generator, dtype=torch.float64).repeat_interleave(sizes)
        own = torch.randn(len(shared), generator=generator, dtype=torch.float64)
        values = (shared + 0.5 * own).tolist()
        _, low, high = paired_interval(values, groups=sizes.tolist(), seed=draw, resamples=500)
        covered += low <= 0 <= high
        _, low, high = paired_interval(values, seed=draw, resamples=500)
        naive += low <= 0 <= high
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.80
    assert paired_interval([1.0, 2.0], groups=[2])[1:] == (float("-inf"), float("inf"))
    for groups in ([3, 3], [], [5, 0]):
        with pytest.raises(ConfigurationError, match="in groups"):
            paired_interval([1.0] * 5, groups=groups)


def test_many_answers_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [random.Random(i).gauss(1, 1) for i in range(100)]
    whole = paired_interval(values)
    monkeypatch.setattr("pacellm_rag.pace.paired_interval._DRAWN_AT_ONCE", 5000)
    assert paired_interval(values) == pytest.approx(whole, abs=0.02)


Effect = Callable[[PaceConfig, random.Random], float]
PAPERS = [Sample((i + 1,), tuple(((q + 1,), (q + 1,)) for q in range(10))) for i in range(10)]


def simulate(
    patch: pytest.MonkeyPatch, effect: Effect, seed: int = 0, shared: float = 0
) -> list[tuple[str, int]]:
    """Replaces the model's losses by ones drawn per sample and setting; lists what was run."""
    runs: list[tuple[str, int]] = []

    def fake(_: Any, samples: Sequence[Sample], config: PaceConfig | None, **__: Any) -> Measured:
        runs.append((repr(config), samples[0].prefix[0]))
        losses = []
        for each in samples:
            plain = random.Random(f"{seed} {each.prefix}")
            noise = random.Random(f"{seed} {each.prefix} {config}")
            common = noise.gauss(0, shared)
            for _ in each.turns:
                change = 0.0 if config is None else common + effect(config, noise)
                losses.append(plain.uniform(0.5, 4) + change)
        return Measured(tuple(losses), 0.25)

    patch.setattr(module, "measure", fake)
    return runs


def test_settings_that_help_are_found_and_defended(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama").module

    def effect(config: PaceConfig, noise: random.Random) -> float:
        gain = 0.03 * len({0, 2} & set(config.layers or ()))
        return noise.gauss(-gain * (2 if config.window == 1024 else 1), 0.05)

    for seed in range(3):
        simulate(monkeypatch, effect, seed)
        found = calibrate(model, PAPERS, seed=seed)
        assert found.config is not None
        assert found.config.layers == (0, 2)
        assert found.config.window == 1024
        assert found.evidence is not None
        assert found.evidence.high < 0
        assert {trial.half for trial in found.validation} == {"A", "B"}


def test_a_single_layer_is_enough_where_the_others_hurt(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def effect(config: PaceConfig, noise: random.Random) -> float:
        means = {0: 0.1, 1: -0.1, 2: 0.1}
        return noise.gauss(sum(means[layer] for layer in config.layers or ()), 0.05)

    simulate(monkeypatch, effect)
    found = calibrate(tiny("llama").module, PAPERS, blends=(0.2,), windows=(256,))
    assert found.config is not None
    assert found.config.layers == (1,)


def test_noise_and_settings_that_hurt_are_not_given(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, defended = tiny("llama").module, 0
    for seed in range(40):
        simulate(monkeypatch, lambda _, noise: noise.gauss(0, 0.1), seed)
        found = calibrate(model, PAPERS, seed=seed)
        defended += found.config is not None
        assert any(trial.change.mean < 0 for trial in found.trials)  # something always looks good
    assert defended <= 3
    defended = 0
    for seed in range(40):  # noise that the answers of a sample share
        simulate(monkeypatch, lambda _, noise: noise.gauss(0, 0.1), seed, shared=0.1)
        defended += calibrate(model, PAPERS, seed=seed).config is not None
    assert defended <= 5
    simulate(monkeypatch, lambda _, noise: noise.gauss(0.2, 0.1))
    worse = calibrate(model, PAPERS)
    assert (worse.config, worse.validation, worse.evidence) == (None, (), None)


def test_a_gain_on_one_half_alone_is_not_given(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: Any, samples: Sequence[Sample], config: PaceConfig | None, **__: Any) -> Measured:
        noise = random.Random(f"{config} {samples}")
        helped = -0.5 if config is not None and config.layers == (1,) else 0.0
        shared = {each.prefix for each in samples}
        gain = helped if (1,) in shared else 0.0
        count = sum(len(each.turns) for each in samples)
        still = config is None
        return Measured(
            tuple(1.0 if still else 1 + noise.gauss(gain, 0.1) for _ in range(count)), 0.0
        )

    monkeypatch.setattr(module, "measure", fake)
    assert calibrate(tiny("llama").module, PAPERS).config is None


def test_losses_that_are_not_finite_are_never_chosen(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, lambda config, noise: float("nan"))
    found = calibrate(tiny("llama").module, PAPERS)
    assert found.config is None
    json.dumps(found.to_dict(), allow_nan=False)
    nothing = Measured((float("inf"),) * 50, 0.0)
    monkeypatch.setattr(module, "measure", lambda *_, **__: nothing)
    with pytest.raises(ModelError, match="not finite"):
        calibrate(tiny("llama").module, PAPERS)


def test_trials_are_announced_and_none_runs_twice(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = simulate(monkeypatch, lambda _, noise: noise.gauss(-1, 0.1))
    seen: list[tuple[int, int, str]] = []
    found = calibrate(
        tiny("llama").module, PAPERS, best=2, progress=lambda *said: seen.append(said)
    )
    # of each half: plain, 3 layers, 1 pair, 7 further settings, 1 validation
    assert [done for done, _, _ in seen] == list(range(27))
    assert {total for _, total, _ in seen} == {26}
    assert seen[0][2] == "half A, plain"
    assert len(runs) == len(set(runs)) == len(found.trials) + 2
    assert found.settings <= len(found.trials)


def test_the_search_can_be_narrowed_and_is_the_same_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, lambda _, noise: noise.gauss(0, 0.1))
    model = tiny("llama").module
    found = calibrate(
        model, PAPERS, layers=(2,), blends=(0.3,), windows=(64,), thresholds=((1, 0),)
    )
    assert {trial.config for trial in found.trials} == {
        PaceConfig(layers=(2,), blend=0.3, window=64, high=1, low=0)
    }
    assert calibrate(model, PAPERS).to_dict() == calibrate(model, PAPERS).to_dict()


def test_the_whole_search_runs_on_a_model(tiny: Tiny) -> None:
    samples = [sample(100 * i, 10, 40) for i in range(4)]
    model = tiny("llama").module
    found = calibrate(
        model, samples, layers=(0, 1), blends=(0.5,), windows=(16,), thresholds=((0.5, -0.2),)
    )
    assert isinstance(found, Calibration)
    assert {trial.config.layers for trial in found.trials} >= {(0,), (1,), (0, 1)}
    assert all(trial.change.n == 20 and 0 < trial.acted <= 1 for trial in found.trials)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["settings"] == 3
    restored = [PaceConfig.from_dict(trial["config"]) for trial in values["trials"]]
    assert restored == [trial.config for trial in found.trials]
    assert not hasattr(model, "_pacellm_handle")


def test_a_search_that_can_not_conclude_is_refused(tiny: Tiny) -> None:
    model = tiny("llama").module
    for few in ([], PAPERS[:1], PAPERS[:3]):
        with pytest.raises(ConfigurationError, match="20 is the least"):
            calibrate(model, few)
    with pytest.raises(ConfigurationError, match="no layer 3"):
        calibrate(model, PAPERS, layers=(3,))
    with pytest.raises(ConfigurationError, match="nothing to try"):
        calibrate(model, PAPERS, layers=())
    with pytest.raises(ConfigurationError, match="blend is 2"):
        calibrate(model, PAPERS, blends=(0.1, 2))
