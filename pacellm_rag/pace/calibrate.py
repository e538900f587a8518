"""Which settings of the memory banks lower the loss of known answers, if any do.

The answers are put into the model's mouth token by token, as it would decode them itself, behind
documents that are read once per setting. Settings are searched on one half of the samples and
judged on the other, both ways round; only what holds on samples that did not choose it is given.
Knows tokens and decoders; knows nothing of documents, templates or files.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from pacellm_rag.errors import CancelledError, ConfigurationError, ModelError
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import PaceCache
from pacellm_rag.pace.config import PaceConfig

__all__ = [
    "Calibration",
    "Change",
    "Measured",
    "Sample",
    "Trial",
    "answer_losses",
    "calibrate",
    "measure",
    "paired_interval",
]

Half = Literal["A", "B"]

_FEWEST_ANSWERS = 20  # of a half: a bootstrap of fewer is too sure of itself
_DRAWN_AT_ONCE = 10_000_000


class _CancelSignal(Protocol):
    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Sample:
    """Documents as tokens, and questions about them with their answers.

    Attributes:
        prefix: the documents, as every question shares them.
        turns: for each question its tokens, from the end of the prefix to where the answer begins,
            and the tokens of the answer.

    Raises:
        ConfigurationError: a part has no tokens.
    """

    prefix: tuple[int, ...]
    turns: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if not self.prefix or not self.turns or not all(q and a for q, a in self.turns):
            raise ConfigurationError(
                "A sample has a prefix, a question or an answer without tokens, or no questions; "
                "each needs one token or more."
            )


@dataclass(frozen=True)
class Measured:
    """What a setting gives on some samples.

    Attributes:
        losses: for each answer the mean negative log likelihood of its tokens, in nats.
        acted: share of the documents' tokens that a bank changed, over the layers with one.
    """

    losses: tuple[float, ...]
    acted: float


@dataclass(frozen=True)
class Change:
    """A paired change of the loss against the plain model, in nats; below 0 is better.

    Attributes:
        n: answers.
        mean: mean change.
        low: lower end of the 95 % bootstrap interval.
        high: its upper end.
    """

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float], groups: Sequence[int], seed: int) -> Change:
        """Of one difference per answer, and the answers per sample."""
        interval = paired_interval(differences, groups=groups, seed=seed)
        return cls(len(differences), *interval)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them; those that are not finite are null."""
        figures = {"mean": self.mean, "low": self.low, "high": self.high}
        return {"n": self.n} | {k: v if math.isfinite(v) else None for k, v in figures.items()}


@dataclass(frozen=True)
class Trial:
    """One setting on one half of the samples."""

    config: PaceConfig
    half: Half
    change: Change
    acted: float

    def to_dict(self) -> dict[str, Any]:
        """The trial as JSON can hold it."""
        figures = self.change.to_dict()
        return {
            "config": self.config.to_dict(),
            "half": self.half,
            **figures,
            "acted": self.acted,
        }


