"""The rule `update="reference"` at real size: windows of up to 1,024 tokens, 100 slots.

The transcription here is of docs/pacellm.md's rules, one token at a time in float64, and shares
no code with the bank nor with `plain_bank`, which are compared at sizes of a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory

Tiny = Callable[..., PaceModel]
Array = NDArray[np.float64]
# The paper's and the code's numbers, but for a blend at which memory shows.
SETTINGS: dict[str, Any] = {
    "slots": 100, "positives": 5, "negatives": 2, "noise": 0.1, "high": 0.7, "low": 0.3,
    "momentum": 0.5, "blend": 0.5, "update": "reference",
}  # fmt: skip
SEEDS = (2, 5)  # of streams whose similarities keep clear of thresholds and of each other


@dataclass
class SlowReference:
    """What the authors' code does, window by window, with counts of what happened.

    Attributes:
        margin: how close a similarity ever came to a threshold, or the last chosen slot to the
            first that was not: nearer than float32's rounding, a comparison would be luck.
    """

    config: PaceConfig
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    margin: float = 1.0
    tokens: int = 0
    read_as: dict[str, int] = field(default_factory=lambda: {"high": 0, "middle": 0, "low": 0})
    stored_as: dict[str, int] = field(default_factory=lambda: {"high": 0, "middle": 0, "low": 0})
    merged: int = 0
    written: int = 0
    most_new: int = 0

    def band(self, similarity: float) -> str:
        c = self.config
        self.margin = min(self.margin, abs(similarity - c.high), abs(similarity - c.low))
        if similarity > c.high:
            return "high"
        return "middle" if similarity > c.low else "low"

    def ranking(self, x: Array) -> tuple[Array, list[int]]:
        table = np.stack(self.keys)
        cosines = table @ x / np.sqrt((table**2).sum(axis=1)) / np.sqrt((x**2).sum())
        order = [int(i) for i in np.argsort(-cosines)]
        if cosines.max() > self.config.low:  # else no slot is read or merged
            for edge in (self.config.positives, len(order) - self.config.negatives):
                if 0 < edge < len(order):
                    gap = cosines[order[edge - 1]] - cosines[order[edge]]
                    self.margin = min(self.margin, float(gap))
        return cosines, order

    def window(self, window: Array) -> Array:
        c = self.config
        outputs: list[Array] = []
        middle: list[int] = []  # tokens to merge
        touched: set[int] = set()
        new: list[int] = []
        for t, x in enumerate(window):
            self.tokens += 1
            if not self.keys:
                outputs.append(x)
                new.append(t)
                self.read_as["low"] += 1
                self.stored_as["low"] += 1
                continue
            cosines, order = self.ranking(x)
            best, worst = order[: c.positives], order[-c.negatives :]
            found = self.band(float(cosines[order[0]]))
            self.read_as[found] += 1
            if found == "low":
                outputs.append(x)
            else:
                plus = sum(self.values[j] for j in best) / len(best)
                minus = sum(self.values[j] for j in worst) / len(worst)
                # the code drops x from the middle band: 0.5 mu+, not (mu+ + x) / 2
                memory = (1.0 if found == "high" else 0.5) * plus + c.noise * minus
                outputs.append((1 - c.blend) * x + c.blend * memory)
            kind = self.band(sum(float(cosines[j]) for j in best) / len(best))
            self.stored_as[kind] += 1
            if kind == "middle":
                middle.append(t)
                touched.update(best)
            elif kind == "low":
                new.append(t)
        # every merged slot gets the mean over all medium tokens; that use is what is counted
        for j in touched:
            key = sum(window[t] for t in middle) / len(middle)
            value = sum(outputs[t] for t in middle) / len(middle)
            self.keys[j] = (1 - c.momentum) * self.keys[j] + c.momentum * key
            self.values[j] = (1 - c.momentum) * self.values[j] + c.momentum * value
            self.usage[j] += 1
        self.merged += len(touched)
        self.most_new = max(self.most_new, len(new))
        # new tokens in order of position: free slots, then the least used, each slot once
        least_used = sorted(range(len(self.keys)), key=lambda j: (self.usage[j], j))
        for t in new[: c.slots]:
            self.written += 1
            if len(self.keys) < c.slots:
                self.keys.append(window[t])
                self.values.append(outputs[t])
                self.usage.append(1)
            else:
                j = least_used.pop(0)
                self.keys[j], self.values[j], self.usage[j] = window[t], outputs[t], 1
        return np.stack(outputs)

    def read(self, tokens: Array, decoded: int) -> Array:
        """A prompt in windows, then `decoded` tokens that are a window each."""
        prompt, w = len(tokens) - decoded, self.config.window
        pieces = [self.window(tokens[i : min(i + w, prompt)]) for i in range(0, prompt, w)]
        pieces += [self.window(tokens[i : i + 1]) for i in range(prompt, len(tokens))]
        return np.concatenate(pieces)


def stream(prompt: int, decoded: int, window: int, novel: float, seed: int) -> torch.Tensor:
    """Activations of 24 neurons, shape (1, tokens, 24): topics that come up with the windows.

    A topic has four neurons of its own. A token is of the newest topic (with the share `novel`),
    of an earlier one, or between two of them, so that all three bands of similarity occur.
    """
    rng = np.random.default_rng(seed)
    rows = np.zeros((prompt + decoded, 24))
    for t in range(prompt + decoded):
        newest = min(1 + t // window + (t >= prompt), 5)
        kind = rng.random()
        own = newest if kind < novel else int(rng.integers(newest))
        rows[t, 4 * own : 4 * own + 4] += rng.normal(size=4) * 3
        if kind > 0.7:
            rows[t, 4 * newest : 4 * newest + 4] += rng.normal(size=4) * 3
    rows += rng.normal(size=rows.shape) * 0.2
    return torch.tensor(rows, dtype=torch.float32)[None]


def assert_all_bands(slow: SlowReference) -> None:
    """Else a comparison would say nothing."""
    for shares in (slow.read_as, slow.stored_as):
        assert sum(shares.values()) == slow.tokens
        assert min(shares.values()) >= 0.01 * slow.tokens, shares
    assert slow.merged > 0
    assert slow.margin > 2e-6  # float32 errs by a few 1e-7 in a cosine


def assert_same(memory: LayerMemory, slow: SlowReference, row: int = 0) -> None:
    bank = memory.bank
    assert int(bank.filled[row]) == len(slow.keys)
    assert bank.usage[row, : len(slow.usage)].tolist() == slow.usage
    for mine, theirs in ((bank.keys, slow.keys), (bank.values, slow.values)):
        assert_close(mine[row, : len(theirs)], np.stack(theirs))
    assert {name: int(count[row]) for name, count in memory.stats.tensors().items()} == {
        "tokens": slow.tokens,
        "high": slow.read_as["high"],
        "middle": slow.read_as["middle"],
        "written": slow.written,
        "merged": slow.merged,
    }


def assert_close(mine: torch.Tensor, theirs: Array) -> None:
    torch.testing.assert_close(mine.double(), torch.tensor(theirs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("window", "prompt", "decoded", "novel", "calls"),
    [
        pytest.param(1024, 700, 150, 0.1, 700, id="prompt-in-one-window-then-decoding"),
        pytest.param(1024, 1024, 150, 0.1, 1024, id="prompt-of-just-a-window-then-decoding"),
        pytest.param(1024, 2500, 40, 0.02, 2500, id="three-windows-in-one-call"),
        pytest.param(1024, 2500, 40, 0.02, 300, id="three-windows-in-pieces"),
        pytest.param(1024, 2500, 10, 0.4, 2500, id="more-new-tokens-than-slots-in-each-window"),
        pytest.param(160, 900, 20, 0.15, 900, id="small-windows"),
        pytest.param(60, 400, 10, 0.1, 50, id="a-bank-that-fills-over-windows"),
    ],
)
def test_the_bank_does_what_the_authors_code_does_at_real_size(
    window: int, prompt: int, decoded: int, novel: float, calls: int
) -> None:
    settings = PaceConfig(window=window, **SETTINGS)
    x = torch.cat([stream(prompt, decoded, window, novel, seed) for seed in SEEDS])
    rows = [SlowReference(settings) for _ in SEEDS]
    expected = [slow.read(x[row].double().numpy(), decoded) for row, slow in enumerate(rows)]
    memory, outputs = LayerMemory.start(x, settings), []
    for start in range(0, prompt, calls):
        output, memory = memory.read(x[:, start : min(start + calls, prompt)])
        outputs.append(output)
    for token in range(prompt, prompt + decoded):
        output, memory = memory.decode(x[:, token : token + 1])
        outputs.append(output)
    for row, slow in enumerate(rows):
        assert_all_bands(slow)
        assert_close(torch.cat(outputs, dim=1)[row], expected[row])
        assert_same(memory, slow, row)
        if window > slow.config.slots:
            assert slow.most_new > slow.config.slots
        if novel == 0.4:  # all slots are given away anew in each window
            assert slow.written >= 3 * slow.config.slots
        else:  # merged slots are there at the end, so that it is seen what they were merged with
            assert max(slow.usage) > 1


def test_new_tokens_beyond_the_slots_are_dropped_by_position() -> None:
    """500 tokens into an empty bank: the first 100 stay, in order; the next window may take 100."""
    settings = PaceConfig(window=500, **SETTINGS)
    x = stream(1000, 0, 500, 0.0, SEEDS[0])
    _, memory = LayerMemory.start(x, settings).read(x[:, :500])
    assert torch.equal(memory.bank.keys[0], x[0, :100])
    assert int(memory.stats.written[0]) == 100
    unlike = torch.zeros_like(x)  # neurons that no earlier token used
    unlike[0, :500, 20:] = stream(500, 0, 500, 0.0, SEEDS[1])[0, :, :4]
    _, after = memory.read(unlike[:, :500])
    assert int(after.stats.written[0]) == 200
    assert torch.equal(after.bank.keys[0], unlike[0, :100])
    assert bool((after.bank.usage == 1).all())


def test_a_patched_models_banks_do_what_the_authors_code_does(tiny: Tiny) -> None:
    """From a prompt longer than a window to decoding, at the layers of a decoder itself."""
    model = tiny("llama", intermediate_size=12).module
    settings = PaceConfig(layers=(0, 2), window=1024, **{**SETTINGS, "high": 0.8, "low": 0.5})
    seen: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    read: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    downs = {network.layer: network.down for network in find_feed_forwards(model)}

    def watch(layer: int, into: dict[int, list[torch.Tensor]]) -> None:
        downs[layer].register_forward_pre_hook(lambda _, given: into[layer].append(given[0][0]))

    ids = torch.randint(4, 260, (1, 2200), generator=torch.Generator().manual_seed(7))
    for layer in settings.layers or ():
        watch(layer, seen)  # before the bank
    with attach(model, settings), torch.no_grad():
        for layer in settings.layers or ():
            watch(layer, read)  # behind it
        cache = PaceCache(model.config)
        for start, end in ((0, 1400), (1400, 2190), *((i, i + 1) for i in range(2190, 2200))):
            model(ids[:, start:end], past_key_values=cache)
    for layer, memory in cache.memories.items():
        slow = SlowReference(settings)
        expected = slow.read(torch.cat(seen[layer]).double().numpy(), decoded=10)
        assert_all_bands(slow)
        assert_close(torch.cat(read[layer]), expected)
        assert_same(memory, slow)
