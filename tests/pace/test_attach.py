"""What must hold of attached banks, over all families: properties 1 to 8 of docs/pacellm.md.

In float32 and bfloat16; what agrees to rounding only is judged as `to_rounding` says.

Over 400 lines because the properties are one list and share one way of asking.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from to_rounding import (
    ACTING,
    allowed,
    assert_same_to_rounding,
    distance,
    every_type_and_band,
)
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.attach import attach, saved_config
from pacellm_rag.pace.cache import PaceCache, memories_of, restore_memories, set_phase
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
every_family = pytest.mark.parametrize("family", list(FAMILIES))
every_type = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
few_examples = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def read_in(
    model: PreTrainedModel, ids: torch.Tensor, cuts: list[int], cache: PaceCache | None = None
) -> torch.Tensor:
    if cache is None:
        cache = PaceCache(model.config)
    cache.reading()
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(logits(model, ids[:, start : start + cut], past_key_values=cache))
        start += cut
    return torch.cat(pieces, dim=1)


def padded(side: str) -> dict[str, torch.Tensor]:
    """A batch of 70 tokens and of 45 padded at a side, with its mask and positions."""
    batch, mask = tokens(70).repeat(2, 1), torch.ones(2, 70, dtype=torch.long)
    real = slice(25, 70) if side == "left" else slice(0, 45)
    batch[1], mask[1] = 1, 0
    batch[1, real], mask[1, real] = tokens(45, seed=1)[0], 1
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return {"input_ids": batch, "attention_mask": mask, "position_ids": positions}


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


@every_type
@every_family
def test_2_it_acts_in_either_order_of_eval_and_attach_and_says_so(
    tiny: Tiny, family: str, dtype: str
) -> None:
    first, second = (tiny(family, dtype=dtype).module for _ in range(2))
    ids = tokens(90)
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


@every_type
@every_family
def test_2_no_effect_is_warned_about(
    tiny: Tiny, family: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(family, dtype=dtype).module
    with attach(model, PaceConfig(window=1024)) as handle:
        logits(model, tokens(60))
        with caplog.at_level(logging.WARNING, logger="pacellm_rag"):
            stats = handle.stats()
    assert not any(layer.acted for layer in stats.values())
    assert "changed no token" in caplog.text


@every_type_and_band
@every_family
def test_3_rows_of_a_batch_are_what_they_are_alone(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(70, rows=3)
    assert_same_to_rounding(
        model,
        config,
        dtype,
        lambda: (logits(model, ids), torch.cat([logits(model, row[None]) for row in ids])),
    )


@every_type_and_band
@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_3_padding_is_neither_read_nor_stored(
    tiny: Tiny, family: str, side: str, dtype: str, config: PaceConfig
) -> None:
    model, batch = tiny(family, dtype=dtype).module, padded(side)

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        both = model(**batch).logits.float()
        long, short = both[:1], both[1:, batch["attention_mask"][1].bool()]
        alone = logits(model, tokens(70)), logits(model, tokens(45, seed=1))
        return torch.cat([long, short], dim=1), torch.cat(alone, dim=1)

    assert_same_to_rounding(model, config, dtype, two_ways)


@every_type_and_band
@every_family
def test_3_tokens_decoded_behind_padding_are_those_decoded_without(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, batch, more = tiny(family, dtype=dtype).module, padded("left"), tokens(8, 2, rows=2)

    def decoded(ids: torch.Tensor, more: torch.Tensor, **arguments: torch.Tensor) -> torch.Tensor:
        cache = PaceCache(model.config)
        mask = arguments.pop("attention_mask", torch.ones_like(ids))
        logits(model, ids, past_key_values=cache, attention_mask=mask, **arguments)
        answers = []
        for token in more.T:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            place = mask.sum(dim=1, keepdim=True) - 1
            answers.append(
                logits(
                    model,
                    token[:, None],
                    past_key_values=cache,
                    attention_mask=mask,
                    position_ids=place,
                )
            )
        return torch.cat(answers, dim=1)

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        prompts = batch["input_ids"][:1], batch["input_ids"][1:, 25:]
        alone = [decoded(ids, more[i : i + 1]) for i, ids in enumerate(prompts)]
        rest = {name: batch[name] for name in ("attention_mask", "position_ids")}
        return decoded(batch["input_ids"], more, **rest), torch.cat(alone)

    assert_same_to_rounding(model, config, dtype, two_ways)


@every_type_and_band
@every_family
def test_3_a_new_sequence_starts_empty(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, a, b = tiny(family, dtype=dtype).module, tokens(60), tokens(60, seed=1)
    with attach(model, config):
        first, _, again = logits(model, a), logits(model, b), logits(model, a)
    assert torch.equal(first, again)
    assert_same_to_rounding(
        model, config, dtype, lambda: (logits(model, a), logits(model, a, use_cache=False))
    )


@every_type_and_band
@every_family
def test_4_copies_of_a_cache_take_the_memory_along(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, ids, more = tiny(family, dtype=dtype).module, tokens(50), tokens(30, seed=1)

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)
        twin = copy.deepcopy(cache)
        one = logits(model, more, past_key_values=cache)
        assert torch.equal(one, logits(model, more, past_key_values=twin))
        return one, logits(model, torch.cat([ids, more], dim=1))[:, 50:]

    assert_same_to_rounding(model, config, dtype, two_ways)


@every_type_and_band
@every_family
def test_4_rows_move_with_their_memory(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, ids, more = tiny(family, dtype=dtype).module, tokens(50, rows=2), tokens(30, seed=1)

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)
        cache.batch_repeat_interleave(2)  # rows 0 0 1 1
        cache.reorder_cache(torch.LongTensor([3, 0, 1, 2]))  # rows 1 0 0 1
        cache.batch_select_indices(torch.tensor([0, 1]))  # rows 1 0
        moved = logits(model, more.repeat(2, 1), past_key_values=cache)
        swapped = torch.cat([ids.flip(0), more.repeat(2, 1)], dim=1)
        return moved, torch.cat([logits(model, row[None])[:, 50:] for row in swapped])

    assert_same_to_rounding(model, config, dtype, two_ways)


@every_type
@every_family
def test_4_a_reset_cache_has_no_memory(tiny: Tiny, family: str, dtype: str) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(50)
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        first = logits(model, ids, past_key_values=cache)
        cache.reset()  # type: ignore[no-untyped-call]
        assert memories_of(cache) == {}
        assert torch.equal(logits(model, ids, past_key_values=cache), first)


@every_type
@every_family
def test_4_snapshots_bring_the_memory_back(tiny: Tiny, family: str, dtype: str) -> None:
    model, ids, more = tiny(family, dtype=dtype).module, tokens(50), tokens(30, seed=1)
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


@every_type_and_band
@every_family
def test_4_what_is_still_pending_can_be_cropped_and_what_is_written_can_not(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(50)

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        cache = PaceCache(model.config)
        cache.reading()
        logits(model, ids, past_key_values=cache)  # windows of 20: 10 tokens are pending
        cache.crop(-7)
        assert cache.get_seq_length() == 43
        again = logits(model, ids[:, 43:], past_key_values=cache)
        if cache.memories:
            with pytest.raises(ModelError, match="can not be taken back"):
                cache.crop(-11)
            assert not cache.is_croppable
        return again, logits(model, ids)[:, 43:]

    assert_same_to_rounding(model, config, dtype, two_ways)


@every_family
@few_examples
@given(cuts=st.lists(st.integers(1, 45), min_size=1, max_size=6))
def test_5_the_cut_does_not_matter(tiny: Tiny, family: str, cuts: list[int]) -> None:
    model, ids = tiny(family).module, tokens(sum(cuts))
    with attach(model, ACTING):
        whole = logits(model, ids)
        pieces = read_in(model, ids, cuts)
    torch.testing.assert_close(pieces, whole, atol=3e-4, rtol=1e-3)


@every_type_and_band
@every_family
@pytest.mark.parametrize("cuts", [[7, 26, 1, 56], [1, 1, 1, 1, 41, 45]], ids=str)
def test_5_every_cut_leaves_the_same_logits_and_banks(
    tiny: Tiny, family: str, cuts: list[int], dtype: str, config: PaceConfig
) -> None:
    """Banks of blend 0 hold the plain model's activations, so they bound those that act."""
    model, ids = tiny(family, dtype=dtype).module, tokens(90)
    caches: list[PaceCache] = []

    def two_ways() -> tuple[torch.Tensor, torch.Tensor]:
        caches[:] = PaceCache(model.config), PaceCache(model.config)
        return read_in(model, ids, [90], caches[0]), read_in(model, ids, cuts, caches[1])

    def stored() -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        one, two = (cache.memories for cache in caches)
        return [(one[i].bank.tensors(), two[i].bank.tensors()) for i in one]

    with attach(model, replace(config, blend=0.0)):
        two_ways()
        plain = stored()
    assert_same_to_rounding(model, config, dtype, two_ways)
    for (one, two), (plain_one, plain_two) in zip(stored(), plain, strict=True):
        assert torch.equal(one["usage"], two["usage"])
        assert torch.equal(one["filled"], two["filled"])
        for name in ("keys", "values"):
            bound = allowed(plain_one[name], plain_two[name], dtype)
            assert distance(one[name], two[name]) <= bound
    for layer, memory in caches[0].memories.items():
        other = caches[1].memories[layer]
        assert memory.pending.shape == other.pending.shape == (1, 10, memory.pending.shape[2])
        for name, count in memory.stats.tensors().items():
            assert torch.equal(count, other.stats.tensors()[name]), name


