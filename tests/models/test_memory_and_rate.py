"""What is foretold of memory and time, against real caches and known clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from pacellm_rag.models import planning
from pacellm_rag.models.kv_cache import Block
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.planning import (
    MemoryNeeds,
    ReadingRate,
    free_memory,
    gib,
    total_memory,
)
from pacellm_rag.pace.cache import memories_of
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20)
CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", list(FAMILIES))


@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_take_what_was_foretold(tiny: Tiny, family: str, dtype: str) -> None:
    # a setting that gpt_neox has not, and does not look at
    heads = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    model = tiny(family, dtype=dtype, **heads)
    needs = MemoryNeeds.of(model.module.config, model.dtype, None)
    block = Block(100)
    decoder = model.engine.runner.decoder
    decoder.read(decoder.open((), None, block), list(range(4, 104)))
    layers = DynamicCache(config=model.module.config).layers
    full = sum(type(layer) is DynamicLayer for layer in layers)
    if full:
        assert block.nbytes == needs.kv_bytes(100)
    else:  # windows slide in all layers: an upper limit, as if none did
        assert block.nbytes == 0
        whole = DynamicCache()
        with torch.inference_mode():
            model.module(torch.arange(4, 44)[None], past_key_values=whole)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in whole.layers)  # type: ignore[union-attr]
        assert held == needs.kv_bytes(40)
    assert needs.bank_bytes == 0


@every_family
def test_banks_take_what_was_foretold(tiny: Tiny, family: str) -> None:
    model = tiny(family, pace=ACTING)
    needs = model.engine.runner.needs
    decoder = model.engine.runner.decoder
    cache = decoder.open((), None, Block(100))
    decoder.read(cache, list(range(4, 104)))
    banks = [memory.bank for memory in memories_of(cache).values()]
    assert sum(bank.keys.nbytes + bank.values.nbytes for bank in banks) == needs.bank_bytes > 0


def test_cost_adds_up_what_a_prompt_and_its_answer_take(tiny: Tiny) -> None:
    model = tiny("llama", pace=ACTING)
    needs, ids = model.engine.runner.needs, list(range(4, 104))
    cost = model.cost(ids, 20)
    assert (cost.tokens_known, cost.tokens_to_read) == (0, 100)
    assert cost.needed_bytes == needs.kv_bytes(120) + needs.bank_bytes
    assert cost.fits
    state = model.prefill(ids)
    after = model.cost([*ids, 9, 9], 20)
    assert (after.tokens_known, after.tokens_to_read) == (100, 2)
    assert after.kv_bytes == needs.kv_bytes(22)
    assert len(state.token_ids) == 100


def test_a_steady_rate_is_found_and_summed() -> None:
    rate = ReadingRate()
    assert rate.seconds(0, 10) is None
    assert rate.seconds(10, 10) == 0.0
    for start in range(0, 20_000, 1000):
        rate.record(start, 1000, 2.0)
    assert rate.seconds(0, 10_000) == pytest.approx(20.0)
    assert rate.seconds(5_000, 6_000) == pytest.approx(2.0)


def test_a_rate_that_grows_with_the_position_is_found_and_summed() -> None:
    rate, base, slope = ReadingRate(), 1e-3, 1e-7
    for start in range(0, 50_000, 1000):
        rate.record(start, 1000, 1000 * (base + slope * (start + 500)))
    for start, end in ((0, 1000), (0, 100_000), (30_000, 31_000)):
        wanted = (end - start) * base + slope * (end**2 - start**2) / 2
        assert rate.seconds(start, end) == pytest.approx(wanted, rel=1e-6)


def test_no_estimate_is_below_zero_and_short_windows_tell_nothing() -> None:
    rate = ReadingRate()
    rate.record(0, 63, 1000.0)
    assert rate.seconds(0, 10) is None
    for start, seconds in ((0, 9.0), (10_000, 0.1), (20_000, 0.0)):  # faster and faster
        rate.record(start, 1000, seconds)
    for end in (1, 1000, 10**6):
        found = rate.seconds(0, end)
        assert found is not None
        assert found >= 0


def test_the_newest_windows_count_most() -> None:
    rate = ReadingRate()
    for _ in range(50):
        rate.record(0, 1000, 10.0)
    for _ in range(50):
        rate.record(0, 1000, 1.0)
    assert rate.seconds(0, 1000) == pytest.approx(1.0, rel=0.1)


def test_a_rate_is_kept_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "rates" / "one.json"
    rate = ReadingRate(path)
    rate.save()
    assert not path.exists()  # nothing was measured
    rate.record(0, 1000, 2.0)
    rate.save()
    assert ReadingRate(path).seconds(0, 1000) == pytest.approx(2.0)
    for content in ("", "[]", '{"sums": [1]}', '{"sums": ["a"]}', '{"sums": null}', "\0"):
        path.write_text(content)
        assert ReadingRate(path).seconds(0, 1000) is None
    (tmp_path / "file").touch()
    unwritable = ReadingRate(tmp_path / "file" / "one.json")
    unwritable.record(0, 1000, 2.0)
    unwritable.save()


def test_free_memory_is_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_CGROUP", tmp_path)
    outside = free_memory(CPU)
    assert outside is not None
    assert 0 < outside <= total_memory(CPU)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50000\nslab 7\n")
    assert free_memory(CPU) == 150_000
    (tmp_path / "memory.current").write_text("1200000\n")
    assert free_memory(CPU) == 0
    for name, content in (("memory.max", "max\n"), ("memory.stat", "anon 5\n")):
        (tmp_path / "memory.max").write_text("1000000\n")
        (tmp_path / name).write_text(content)
        assert free_memory(CPU) is not None
        assert free_memory(CPU) != 0
    assert free_memory(torch.device("meta")) is None


def test_bytes_are_written_for_people() -> None:
    assert [gib(3 * 2**29), gib(2**30 - 2**19), gib(2**20)] == ["1.5 GiB", "1024 MiB", "1 MiB"]
