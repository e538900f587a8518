"""Keys and values held in fewer bytes, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.kv_cache import Block, KVStorage
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions

Tiny = Callable[..., PaceModel]
SHORT = GenerationOptions(max_new_tokens=12)
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (tokens,), generator=generator)]


def answer(model: PaceModel, ids: list[int]) -> str:
    return "".join(model.stream(ids, SHORT))


def logits(model: PaceModel, ids: list[int]) -> torch.Tensor:
    """After the last token, in two windows."""
    decoder = model.engine.runner.decoder
    cache = decoder.open((), None, Block(len(ids), model.engine.runner.storage))
    decoder.read(cache, ids[:100])
    return decoder.start(cache, ids[100:], None)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_eight_bits_change_logits_little_and_halve_the_bytes(
    tiny: Tiny, family: str, attention: str
) -> None:
    """Three bits of mantissa: single keys and values are off by up to 6 %, their sums by less."""
    full = tiny(family, attention=attention)
    small = tiny(family, attention=attention, kv_cache="fp8")
    ids = prompt(150)
    wanted, found = logits(full, ids), logits(small, ids)
    assert not torch.equal(wanted, found)
    assert float((wanted - found).std()) < 0.15 * float(wanted.std())
    bytes_full = full.engine.runner.needs.bytes_per_token
    assert small.engine.runner.needs.bytes_per_token * 4 == bytes_full  # of float32
    state = small.prefill(ids)
    held = small.engine.runner.cache.nbytes
    assert len(state.token_ids) == 150
    assert held <= full_bytes(full, ids) / 2


def full_bytes(model: PaceModel, ids: list[int]) -> int:
    state = model.prefill(ids)
    assert state.tokens_reused == 0
    return model.engine.runner.cache.nbytes


@pytest.mark.parametrize("kind", ["fp8", "offload"])
@pytest.mark.parametrize("pace", [None, ACTING])
def test_answers_are_the_same_alone_together_cached_and_restored(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pace: PaceConfig | None
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path))
    options: dict[str, Any] = {"kv_cache": kind, "pace": pace, "store_bytes": 2**30}
    model = tiny("llama", **options)
    documents = prompt(400)
    prompts = [[*documents, *prompt(15, seed)] for seed in range(1, 4)]
    state = model.prefill(documents)
    alone = [answer(model, ids) for ids in prompts]
    streams = [model.stream(ids, SHORT) for ids in prompts]
    for stream in streams:
        stream.start()
    assert ["".join(stream) for stream in streams] == alone
    assert len(state.token_ids) == 400
    model.flush()
    restored = tiny("llama", **options)
    stream = restored.stream(prompts[0], SHORT)
    assert "".join(stream) == alone[0]
    assert stream.tokens_reused == 400


def test_keys_kept_elsewhere_give_the_very_same_answers(tiny: Tiny) -> None:
    ids = prompt(300)
    assert answer(tiny("llama", kv_cache="offload"), ids) == answer(tiny("llama"), ids)


def test_what_is_out_of_range_is_held_at_its_end() -> None:
    states = torch.tensor([1e4, -1e4, 3.0])
    held = KVStorage.of("fp8").held(states).to(torch.float8_e4m3fn).float()
    assert held.tolist() == [448.0, -448.0, 3.0]


def test_readings_held_otherwise_are_not_used(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path))
    ids = prompt(300)
    model = tiny("llama", kv_cache="fp8", store_bytes=2**30)
    model.prefill(ids)
    model.flush()
    assert tiny("llama", store_bytes=2**30).prefill(ids).tokens_reused == 0


def test_unknown_ways_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="full, fp8, offload"):
        tiny("llama", kv_cache="int4")