@every_type_and_band
@every_family
def test_5_nor_does_the_cut_before_a_segments_end_and_decoding(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    model, ids = tiny(family, dtype=dtype).module, tokens(75)

    def read(first: list[int], second: list[int]) -> torch.Tensor:
        cache = PaceCache(model.config)
        one = read_in(model, ids[:, :33], first, cache)
        cache.end_segment()
        two = read_in(model, ids[:, 33:70], second, cache)
        cache.decoding()
        decoded = [logits(model, ids[:, i : i + 1], past_key_values=cache) for i in range(70, 75)]
        return torch.cat([one, two, *decoded], dim=1)

    assert_same_to_rounding(
        model, config, dtype, lambda: (read([33], [37]), read([5, 28], [11, 1, 25]))
    )


@every_family
def test_5_chunked_prefill_of_transformers_gives_the_same_tokens(tiny: Tiny, family: str) -> None:
    model, ids = tiny(family).module, tokens(64)
    with attach(model, ACTING):
        plain = model.generate(ids, **GREEDY)
        chunked = model.generate(ids, prefill_chunk_size=16, **GREEDY)
    assert plain.tolist() == chunked.tolist()


@every_type_and_band
@every_family
def test_5_chunked_prefill_of_transformers_gives_the_same_first_scores(
    tiny: Tiny, family: str, dtype: str, config: PaceConfig
) -> None:
    """Of the first token only: bfloat16 has ties, and what follows depends on which one won."""
    model, ids = tiny(family, dtype=dtype).module, tokens(64, rows=3)
    options = {"output_logits": True, "return_dict_in_generate": True}

    def first(**more: object) -> torch.Tensor:
        output = model.generate(ids, **{**GREEDY, **options, "max_new_tokens": 1, **more})
        scores: torch.Tensor = output.logits[0].float()
        return scores

    assert_same_to_rounding(model, config, dtype, lambda: (first(), first(prefill_chunk_size=16)))


@every_type
@every_family
def test_5_a_segment_ends_its_last_window(tiny: Tiny, family: str, dtype: str) -> None:
    model, ids, more = tiny(family, dtype=dtype).module, tokens(30), tokens(30, seed=1)
    with attach(model, ACTING):
        open_, closed = PaceCache(model.config), PaceCache(model.config)
        for cache in (open_, closed):
            cache.reading()
            logits(model, ids, past_key_values=cache)
        closed.end_segment()
        assert all(m.pending.shape[1] == 0 for m in closed.memories.values())
        one = logits(model, more, past_key_values=open_)
        two = logits(model, more, past_key_values=closed)
    assert distance(one, two) > 0.1  # both ways sum in the same order: this is memory alone


@every_type
@every_family
def test_6_neither_reading_nor_decoding_waits_for_the_device(
    tiny: Tiny, family: str, dtype: str
) -> None:
    """On the meta device there are shapes and no numbers, so that asking for one is an error."""
    model, ids = tiny(family, dtype=dtype).module.to("meta"), tokens(32, rows=2).to("meta")
    model.config.pad_token_id = None  # else GPT-2 itself looks for padding in the numbers
    with attach(model, ACTING):
        cache = PaceCache(model.config)
        assert model(ids[:, :30], past_key_values=cache).logits.shape == (2, 30, 260)
        for token in (30, 31):
            assert model(ids[:, token : token + 1], past_key_values=cache).logits.is_meta
        for memory in cache.memories.values():
            assert memory.bank.keys.is_meta
            assert memory.pending.shape[1] == 0


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


@every_type
@every_family
def test_8_the_settings_travel_with_the_checkpoint(
    tiny: Tiny, family: str, dtype: str, tmp_path: Path
) -> None:
    def load(folder: Path) -> PreTrainedModel:
        kernel = tiny(family).module.config._attn_implementation
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kernel)

    tiny(family, dtype=dtype).module.save_pretrained(tmp_path / "plain")
    model, ids = load(tmp_path / "plain"), tokens(90)
    handle = attach(model, ACTING)
    paced = logits(model, ids)
    model.save_pretrained(tmp_path / "paced")
    handle.detach()
    model.save_pretrained(tmp_path / "detached")
    assert saved_config(load(tmp_path / "detached")) is None
    loaded = load(tmp_path / "paced")
    assert saved_config(loaded) == ACTING
    attach(loaded, PaceConfig(layers=(1,))).detach()
    assert saved_config(loaded) == ACTING
    with attach(loaded) as again:
        assert again.config == ACTING
        assert torch.equal(logits(loaded, ids), paced)


