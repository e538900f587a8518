"""What is told of banks and experts is what they did, page by page, and nothing else changes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pacellm_rag.errors import (
    CancelledError,
    ConfigurationError,
    InsufficientMemoryError,
    ModelError,
)
from pacellm_rag.models.expert_watch import experts_file
from pacellm_rag.models.inspecting import Stretch, stretches_of
from pacellm_rag.models.inspection import Inspectable, MemoryPoint, MemoryReport
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.clustering import apply_permutation, cluster_neurons
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.expert_map import EXPERTS_FILE, ExpertMap
from pacellm_rag.pace.experts import expert_activity, label_experts
from pacellm_rag.protocols import GenerationOptions, PromptLayout, ReadProgress
from pacellm_rag.testing import FAMILIES, ScriptedModel

Tiny = Callable[..., PaceModel]
Saved = Callable[[PaceModel], Path]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
LAYOUT = PromptLayout((0, 131), (400, 700))
RANGES = [(140, 300), (300, 400), (405, 405), (420, 700)]
SHORT = GenerationOptions(max_new_tokens=8)

every_family = pytest.mark.parametrize("family", list(FAMILIES))
some_families = pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (tokens,), generator=generator)]


def at(points: tuple[MemoryPoint, ...], end: int) -> MemoryPoint:
    return next(point for point in points if point.end == end)


@pytest.fixture
def clustered(tiny: Tiny, folder_of: Saved) -> Callable[..., PaceModel]:
    """A model from a folder with a map of its experts."""

    def make(family: str = "llama", *, reordered: bool = True, **options: object) -> PaceModel:
        model = tiny(family)
        experts = cluster_neurons(model.module, 8)
        if reordered:
            apply_permutation(model.module, experts)
        folder = folder_of(model)
        experts.save(folder / EXPERTS_FILE)
        return load_model(folder, device="cpu", dtype="float32", store_bytes=0, **options)  # type: ignore[arg-type]

    return make


# ---- what a state tells


@some_families
def test_counts_rise_and_end_with_the_tokens_of_the_state(tiny: Tiny, family: str) -> None:
    ids = prompt(900)
    state = tiny(family, pace=ACTING).prefill(ids, layout=LAYOUT)
    assert isinstance(state, MemoryReport)
    points = state.memory_report()
    assert [point.end for point in points][-1] == 900
    assert {400, 700} <= {point.end for point in points}
    for point in points:
        assert set(point.layers) == {0, 2}
        for counts in point.layers.values():
            assert counts.tokens == point.end
            assert 0 < counts.slots_filled <= counts.slots == 16
            assert counts.high + counts.middle + counts.untouched == pytest.approx(1)
    for one, two in itertools.pairwise(points):
        assert one.end < two.end
        for layer, counts in one.layers.items():
            later = two.layers[layer]
            assert counts.high * counts.tokens <= later.high * later.tokens + 1e-6
            assert counts.middle * counts.tokens <= later.middle * later.tokens + 1e-6
    assert any(counts.high + counts.middle > 0 for counts in points[-1].layers.values())


@some_families
def test_counts_are_the_same_alone_reused_and_restored(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path / "readings"))
    ids = prompt(900)
    alone = tiny(family, pace=ACTING).prefill(ids, layout=LAYOUT).memory_report()
    model = tiny(family, pace=ACTING, store_bytes=2**30)
    model.prefill(ids[:400], layout=LAYOUT)
    longer = model.prefill(ids, layout=LAYOUT)
    again = model.prefill(ids, layout=LAYOUT)
    model.flush()
    restored = tiny(family, pace=ACTING, store_bytes=2**30).prefill(ids, layout=LAYOUT)
    assert (longer.tokens_reused, again.tokens_reused, restored.tokens_reused) == (400, 900, 900)
    for state in (longer, again, restored):
        points = state.memory_report()
        assert [point.end for point in points] == [point.end for point in alone]
        assert points[-1] == again.memory_report()[-1]
        for point in points:
            for layer, counts in at(alone, point.end).layers.items():
                told = point.layers[layer]
                assert (told.tokens, told.slots_filled) == (counts.tokens, counts.slots_filled)
                assert told.high == pytest.approx(counts.high, abs=0.01)
                assert told.middle == pytest.approx(counts.middle, abs=0.01)


def test_a_state_without_banks_tells_none(tiny: Tiny) -> None:
    for family in ("llama", "mistral"):  # the latter has snapshots, of its sliding windows
        state = tiny(family).prefill(prompt(600), layout=LAYOUT)
        assert state.memory_report() == ()


def test_counts_are_kept_by_the_state_when_the_cache_forgets(tiny: Tiny) -> None:
    model = tiny(pace=ACTING)
    state = model.prefill(prompt(900), layout=LAYOUT)
    before = state.memory_report()
    model.engine.runner.cache.shrink(0)
    assert state.memory_report() == before


# ---- going through it once more


@pytest.mark.parametrize("window", [64, 1000])
@every_family
def test_the_banks_do_again_what_they_did(tiny: Tiny, family: str, window: int) -> None:
    ids, ends = prompt(900), (0, 131, 400, 700, 900)
    model = tiny(family, pace=ACTING, window=window)
    state = model.prefill(ids, layout=LAYOUT)
    found = model.inspect(state, list(itertools.pairwise(ends)))
    assert found.experts == ()
    points = state.memory_report()
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        for counts in found.banks[number].values():
            assert counts.tokens == end - start
    for layer in (0, 2):
        for end in (400, 700, 900):
            told = at(points, end).layers[layer]
            parts = [
                banks[layer]
                for banks, stop in zip(found.banks, ends[1:], strict=True)
                if stop <= end
            ]
            assert parts[-1].slots_filled == told.slots_filled
            for name in ("high", "middle"):
                again = sum(getattr(each, name) * each.tokens for each in parts)
                # where a similarity lies at the edge of a band, rounding may tip it
                assert again == pytest.approx(getattr(told, name) * end, abs=0.01 * end)


def test_nothing_that_was_read_changes(tiny: Tiny, clustered: Callable[..., PaceModel]) -> None:
    model = clustered(pace=ACTING)
    ids = prompt(900)
    state = model.prefill(ids, layout=LAYOUT)
    longer = [*ids, *prompt(30, 1)]
    before = "".join(model.stream(longer, SHORT, layout=LAYOUT))
    hooks = sum(len(each._forward_pre_hooks) for each in model.module.modules())
    nodes = len(list(model.engine.runner.cache.nodes()))
    model.inspect(state, RANGES)
    assert len(list(model.engine.runner.cache.nodes())) == nodes
    assert sum(len(each._forward_pre_hooks) for each in model.module.modules()) == hooks
    stream = model.stream(longer, SHORT, layout=LAYOUT)
    assert "".join(stream) == before
    assert stream.tokens_reused >= 900


@pytest.mark.parametrize("reordered", [True, False])
@some_families
def test_experts_are_those_of_one_pass_over_the_text(
    clustered: Callable[..., PaceModel], family: str, reordered: bool
) -> None:
    model = clustered(family, reordered=reordered, window=64)
    assert isinstance(model, Inspectable)
    assert model.has_experts
    ids = [i % 40 + 20 for i in prompt(700)]
    state = model.prefill(ids, layout=LAYOUT)
    found = model.inspect(state, RANGES, top=24)
    path = experts_file(model.module)
    assert path is not None
    experts = ExpertMap.load(path)
    filled = [span for span in RANGES if span[1] > span[0]]
    naive = expert_activity(model.module, ids, experts, spans=filled)
    assert naive.spans is not None
    sizes = torch.tensor([float(end - start) for start, end in filled])
    usual = (naive.spans * sizes[None, :, None]).sum(1) / sizes.sum()
    relative = naive.spans / usual[:, None] - 1
    assert len(found.experts) == 24
    for report in found.experts:
        one = relative[report.layer, :, report.expert]
        assert report.activity[2] == 0.0  # the empty range
        told = [each for place, each in enumerate(report.activity) if place != 2]
        assert told == pytest.approx(one.tolist(), abs=2e-3)
    spread = relative.std(1)
    best = {tuple(divmod(int(i), 8)) for i in spread.flatten().topk(24).indices}
    assert len(best & {(each.layer, each.expert) for each in found.experts}) >= 22


def test_experts_are_named_by_the_tokens_that_excite_them(
    clustered: Callable[..., PaceModel],
) -> None:
    model = clustered()
    ids = [0, *(i % 60 + 60 for i in prompt(899))]
    state = model.prefill(ids)
    found = model.inspect(state, [(1, 400), (400, 900)])
    path = experts_file(model.module)
    assert path is not None
    labels = label_experts(
        model.module, model.tokenizer.hf, ids, ExpertMap.load(path), top=6, fewest=3
    )
    for report in found.experts:
        expected = [t for t in labels[report.layer][report.expert].tokens if t.strip()]
        assert 1 <= len(report.words) <= 6
        assert report.words[0] == expected[0].strip()


def test_a_model_without_a_map_or_banks_tells_nothing(tiny: Tiny) -> None:
    model = tiny()
    assert not model.has_experts
    found = model.inspect(model.prefill(prompt(700)), RANGES)
    assert (found.banks, found.experts) == ((), ())


def test_one_range_is_nothing_to_compare(clustered: Callable[..., PaceModel]) -> None:
    model = clustered(pace=ACTING)
    found = model.inspect(model.prefill(prompt(300)), [(10, 200), (200, 200)])
    assert found.experts == ()
    assert found.banks[0][0].tokens == 190
    assert found.banks[1] == {}


def test_no_ranges_are_no_work(tiny: Tiny) -> None:
    model = tiny(pace=ACTING)
    told: list[ReadProgress] = []
    found = model.inspect(model.prefill(prompt(300)), [], progress=told.append)
    assert (found.banks, found.experts, len(told)) == ((), (), 1)


def test_a_map_of_other_weights_is_refused(tiny: Tiny, clustered: Callable[..., PaceModel]) -> None:
    model = clustered()
    other = tiny(seed=1)
    other.module.config._name_or_path = other.module.name_or_path = model.module.name_or_path
    assert other.has_experts
    with pytest.raises(
        ModelError, match=r"does not belong to these weights.*another number type than float32"
    ):
        other.inspect(other.prefill(prompt(300)), [(10, 100), (100, 200)])


def test_progress_rises_to_the_end_of_the_last_range(tiny: Tiny) -> None:
    model = tiny(pace=ACTING, window=50)
    state = model.prefill(prompt(700), layout=LAYOUT)
    told: list[ReadProgress] = []
    model.inspect(state, [(140, 300), (300, 420)], progress=told.append)
    done = [each.tokens_done for each in told]
    assert (done[0], done[-1]) == (0, 420)
    assert done == sorted(set(done))
    assert all(each.tokens_total == 420 for each in told)
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0


def test_it_stops_between_stretches_and_the_hooks_are_gone(
    clustered: Callable[..., PaceModel],
) -> None:
    model = clustered(window=50)
    state = model.prefill(prompt(700), layout=LAYOUT)
    cancel = threading.Event()
    told: list[int] = []

    def progress(now: ReadProgress) -> None:
        told.append(now.tokens_done)
        if now.tokens_done > 200:
            cancel.set()

    with pytest.raises(CancelledError, match="watching"):
        model.inspect(state, RANGES, progress=progress, cancel=cancel)
    assert 200 < told[-1] <= 250
    assert not any(each._forward_pre_hooks for each in model.module.modules())
    assert model.inspect(state, RANGES).experts


def test_others_are_answered_in_between(tiny: Tiny) -> None:
    model = tiny(pace=ACTING, window=16)
    alone = "".join(tiny(pace=ACTING, window=16).stream(prompt(50, 3), SHORT))
    state = model.prefill(prompt(900), layout=LAYOUT)
    answers: list[str] = []

    def progress(now: ReadProgress) -> None:
        if not answers:
            answers.append("".join(model.stream(prompt(50, 3), SHORT)))

    quiet = model.inspect(state, RANGES)
    assert model.inspect(state, RANGES, progress=progress) == quiet
    assert answers == [alone]


def test_memory_that_runs_out_is_told_and_nothing_is_left_behind(
    clustered: Callable[..., PaceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clustered(pace=ACTING, window=100)
    state = model.prefill(prompt(700), layout=LAYOUT)
    expected = model.inspect(state, RANGES)
    decoder = model.engine.runner.decoder
    read, calls = decoder.read, itertools.count()

    def fail(*arguments: object) -> None:
        if next(calls) == 3:
            raise MemoryError
        read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "read", fail)
    with pytest.raises(InsufficientMemoryError, match=r"ran out .* \(token \d+ of 700\)"):
        model.inspect(state, RANGES)
    assert model.inspect(state, RANGES) == expected


@pytest.mark.parametrize(
    "ranges", [[(10, 5)], [(0, 800)], [(0, 20), (19, 30)], [(50, 60), (10, 20)], [(-1, 5)]]
)
def test_ranges_that_can_not_be_are_refused(tiny: Tiny, ranges: list[tuple[int, int]]) -> None:
    model = tiny()
    with pytest.raises(ConfigurationError, match=r"within the 700 tokens"):
        model.inspect(model.prefill(prompt(700)), ranges)


def test_what_another_model_has_read_is_refused(tiny: Tiny) -> None:
    model, other = tiny(), tiny("qwen2")
    for state in (other.prefill(prompt(300)), ScriptedModel().prefill(prompt(300))):
        with pytest.raises(ConfigurationError, match="not read by this model"):
            model.inspect(state, [(10, 20)])


def test_stretches_are_cut_where_ranges_and_messages_are() -> None:
    assert stretches_of(100, [(20, 40), (40, 40), (55, 75)], (0, 5, 60), 12) == [
        Stretch(0, 5, None, True),
        Stretch(5, 17, None, False),
        Stretch(17, 20, None, False),
        Stretch(20, 32, 0, False),
        Stretch(32, 40, 0, False),
        Stretch(40, 52, None, False),
        Stretch(52, 55, None, False),
        Stretch(55, 60, 2, True),
        Stretch(60, 72, 2, False),
        Stretch(72, 75, 2, False),
    ]
    assert stretches_of(100, [], (0, 5), 12) == []
    assert stretches_of(9, [(9, 9)], (), 12) == [Stretch(0, 9, None, False)]
