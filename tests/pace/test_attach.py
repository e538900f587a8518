"""What must hold of attached banks, over all families: properties 1 to 8 of docs/pacellm.md.

Over 400 lines because the properties are one list and share one way of asking.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.attach import attach, saved_config
from pacellm_rag.pace.cache import PaceCache, memories_of, restore_memories, set_phase
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
every_family = pytest.mark.parametrize("family", list(FAMILIES))
every_type = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def tokens(count: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 260, (rows, count), generator=generator)


def logits(model: PreTrainedModel, ids: torch.Tensor, **arguments: object) -> torch.Tensor:
    output: torch.Tensor = model(ids, **arguments).logits
    return output.float()


def read_in(model: PreTrainedModel, ids: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    cache = PaceCache(model.config)
    cache.reading()
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(logits(model, ids[:, start : start + cut], past_key_values=cache))
        start += cut
    return torch.cat(pieces, dim=1)


@every_type
@every_family
def test_1_windows_read_what_earlier_windows_stored_in_one_call(
    tiny: Tiny, family: str, dtype: str
) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(90)
    plain = logits(model, ids)
    with attach(model, ACTING):
        paced = logits(model, ids)
    assert torch.equal(paced[:, :20], plain[:, :20])
    assert (paced - plain)[:, 20:].abs().max() > 0.05


@every_family
def test_2_it_acts_in_either_order_of_eval_and_attach_and_says_so(tiny: Tiny, family: str) -> None:
    first, second, ids = tiny(family).module, tiny(family).module, tokens(90)
    first.eval()
    one = attach(first, ACTING)
    two = attach(second, ACTING)
    second.train()
    second.eval()
    assert torch.equal(logits(first, ids), logits(second, ids))
    for handle in (one, two):
        for layer in handle.stats().values():
            assert layer.tokens == 90
            assert layer.slots_filled > 0
            assert layer.acted
            assert layer.high + layer.middle + layer.untouched == pytest.approx(1)
            assert layer.written > 0


def test_2_no_effect_is_warned_about(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama").module
    with attach(model, PaceConfig(window=1024)) as handle:
        logits(model, tokens(60))
        with caplog.at_level(logging.WARNING, logger="pacellm_rag"):
            stats = handle.stats()
    assert not any(layer.acted for layer in stats.values())
    assert "changed no token" in caplog.text


@every_type
@every_family
def test_3_rows_of_a_batch_are_what_they_are_alone(tiny: Tiny, family: str, dtype: str) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(70, rows=3)
    with attach(model, ACTING):
        together = logits(model, ids)
        alone = torch.cat([logits(model, row[None]) for row in ids])
    tolerance = 1e-4 if dtype == "float32" else 0.25  # other batch sizes round bf16 otherwise
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=1e-3)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_3_padding_is_neither_read_nor_stored(tiny: Tiny, family: str, side: str) -> None:
    model = tiny(family).module
    long, short = tokens(70), tokens(45, seed=1)
    pad = torch.full((1, 25), 1)
    parts = [pad, short] if side == "left" else [short, pad]
    batch = torch.cat([long, torch.cat(parts, dim=1)])
    mask = torch.ones(2, 70, dtype=torch.long)
    real = slice(25, 70) if side == "left" else slice(0, 45)
    mask[1] = 0
    mask[1, real] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with attach(model, ACTING):
        both = logits(model, batch, attention_mask=mask, position_ids=positions)
        alone = logits(model, short)
        first = logits(model, long)
    torch.testing.assert_close(both[1:, real], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[:1], first, atol=1e-4, rtol=1e-4)


@every_family
def test_3_a_new_sequence_starts_empty(tiny: Tiny, family: str) -> None:
    model, a, b = tiny(family).module, tokens(60), tokens(60, seed=1)
    with attach(model, ACTING):
        first, _, again = logits(model, a), logits(model, b), logits(model, a)
        without_cache = logits(model, a, use_cache=False)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, without_cache, atol=1e-4, rtol=1e-4)


@every_family
def test_4_copies_of_a_cache_take_the_memory_along(tiny: Tiny, family: str) -> None:
    model, ids, more = tiny(family).module, tokens(50), tokens(30, seed=1)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)
        twin = copy.deepcopy(cache)
        one = logits(model, more, past_key_values=cache)
        two = logits(model, more, past_key_values=twin)
        whole = logits(model, torch.cat([ids, more], dim=1))[:, 50:]
    assert torch.equal(one, two)
    torch.testing.assert_close(one, whole, atol=1e-4, rtol=1e-4)


@every_family
def test_4_rows_move_with_their_memory(tiny: Tiny, family: str) -> None:
    model, ids, more = tiny(family).module, tokens(50, rows=2), tokens(30, seed=1)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)
        cache.batch_repeat_interleave(2)  # rows 0 0 1 1
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))  # rows 1 0 0 1
        cache.batch_select_indices(torch.tensor([0, 1]))  # rows 1 0
        moved = logits(model, more.repeat(2, 1), past_key_values=cache)
        for place, row in enumerate((1, 0)):
            sequence = torch.cat([ids[row : row + 1], more], dim=1)
            wanted = logits(model, sequence)[:, 50:]
            torch.testing.assert_close(moved[place : place + 1], wanted, atol=1e-4, rtol=1e-4)


def test_4_a_reset_cache_has_no_memory(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(50)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        first = logits(model, ids, past_key_values=cache)
        cache.reset()
        assert memories_of(cache) == {}
        assert torch.equal(logits(model, ids, past_key_values=cache), first)


def test_4_snapshots_bring_the_memory_back(tiny: Tiny) -> None:
    model, ids, more = tiny("qwen3").module, tokens(50), tokens(30, seed=1)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)
        kept, keys = cache.snapshot(), copy.deepcopy(cache)
        expected = logits(model, more, past_key_values=cache)
        for layer in keys.layers:
            if hasattr(layer, "pace_memory"):
                layer.pace_memory = None
        restore_memories(keys, kept, ACTING)
        assert torch.equal(logits(model, more, past_key_values=keys), expected)
        kept.pop("layers.0.pending")
        with pytest.raises(ModelError, match="incomplete"):
            restore_memories(keys, kept, ACTING)


def test_4_what_is_still_pending_can_be_cropped_and_what_is_written_can_not(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(50)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)  # windows of 20: 10 tokens are pending
        cache.crop(-7)
        assert cache.get_seq_length() == 43
        again = logits(model, ids[:, 43:], past_key_values=cache)
        torch.testing.assert_close(again, logits(model, ids)[:, 43:], atol=1e-4, rtol=1e-4)
        with pytest.raises(ModelError, match="can not be taken back"):
            cache.crop(-11)
        assert not cache.is_croppable


@every_family
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 45), min_size=1, max_size=6))
def test_5_the_cut_does_not_matter(tiny: Tiny, family: str, cuts: list[int]) -> None:
    model, ids = tiny(family).module, tokens(sum(cuts))
    with attach(model, ACTING):
        whole = logits(model, ids)
        pieces = read_in(model, ids, cuts)
    torch.testing.assert_close(pieces, whole, atol=3e-4, rtol=1e-3)


@every_family
def test_5_chunked_prefill_of_transformers_gives_the_same_tokens(tiny: Tiny, family: str) -> None:
    model, ids = tiny(family).module, tokens(64)
    with attach(model, ACTING):
        plain = model.generate(ids, **GREEDY)
        chunked = model.generate(ids, prefill_chunk_size=16, **GREEDY)
    assert plain.tolist() == chunked.tolist()


def test_5_a_segment_ends_its_last_window(tiny: Tiny) -> None:
    model, ids, more = tiny("llama").module, tokens(30), tokens(30, seed=1)
    with attach(model, ACTING):
        open_, closed = PaceCache(model.config), PaceCache(model.config)
        for cache in (open_, closed):
            cache.reading()
            logits(model, ids, past_key_values=cache)
        closed.end_segment()
        assert all(m.pending.shape[1] == 0 for m in closed.memories.values())
        one = logits(model, more, past_key_values=open_)
        two = logits(model, more, past_key_values=closed)
    assert not torch.allclose(one, two, atol=1e-3)


@every_family
def test_6_generate_gives_rows_of_a_padded_batch_what_they_get_alone(
    tiny: Tiny, family: str
) -> None:
    model = tiny(family).module
    long, short = tokens(60), tokens(40, seed=1)
    batch = torch.cat([long, torch.cat([torch.full((1, 20), 1), short], dim=1)])
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    with attach(model, ACTING):
        together = model.generate(batch, attention_mask=mask, **GREEDY)[:, 60:]
        alone = [model.generate(ids, **GREEDY)[0, ids.shape[1] :] for ids in (long, short)]
    for row, wanted in zip(together, alone, strict=True):
        assert row.tolist()[: len(wanted)] == wanted.tolist()


def test_6_beams_samples_and_several_answers_work(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60, rows=2)
    options: list[dict[str, object]] = [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 1.2},
    ]
    with attach(model, ACTING):
        for option in options:
            torch.manual_seed(0)
            output = model.generate(ids, **{**GREEDY, **option})
            assert output.shape[0] == 2 * int(option.get("num_return_sequences", 1))  # type: ignore[call-overload]
        beams = model.generate(ids[:1], **{**GREEDY, "num_beams": 3})
        both = model.generate(ids, **{**GREEDY, "num_beams": 3})[:1]
    assert both.tolist()[0][: beams.shape[1]] == beams.tolist()[0]


def test_6_one_beam_that_moves_is_the_sequence_read_anew(tiny: Tiny) -> None:
    """The memory of the winning beam is that of its own tokens, wherever it was moved from."""
    model, ids = tiny("llama").module, tokens(60)
    with attach(model, ACTING):
        found = model.generate(
            ids, **{**GREEDY, "num_beams": 4}, output_scores=True, return_dict_in_generate=True
        )
        winner = found.sequences[:, ids.shape[1] :]
        cache = PaceCache(model.config)
        score, last = 0.0, logits(model, ids, past_key_values=cache)[:, -1]
        for token in winner[0].tolist():
            score += float(last.log_softmax(-1)[0, token])
            if token == 3:
                break
            last = logits(model, torch.tensor([[token]]), past_key_values=cache)[:, -1]
    length = int((winner != 1).sum())
    assert float(found.sequences_scores[0]) == pytest.approx(score / length, abs=1e-3)


def test_6_assisted_decoding_says_why_it_does_not_work(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)
    with attach(model, ACTING), pytest.raises(ModelError, match="prompt-lookup decoding"):
        model.generate(ids, prompt_lookup_num_tokens=4, **GREEDY)


@every_type
@every_family
def test_7_detaching_restores_the_model_to_the_bit(tiny: Tiny, family: str, dtype: str) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(90)
    before = logits(model, ids)
    with suppress(KeyboardInterrupt), attach(model, ACTING):
        logits(model, ids)
        raise KeyboardInterrupt
    assert torch.equal(logits(model, ids), before)
    handle = attach(model, ACTING)
    handle.detach()
    handle.detach()
    assert not handle.attached
    assert torch.equal(logits(model, ids), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert saved_config(model) is None


@every_type
@every_family
def test_7_a_blend_of_nothing_gives_the_plain_logits_to_the_bit(
    tiny: Tiny, family: str, dtype: str
) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(90)
    before = logits(model, ids)
    with attach(model, PaceConfig(layers=(0, 1, 2), window=20, low=-0.5, blend=0.0)):
        assert torch.equal(logits(model, ids), before)


def test_7_an_error_in_the_model_leaves_nothing_behind(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)

    def fail(*_: object) -> None:
        raise ValueError("broken layer")

    with attach(model, ACTING) as handle:
        expected = logits(model, ids)
        hook = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="broken layer"):
            logits(model, ids)
        hook.remove()
        assert handle._calls.current is None
        assert torch.equal(logits(model, ids), expected)


def test_8_the_settings_travel_with_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny("qwen2").module, tokens(90)
    handle = attach(model, ACTING)
    paced = logits(model, ids)
    model.save_pretrained(tmp_path)
    handle.detach()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved_config(loaded) == ACTING
    attach(loaded, PaceConfig(layers=(1,))).detach()
    assert saved_config(loaded) == ACTING
    with attach(loaded) as again:
        assert again.config == ACTING
        torch.testing.assert_close(logits(loaded, ids), paced, atol=1e-4, rtol=1e-4)


def test_banks_are_not_put_on_twice(tiny: Tiny) -> None:
    model = tiny("llama").module
    with attach(model, ACTING), pytest.raises(ModelError, match="already"):
        attach(model, ACTING)
    attach(model, ACTING).detach()


def test_layers_that_are_not_there_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="there is no layer 7"):
        attach(tiny("llama").module, PaceConfig(layers=(7,)))


def test_a_layer_alone_can_not_tell_whose_it_is(tiny: Tiny) -> None:
    model = tiny("llama").module
    with attach(model, ACTING), pytest.raises(ModelError, match="outside its decoder"):
        model.model.layers[0].mlp(torch.zeros(1, 3, 32))


def test_a_plain_cache_of_transformers_carries_the_memory(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)
    for cache in (DynamicCache(config=model.config), DynamicCache()):
        with attach(model, ACTING) as handle:
            logits(model, ids, past_key_values=cache)
            assert set(memories_of(cache)) == {0, 2}
            assert set(handle.stats(cache)) == {0, 2}


def test_a_phase_can_be_said_where_it_would_be_guessed_wrong(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(41)
    with attach(model, ACTING):
        cache = DynamicCache(config=model.config)
        set_phase(cache, "read")
        logits(model, ids[:, :40], past_key_values=cache)
        last = logits(model, ids[:, 40:], past_key_values=cache)
        torch.testing.assert_close(last, logits(model, ids)[:, 40:], atol=1e-4, rtol=1e-4)
        assert all(m.pending.shape[1] == 1 for m in memories_of(cache).values())


def test_banks_can_be_trained_through(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)
    with torch.enable_grad(), attach(model, ACTING):
        model(ids.clone(), labels=ids.clone()).loss.backward()
        gradient = model.model.layers[0].mlp.gate_proj.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_a_copy_of_the_model_has_banks_of_its_own(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)
    before = logits(model, ids)
    handle = attach(model, ACTING)
    paced = logits(model, ids)
    twin = copy.deepcopy(model)
    handle.detach()
    assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(twin, ids), paced)
    twin._pacellm_handle.detach()
    assert torch.equal(logits(twin, ids), before)


def test_a_dropped_handle_does_not_keep_sequences_alive(tiny: Tiny) -> None:
    model, ids = tiny("llama").module, tokens(60)
    handle = attach(model, ACTING)
    logits(model, ids)
    handle.detach()
    gc.collect()
    assert handle.stats()  # what it last saw stays readable