@few_examples
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    left=st.booleans(),
    filling=st.integers(0, 259),
)
def test_any_row_of_any_padded_batch_is_what_it_is_alone(
    tiny: Tiny, lengths: list[int], left: bool, filling: int
) -> None:
    model, longest = tiny("llama").module, max(lengths)
    batch = torch.full((len(lengths), longest), filling)
    mask = torch.zeros_like(batch)
    rows = [tokens(60, seed=seed)[0, :length] for seed, length in enumerate(lengths)]
    for place, row in enumerate(rows):
        real = slice(longest - len(row), longest) if left else slice(0, len(row))
        batch[place, real], mask[place, real] = row, 1
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with attach(model, ACTING):
        together = logits(model, batch, attention_mask=mask, position_ids=positions)
        others = torch.where(mask.bool(), batch, 259 - filling)
        refilled = logits(model, others, attention_mask=mask, position_ids=positions)
        for place, row in enumerate(rows):
            there = mask[place].bool()
            alone = logits(model, row[None])[0]
            torch.testing.assert_close(together[place, there], alone, atol=3e-4, rtol=1e-3)
            assert torch.equal(refilled[place, there], together[place, there])


@every_type
@few_examples
@given(order=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=2, max_size=5))
def test_any_sequence_read_anew_starts_anew(
    tiny: Tiny, dtype: str, order: list[tuple[int, int]]
) -> None:
    model = tiny("llama", dtype=dtype).module
    ids = [tokens(60, seed=seed) for seed in range(3)]
    with attach(model, ACTING):
        first = [logits(model, ids[which][:, :length]) for which, length in order]
    with attach(model, ACTING):
        for (which, length), wanted in reversed(list(zip(order, first, strict=True))):
            assert torch.equal(logits(model, ids[which][:, :length]), wanted)