@dataclass(frozen=True)
class Calibration:
    """What a search found.

    Attributes:
        config: the settings that lower the loss beyond chance; None where plain is as good.
        trials: all that was tried, in order.
        validation: what each half chose, on the other half; empty where a half chose nothing.
        evidence: the change on answers that did not choose: of `config` where there is one, else
            of what the halves chose, together.
    """

    config: PaceConfig | None
    trials: tuple[Trial, ...]
    validation: tuple[Trial, ...]
    evidence: Change | None

    @property
    def settings(self) -> int:
        """How many different settings were tried."""
        return len({trial.config for trial in self.trials})

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; `PaceConfig.from_dict` reads "config"."""
        return {
            "config": None if self.config is None else self.config.to_dict(),
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "settings": self.settings,
            "validation": [trial.to_dict() for trial in self.validation],
            "trials": [trial.to_dict() for trial in self.trials],
        }


def measure(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    config: PaceConfig | None,
    *,
    window: int = 1024,
    progress: Callable[[int, int], None] | None = None,
    cancel: _CancelSignal | None = None,
) -> Measured:
    """Reads the samples' documents with a setting, and what loss it gives their answers.

    Reading and answering go as in the reading engine: the documents are a segment, a question is
    read on a copy of what they left, each token of its answer is decoded. The size of the pieces
    that are read does not matter.

    Args:
        model: a causal language model without PaceLLM.
        samples: documents, questions and answers.
        config: the settings; None for the plain model.
        window: tokens per forward pass while reading.
        progress: called with answers done and answers in all.
        cancel: looked at before every document and question.

    Raises:
        ModelError: the model has PaceLLM attached.
        CancelledError: `cancel` was set.
    """
    if getattr(model, "_pacellm_handle", None) is not None:
        raise ModelError("This model has PaceLLM attached; detach it before calibrating.")
    if window < 1:
        raise ConfigurationError(f"window is {window}; it must be 1 token or more.")
    total = sum(len(sample.turns) for sample in samples)
    losses: list[float] = []
    acted = looked_up = 0
    attached = nullcontext() if config is None else attach(model, config)
    with attached, _evaluating(model), torch.no_grad():
        for sample in samples:
            _check(cancel, len(losses), total)
            cache = PaceCache(model.config)
            cache.reading()
            _read(model, cache, sample.prefix, window)
            cache.end_segment()
            for memory in cache.memories.values():
                acted += int(memory.stats.high + memory.stats.middle)
                looked_up += int(memory.stats.tokens)
            for question, answer in sample.turns:
                _check(cancel, len(losses), total)
                branch = copy.deepcopy(cache)
                losses.append(_answer_loss(model, branch, question, answer, window))
                if progress is not None:
                    progress(len(losses), total)
    return Measured(tuple(losses), acted / max(looked_up, 1))


def answer_losses(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    config: PaceConfig | None,
    *,
    window: int = 1024,
    progress: Callable[[int, int], None] | None = None,
    cancel: _CancelSignal | None = None,
) -> list[float]:
    """The losses that `measure` finds: one per answer, in nats, in the order of the samples."""
    found = measure(model, samples, config, window=window, progress=progress, cancel=cancel)
    return list(found.losses)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and each module back in its mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(cancel: _CancelSignal | None, done: int, total: int) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError(f"Cancelled while calibrating (answer {done} of {total}).")


def _read(model: PreTrainedModel, cache: PaceCache, tokens: Sequence[int], window: int) -> None:
    """Runs tokens through the decoder and computes no logits."""
    for start in range(0, len(tokens), window):
        ids = torch.tensor([tokens[start : start + window]], device=model.device)
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)


def _answer_loss(
    model: PreTrainedModel,
    cache: PaceCache,
    question: Sequence[int],
    answer: Sequence[int],
    window: int,
) -> float:
    """Mean loss of an answer's tokens; what is read goes into the cache."""
    cut = (len(question) - 1) // window * window
    _read(model, cache, question[:cut], window)
    feed: Sequence[int] = question[cut:]
    logits = []
    for token in answer:
        ids = torch.tensor([feed], device=model.device)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits.append(output.logits[0, -1].float())
        feed = [token]
        cache.decoding()  # each token of the answer is a window of its own
    wanted = torch.tensor(answer, device=logits[0].device)
    return float(torch.nn.functional.cross_entropy(torch.stack(logits), wanted))


