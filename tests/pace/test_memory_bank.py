from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bank import PlainBank
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory
from pacellm_rag.pace.memory_bank import BankStats, MemoryBank, look_up, update

WIDTH = 6


def activations(tokens: int, seed: int, spread: float = 0.6) -> torch.Tensor:
    """Tokens around four directions, so that all bands of similarity occur."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, WIDTH, generator=generator)
    chosen = torch.randint(4, (tokens,), generator=generator)
    noise = torch.randn(tokens, WIDTH, generator=generator)
    return (centres[chosen] + spread * noise)[None]


def config(**changes: object) -> PaceConfig:
    values: dict[str, object] = {
        "slots": 7, "positives": 3, "negatives": 2, "window": 5, "high": 0.8, "low": 0.2,
        "blend": 0.4,
    }  # fmt: skip
    return PaceConfig(**{**values, **changes})  # type: ignore[arg-type]


rules = st.sampled_from(["slotwise", "reference"])
types = st.sampled_from([torch.float32, torch.bfloat16])


def last_bits(dtype: torch.dtype) -> float:
    """How far apart the same outputs, and so values, may be.

    The arithmetic is float32 in every type; its sums, in whatever order, may then round to
    neighbours in bfloat16. Bands depend on keys alone, which are stored as they came.
    """
    return 1e-5 if dtype == torch.float32 else 2.0**-7


@given(
    rule=rules,
    window=st.integers(1, 9),
    tokens=st.integers(1, 45),
    slots=st.integers(3, 12),
    negatives=st.integers(0, 3),
    spread=st.floats(0.05, 2.0),
    seed=st.integers(0, 500),
    high=st.floats(0.4, 0.95),
    low=st.floats(-0.5, 0.4),
    outlier=st.floats(1.0, 2.0),
)
@settings(max_examples=150, deadline=None)
def test_the_bank_does_what_the_plain_loops_do(
    rule: str,
    window: int,
    tokens: int,
    slots: int,
    negatives: int,
    spread: float,
    seed: int,
    high: float,
    low: float,
    outlier: float,
) -> None:
    settings_ = config(
        update=rule,
        window=window,
        slots=slots,
        negatives=negatives,
        high=high,
        low=low,
        outlier=outlier,
    )
    x = activations(tokens, seed, spread)
    plain = PlainBank(settings_)
    expected: list[list[float]] = []
    double = x[0].double().tolist()
    for start in range(0, tokens, window):
        expected += plain.window(double[start : start + window])
    output, memory = LayerMemory.start(x, settings_).read(x)
    memory = memory.close_window()
    torch.testing.assert_close(
        output[0].double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=1e-4
    )
    assert int(memory.bank.filled[0]) == len(plain.slots)
    for index, slot in enumerate(plain.slots):
        torch.testing.assert_close(
            memory.bank.keys[0, index].double(),
            torch.tensor(slot.key, dtype=torch.float64),
            atol=1e-4,
            rtol=1e-4,
        )
        torch.testing.assert_close(
            memory.bank.values[0, index].double(),
            torch.tensor(slot.value, dtype=torch.float64),
            atol=1e-4,
            rtol=1e-4,
        )
        assert float(memory.bank.usage[0, index]) == slot.usage


@given(
    rule=rules,
    dtype=types,
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    window=st.integers(1, 9),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_the_cut_into_calls_does_not_matter(
    rule: str, dtype: torch.dtype, cuts: list[int], window: int, seed: int
) -> None:
    settings_ = config(update=rule, window=window)
    x = activations(sum(cuts), seed).to(dtype)
    whole, at_once = LayerMemory.start(x, settings_).read(x)
    memory = LayerMemory.start(x, settings_)
    pieces = []
    start = 0
    for cut in cuts:
        piece, memory = memory.read(x[:, start : start + cut])
        pieces.append(piece)
        start += cut
    bits = last_bits(dtype)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=bits, rtol=bits)
    assert_same(memory.close_window(), at_once.close_window())


@given(
    lengths=st.lists(st.integers(0, 14), min_size=2, max_size=4),
    calls=st.integers(1, 3),
    left=st.booleans(),
    window=st.integers(1, 6),
    seed=st.integers(0, 100),
    dtype=types,
)
@settings(max_examples=60, deadline=None)
def test_rows_of_a_padded_batch_are_what_they_are_alone(
    lengths: list[int], calls: int, left: bool, window: int, seed: int, dtype: torch.dtype
) -> None:
    settings_ = config(window=window)
    longest = max(*lengths, 1)
    rows = [activations(calls * longest, seed + r)[0].to(dtype) for r in range(len(lengths))]
    bits = last_bits(dtype)
    together = LayerMemory.start(torch.stack(rows), settings_)
    alone = [LayerMemory.start(row[None], settings_) for row in rows]
    for call in range(calls):
        batch = torch.stack([row[call * longest : (call + 1) * longest] for row in rows])
        valid = torch.zeros(len(rows), longest, dtype=torch.bool)
        for r, length in enumerate(lengths):
            valid[r, longest - length :] = left
            valid[r, :length] |= not left
        output, together = together.read(batch, valid)
        assert torch.equal(output[~valid], batch[~valid])
        for r in range(len(rows)):
            if not bool(valid[r].any()):
                continue
            own, alone[r] = alone[r].read(batch[r : r + 1, valid[r]])
            torch.testing.assert_close(output[r, valid[r]], own[0], atol=bits, rtol=bits)
    together = together.close_window()
    for r, memory in enumerate(alone):
        assert_same(together.select(torch.tensor([r])), memory.close_window())


def assert_same(one: LayerMemory, two: LayerMemory) -> None:
    for name, tensor in one.bank.tensors().items():
        filled = int(one.bank.filled[0])
        if name in ("keys", "values", "norms"):
            bits = last_bits(one.pending.dtype if name == "values" else torch.float32)
            torch.testing.assert_close(
                tensor[:, :filled], two.bank.tensors()[name][:, :filled], atol=bits, rtol=bits
            )
        else:
            assert torch.equal(tensor, two.bank.tensors()[name]), name
    for name, tensor in one.stats.tensors().items():
        assert torch.equal(tensor, two.stats.tensors()[name]), name


def test_an_empty_bank_changes_nothing() -> None:
    x = activations(9, 0)
    settings_ = config()
    bank = MemoryBank.empty(1, WIDTH, settings_, x.device)
    found = look_up(bank, x, settings_)
    assert torch.equal(found.output, x)
    assert not bool((found.high | found.middle).any())


def test_the_second_window_reads_what_the_first_one_wrote() -> None:
    x = activations(10, 3)
    repeated = torch.cat([x[:, :5], x[:, :5]], dim=1)
    output, _ = LayerMemory.start(repeated, config(blend=1.0)).read(repeated)
    assert torch.equal(output[:, :5], repeated[:, :5])
    assert not torch.allclose(output[:, 5:], repeated[:, 5:], atol=1e-3)


def test_a_blend_of_nothing_is_the_activation_to_the_bit() -> None:
    x = activations(40, 3).bfloat16()
    output, _ = LayerMemory.start(x, config(blend=0.0)).read(x)
    assert torch.equal(output, x)


def test_decoded_tokens_are_windows_of_their_own() -> None:
    x = activations(8, 5)
    memory = LayerMemory.start(x, config(window=100))
    _, memory = memory.read(x[:, :5])
    for token in range(5, 8):
        _, memory = memory.decode(x[:, token : token + 1])
    plain = PlainBank(config())
    plain.window(x[0, :5].double().tolist())
    for token in range(5, 8):
        plain.window([x[0, token].double().tolist()])
    assert int(memory.bank.filled[0]) == len(plain.slots)
    assert int(memory.stats.tokens[0]) == 8
    assert memory.pending.shape[1] == 0


def test_bands_are_those_of_float32_in_half_precision_too() -> None:
    x = activations(60, 7)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = x.to(dtype)
        _, half = LayerMemory.start(rounded, config()).read(rounded)
        _, full = LayerMemory.start(rounded.float(), config()).read(rounded.float())
        low = (half.stats.tokens - half.stats.high - half.stats.middle).sum()
        wanted = (full.stats.tokens - full.stats.high - full.stats.middle).sum()
        assert abs(int(low) - int(wanted)) <= 2  # outputs, so values, are rounded to the type


def test_memories_are_never_changed_in_place() -> None:
    x = activations(10, 1)
    settings_ = config()
    _, first = LayerMemory.start(x, settings_).read(x)
    before = {name: tensor.clone() for name, tensor in first.bank.tensors().items()}
    first.read(activations(10, 2))
    first.decode(activations(1, 3))
    first.close_window()
    for name, tensor in first.bank.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_stream_of_middling_similarity_collapses_by_the_reference_rule_only() -> None:
    """METHOD: pairwise cosine of the slots 0.40 -> 0.99 in six windows, by the authors' rule."""

    def spread_of(rule: str) -> float:
        generator = torch.Generator().manual_seed(0)
        common = torch.randn(64, generator=generator)
        stream = common + 1.2 * torch.randn(1, 60 * 7, 64, generator=generator)
        settings_ = PaceConfig(slots=20, window=60, high=0.95, low=0.1, update=rule)  # type: ignore[arg-type]
        bank = MemoryBank.empty(1, 64, settings_, stream.device)
        _, memory = LayerMemory(settings_, bank, BankStats.empty(1, stream.device),
                                stream[:, :0]).read(stream)  # fmt: skip
        keys = torch.nn.functional.normalize(memory.bank.keys[0, : int(memory.bank.filled[0])])
        cosines = keys @ keys.T
        return float((cosines.sum() - len(keys)) / (len(keys) * (len(keys) - 1)))

    assert spread_of("reference") > 0.97
    assert spread_of("slotwise") < 0.97


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ["slotwise", "reference"])
def test_a_lookup_is_two_products_and_makes_nothing_of_tokens_by_slots_by_width(
    rule: str, dtype: torch.dtype
) -> None:
    """Operations are two per multiplication: 4 M d a token to look up, as many to merge."""
    tokens, slots, width = 64, 32, 96
    settings_ = config(update=rule, slots=slots, window=tokens, low=-0.5, high=0.95)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3 * tokens, width, generator=generator).to(dtype)
    _, memory = LayerMemory.start(x, settings_).read(x[:, :tokens])
    window, most = x[:, tokens : 2 * tokens], 4 * tokens * slots * width
    with FlopCounterMode(display=False) as counter:
        look_up(memory.bank, window, settings_)
    assert counter.get_total_flops() == most
    largest = Largest()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as counter, largest:
        _, after = memory.read(window)
        once = largest.numbers
        for token in range(2 * tokens, 2 * tokens + 3):
            _, after = after.decode(x[:, token : token + 1])
    assert int(after.stats.merged[0]) > int(memory.stats.merged[0])
    assert counter.get_total_flops() <= 2 * most + 3 * most // tokens
    assert once == largest.numbers == max(tokens, slots) * width