@every_type
@few_examples
@given(turns=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), min_size=3, max_size=8))
def test_sequences_read_in_turns_are_those_read_one_after_the_other(
    tiny: Tiny, dtype: str, turns: list[tuple[int, int]]
) -> None:
    model = tiny("llama", dtype=dtype).module
    ids = [tokens(240, seed=seed) for seed in range(3)]
    with attach(model, ACTING):
        caches, seen = [PaceCache(model.config) for _ in ids], [0] * len(ids)
        in_turns: list[list[torch.Tensor]] = [[] for _ in ids]
        for which, count in turns:
            caches[which].reading()
            piece = ids[which][:, seen[which] : seen[which] + count]
            in_turns[which].append(logits(model, piece, past_key_values=caches[which]))
            seen[which] += count
        for which, pieces in enumerate(in_turns):
            if pieces:
                cuts = [piece.shape[1] for piece in pieces]
                assert torch.equal(read_in(model, ids[which], cuts), torch.cat(pieces, dim=1))


@every_type
@few_examples
@given(
    blends=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    window=st.integers(1, 40),
    layers=st.sets(st.integers(0, 2), min_size=1),
    broken=st.booleans(),
)
def test_whatever_was_attached_comes_off_to_the_bit(
    tiny: Tiny, dtype: str, blends: list[float], window: int, layers: set[int], broken: bool
) -> None:
    model, ids = tiny("llama", dtype=dtype).module, tokens(50)
    before = logits(model, ids)
    for blend in blends:
        config = PaceConfig(layers=tuple(layers), window=window, low=-0.5, blend=blend)
        with suppress(KeyboardInterrupt), attach(model, config):
            logits(model, ids)
            if broken:
                raise KeyboardInterrupt
        assert torch.equal(logits(model, ids), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


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