def paired_interval(
    differences: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % bootstrap interval (percentiles).

    Args:
        differences: one per answer.
        groups: how many of them, one after the other, share documents; groups are drawn again, and
            answers within them. None takes every answer as independent of the others.
        seed: of the resampling.
        resamples: how often is drawn again.

    Returns:
        The mean, and the interval's lower and upper end; infinite ends for a single group.

    Raises:
        ConfigurationError: there is no difference, or no resample, or the groups do not add up.
    """
    n = len(differences)
    sizes = torch.tensor([1] * n if groups is None else list(groups), dtype=torch.long)
    if n == 0 or resamples < 1 or int(sizes.sum()) != n or int(sizes.min()) < 1:
        raise ConfigurationError(
            f"{n} differences, {int(sizes.sum())} of them in groups, and {resamples} resamples; "
            "an interval needs 1 or more of each, and every difference in one group."
        )
    values = torch.tensor(list(differences), dtype=torch.float64)
    mean = float(values.mean())
    if len(sizes) == 1 or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    widest = int(sizes.max())
    starts, places = sizes.cumsum(0) - sizes, torch.arange(widest)
    generator = torch.Generator().manual_seed(seed)
    at_once = max(_DRAWN_AT_ONCE // (len(sizes) * widest), 1)
    means = []
    for done in range(0, resamples, at_once):
        shape = (min(at_once, resamples - done), len(sizes))
        drawn = torch.randint(len(sizes), shape, generator=generator)
        of = sizes[drawn][..., None]
        share = torch.rand((*shape, widest), dtype=torch.float64, generator=generator)
        answers = values[starts[drawn][..., None] + (share * of).long()]
        there = places < of  # smaller groups leave places empty
        means.append((answers * there).sum((1, 2)) / there.sum((1, 2)))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    return mean, low, high


class _Search:
    """Trials on the two halves of the samples, each run once."""

    def __init__(
        self,
        run: Callable[[Sequence[Sample], PaceConfig | None], Measured],
        samples: Sequence[Sample],
        seed: int,
        total: int,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        order = list(range(len(samples)))
        random.Random(seed).shuffle(order)
        self.halves: dict[Half, list[Sample]] = {
            "A": [samples[i] for i in sorted(order[::2])],
            "B": [samples[i] for i in sorted(order[1::2])],
        }
        for half, chosen in self.halves.items():
            answers = sum(len(sample.turns) for sample in chosen)
            if answers < _FEWEST_ANSWERS:
                raise ConfigurationError(
                    f"Half {half} of the samples has {answers} answers; {_FEWEST_ANSWERS} is the "
                    "least from which anything can be concluded. Give more samples or questions."
                )
        self._run, self._seed, self._progress = run, seed, progress
        self._done, self._total = 0, total
        self.trials: dict[tuple[PaceConfig, Half], Trial] = {}
        self._differences: dict[tuple[PaceConfig, Half], list[float]] = {}
        self._plain: dict[Half, tuple[float, ...]] = {}

    def read_plain(self, half: Half) -> None:
        """Measures the plain model, which the trials are compared with."""
        self.step(f"half {half}, plain")
        losses = self._run(self.halves[half], None).losses
        if not all(map(math.isfinite, losses)):
            raise ModelError(
                "The plain model gives answers a loss that is not finite, so nothing can be "
                "compared with it. Load it in float32 or bfloat16."
            )
        self._plain[half] = losses

    def step(self, text: str) -> None:
        """Says what begins."""
        if self._progress is not None:
            self._progress(self._done, self._total, text)
        self._done += 1

    def trial(self, config: PaceConfig, half: Half) -> Trial:
        """A setting on a half."""
        layers = "+".join(map(str, config.layers or ()))
        self.step(f"half {half}, layers {layers}, blend {config.blend}, window {config.window}")
        key = (config, half)
        if key not in self.trials:
            found = self._run(self.halves[half], config)
            pairs = zip(found.losses, self._plain[half], strict=True)
            self._differences[key] = [new - old for new, old in pairs]
            change = Change.of(self._differences[key], self._groups(half), self._seed)
            self.trials[key] = Trial(config, half, change, found.acted)
        return self.trials[key]

    def pooled(self, trials: Sequence[Trial]) -> Change:
        """The change over the answers of several trials together."""
        differences = [d for trial in trials for d in self._differences[trial.config, trial.half]]
        groups = [size for trial in trials for size in self._groups(trial.half)]
        return Change.of(differences, groups, self._seed)

    def _groups(self, half: Half) -> list[int]:
        return [len(sample.turns) for sample in self.halves[half]]


def _mean_change(trial: Trial) -> float:
    return trial.change.mean if math.isfinite(trial.change.mean) else math.inf


def _choose(
    search: _Search,
    half: Half,
    layers: Sequence[int],
    grid: Sequence[dict[str, Any]],
    best: int,
) -> PaceConfig | None:
    """The setting with the lowest loss on a half; None where plain is lower."""
    base = PaceConfig(**grid[0])
    single = [search.trial(replace(base, layers=(layer,)), half) for layer in layers]
    leading = sorted(single, key=_mean_change)[:best]
    at = sorted(layer for trial in leading for layer in trial.config.layers or ())
    pairs = [search.trial(replace(base, layers=pair), half) for pair in combinations(at, 2)]
    winner = min([*single, *pairs], key=_mean_change)
    varied = [search.trial(replace(winner.config, **values), half) for values in grid[1:]]
    winner = min([winner, *varied], key=_mean_change)
    return winner.config if _mean_change(winner) < 0 else None


def calibrate(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    *,
    layers: Sequence[int] | None = None,
    blends: Sequence[float] = (0.05, 0.2),
    windows: Sequence[int] = (256, 1024),
    thresholds: Sequence[tuple[float, float]] = ((0.7, 0.3), (0.5, 0.1)),
    best: int = 3,
    seed: int = 0,
    reading_window: int = 1024,
    progress: Callable[[int, int, str], None] | None = None,
    cancel: _CancelSignal | None = None,
) -> Calibration:
    """Searches settings that lower the loss of the answers, and keeps what it can defend.

    Each half of the samples chooses for itself: single layers first, with the first blend, window
    and thresholds; then pairs of the `best` ones; then every blend, window and thresholds with the
    layers that did best. What it chose is judged on the other half. Where both chose the same, it
    must lower the loss on either, with an interval below 0. Where they did not, the interval over
    both choices' out-of-half answers together must lie below 0, and that of the one given too.

    A bank changes what is read for all questions on a sample alike, so intervals draw samples
    again, and answers within them: many small samples defend a setting better than few large ones.

    Args:
        model: a causal language model without PaceLLM.
        samples: 2 or more, with 20 answers in each half; samples are never split.
        layers: those to try; None tries all.
        blends: shares of the looked-up activation to try.
        windows: tokens after which the bank is updated, to try.
        thresholds: (high, low) to try.
        best: how many of the single layers are paired.
        seed: of the split and of the intervals.
        reading_window: tokens per forward pass while reading; changes no result but by rounding.
        progress: called with the trials done, those in all, and the next in words.
        cancel: looked at before every document and question.

    Raises:
        ConfigurationError: too few samples, or values to try that can not work.
        ModelError: the model has PaceLLM attached, or can not take it.
        CancelledError: `cancel` was set.
    """
    networks = sorted(network.layer for network in find_feed_forwards(model))
    tried = (
        networks if layers is None else PaceConfig(layers=tuple(layers)).layers_of(len(networks))
    )
    grid: list[dict[str, Any]] = [
        {"blend": blend, "window": window, "high": high, "low": low}
        for blend, window, (high, low) in product(blends, windows, thresholds)
    ]
    if not tried or not grid or best < 1:
        raise ConfigurationError(
            "There is nothing to try; give at least one layer, blend, window and pair of "
            "thresholds, and best=1 or more."
        )
    for values in grid:
        PaceConfig(**values)  # refuses what can not work before hours of trials

    def run(chosen: Sequence[Sample], config: PaceConfig | None) -> Measured:
        return measure(model, chosen, config, window=reading_window, cancel=cancel)

    each = 1 + len(tried) + math.comb(min(best, len(tried)), 2) + len(grid) - 1 + 1
    search = _Search(run, samples, seed, 2 * each, progress)
    search.read_plain("A")
    search.read_plain("B")
    from_a = _choose(search, "A", tried, grid, best)
    from_b = _choose(search, "B", tried, grid, best)
    config: PaceConfig | None = None
    validation: tuple[Trial, ...] = ()
    evidence: Change | None = None
    if from_a is not None and from_b is not None:
        validation = (search.trial(from_a, "B"), search.trial(from_b, "A"))
        evidence = search.pooled(validation)
        surest = min(validation, key=lambda trial: trial.change.high)
        if from_a == from_b:
            if all(trial.change.high < 0 for trial in validation):
                config = from_a
        elif evidence.high < 0 and surest.change.high < 0:
            config, evidence = surest.config, surest.change
    if progress is not None:
        progress(2 * each, 2 * each, "")
    return Calibration(config, tuple(search.trials.values()), validation, evidence)