@pytest.mark.parametrize("rule", ["slotwise", "reference"])
def test_massive_activations_are_not_stored_but_by_the_reference_rule(rule: str) -> None:
    x = activations(10, 4)
    x[:, 0] *= 500  # as the first token's on some layers of real models
    settings_ = config(update=rule)
    output, memory = LayerMemory.start(x, settings_).read(x)
    longest = float(memory.bank.keys.norm(dim=-1).max())
    usual = float(x[:, 1:].norm(dim=-1).max())
    assert torch.equal(output[:, 0], x[:, 0])
    if rule == "slotwise":
        assert longest <= 2 * usual
        assert float(output[:, 5:].norm(dim=-1).max()) <= 2 * usual
    else:
        assert longest > 100 * usual


def test_an_update_without_a_valid_token_is_none() -> None:
    x = activations(5, 2)
    settings_ = config()
    stats = BankStats.empty(1, x.device)
    _, memory = LayerMemory.start(x, settings_).read(x)
    nobody = torch.zeros(1, 5, dtype=torch.bool)
    found = look_up(memory.bank, x, settings_, nobody)
    bank, _ = update(memory.bank, x, found, settings_, stats, nobody)
    for name, tensor in bank.tensors().items():
        assert torch.equal(tensor, memory.bank.tensors()[name]), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"positives": 0}, "positives is 0"),
        ({"positives": 101}, "positives is 101"),
        ({"negatives": -1}, "negatives is -1"),
        ({"noise": 2.0}, r"noise is 2\.0"),
        ({"high": 0.2}, r"high is 0\.2"),
        ({"high": 1.2}, r"high is 1\.2"),
        ({"window": 0}, "window is 0"),
        ({"blend": 1.5}, r"blend is 1\.5"),
        ({"momentum": -0.5}, "momentum"),
        ({"outlier": 0.5}, r"outlier is 0\.5"),
        ({"update": "magic"}, "update is 'magic'"),
        ({"layers": (-1,)}, "layers"),
    ],
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PaceConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "layers"), [(28, (12, 26)), (30, (13, 28)), (24, (10, 22)), (3, (0, 2)), (1, (0,))]
)
def test_banks_sit_where_the_paper_puts_them(depth: int, layers: tuple[int, ...]) -> None:
    assert PaceConfig().layers_of(depth) == layers


def test_layers_that_are_not_there_are_refused() -> None:
    assert PaceConfig(layers=(3, 1, 3)).layers_of(4) == (1, 3)
    with pytest.raises(ConfigurationError, match="there is no layer 4"):
        PaceConfig(layers=(4,)).layers_of(4)


def test_settings_survive_json_and_unknown_ones_are_named() -> None:
    import json

    settings_ = PaceConfig(layers=(1, 2), blend=0.5, update="reference")
    assert PaceConfig.from_dict(json.loads(json.dumps(settings_.to_dict()))) == settings_
    with pytest.raises(ConfigurationError, match="'blending'"):
        PaceConfig.from_dict({"blending": 1})
