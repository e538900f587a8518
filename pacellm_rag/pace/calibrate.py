"""Which settings of the memory banks lower the loss of known answers, if any do.

Settings are searched on one half of the samples and judged on the other, both ways round; only
what holds on samples that did not choose it is given. Knows tokens and decoders; knows nothing of
documents, templates or files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal

from transformers import PreTrainedModel

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.pace.answer_loss import CancelSignal, Measured, Sample, measure
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.paired_interval import Change

__all__ = ["Calibration", "Trial", "calibrate"]

Half = Literal["A", "B"]

_FEWEST_ANSWERS = 20  # of a half: a bootstrap of fewer is too sure of itself


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
    cancel: CancelSignal | None = None,
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
