"""Runs a suite: every group under every arm, on one set of weights, and goes on after a kill.

A unit is one group under one arm. It begins with a model that has read nothing, so what comes out
depends on nothing that ran before, in this process or in one that was killed. Groups come one
after the other and the arms take turns at being the first of a group, so that a machine that gets
slower by and by does not count against one of them. Decoding is the suite's to choose and greedy
in all of ours; the random state is set anew for each unit. Knows models and suites as such; knows
no benchmark.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pacellm_rag import __version__
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.arms import Arm, placebo_experts
from pacellm_rag.evaluation.records import RunFolder, UnitRecord
from pacellm_rag.evaluation.types import Group, Outcome, Suite
from pacellm_rag.evaluation.watching import watch_banks, watch_logits, watch_memory
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.pace.expert_map import ExpertMap
from pacellm_rag.protocols import CancelSignal, GenerationOptions

__all__ = ["RunProgress", "identity_of", "run"]

_WARM_UP = "One two three four five six seven eight nine ten. " * 8

SampleT = TypeVar("SampleT")


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come.

    Attributes:
        done: samples answered, of all arms together, those of earlier runs included.
        total: samples to answer, of all arms together.
        arm: the arm at work.
        seconds_left: estimate from the samples of this process; None before the first.
    """

    done: int
    total: int
    arm: str
    seconds_left: float | None


def run(
    suite: Suite[SampleT],
    groups: Sequence[Group[SampleT]],
    arms: Sequence[Arm],
    loaded: PaceModel,
    folder: Path,
    *,
    seed: int = 0,
    fresh: bool = False,
    notes: Mapping[str, Any] | None = None,
    progress: Callable[[RunProgress], None] | None = None,
    cancel: CancelSignal | None = None,
) -> None:
    """Answers what is not answered yet; `read_run(folder)` has the results, also of a part.

    Args:
        suite: what to ask.
        groups: the suite's, for this tokenizer, or the first of them; each id once.
        arms: the baseline first.
        loaded: the weights, with nothing attached, and the tokenizer.
        folder: where results go; one that holds a part of the same run is gone on with.
        seed: of torch's random state in each unit.
        fresh: forget what the folder holds of a run.
        notes: where and when it runs, for `run.json`.
        progress: called before the first sample and after each.
        cancel: passed on to the suite.

    Raises:
        ConfigurationError: the folder holds another run, or suite and arms do not go together.
        ModelError: an arm can not be put on the model.
        PaceLLMError: a unit failed; what was done before it is kept.
    """
    if loaded.pace is not None:
        raise ConfigurationError(
            "The model has memory banks attached; load it plain (pace=None), as arms attach their "
            "own."
        )
    for arm in arms:
        if arm.reading not in suite.readings:
            raise ConfigurationError(
                f"The arm {arm.name} reads as {arm.reading!r}; {suite.name} knows "
                f"{', '.join(suite.readings)}."
            )
    identity = identity_of(suite, arms, loaded, seed)
    ids = [group.id for group in groups]
    with RunFolder.opened(folder, identity, ids, notes=notes, fresh=fresh) as written:
        clock = _Clock(groups, arms, written, progress)
        if not clock.units_left:
            return
        experts = placebo_experts(loaded.module) if any(arm.placebo for arm in arms) else None
        _warm_up(loaded)
        with _quick_collection():
            for number, group in enumerate(groups):
                first = number % len(arms)
                for arm in (*arms[first:], *arms[:first]):
                    if (arm.name, group.id) in written.done:
                        continue
                    clock.begin(arm)
                    written.close_unit(
                        _run_unit(suite, group, arm, loaded, experts, seed, written, clock, cancel)
                    )
                    gc.collect()  # keys and values, which are held in circles
                    if loaded.device.type == "cuda":
                        torch.cuda.empty_cache()


def identity_of(
    suite: Suite[SampleT], arms: Sequence[Arm], loaded: PaceModel, seed: int
) -> dict[str, Any]:
    """All that the results of a run depend on, as JSON can hold it."""
    device = loaded.device.type
    if device == "cuda":
        device = f"cuda ({torch.cuda.get_device_name(loaded.device)})"
    identity = {
        "suite": suite.name,
        "metric": suite.metric,
        "settings": dict(suite.settings),
        "arms": [arm.to_dict() for arm in arms],
        "model": loaded.name,
        "weights": weights_fingerprint(loaded.module),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": device,
        "context_window": loaded.context_window,
        "window": loaded.window,
        "seed": seed,
        "version": __version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


class _Clock:
    """Counts samples and tells how long the others will take."""

    def __init__(
        self,
        groups: Sequence[Group[Any]],
        arms: Sequence[Arm],
        written: RunFolder,
        progress: Callable[[RunProgress], None] | None,
    ) -> None:
        left = {
            (arm.name, group.id): len(group.samples)
            for group in groups
            for arm in arms
            if (arm.name, group.id) not in written.done
        }
        self.units_left = len(left)
        self._total = len(arms) * sum(len(group.samples) for group in groups)
        self._done = self._total - sum(left.values())
        self._answered = 0
        self._seconds = 0.0
        self._arm = arms[0].name
        self._progress = progress
        self._tell()

    def begin(self, arm: Arm) -> None:
        """An arm is at work now."""
        self._arm = arm.name
        self._tell()

    def answered(self, seconds: float) -> None:
        """A sample is answered."""
        self._answered += 1
        self._done += 1
        self._seconds += seconds
        self._tell()

    def _tell(self) -> None:
        if self._progress is None:
            return
        left = None
        if self._answered:
            left = self._seconds / self._answered * max(self._total - self._done, 0)
        self._progress(RunProgress(self._done, self._total, self._arm, left))


@contextmanager
def _quick_collection() -> Iterator[None]:
    """Lets garbage collection pass over all that is there already: half a second for each unit."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _warm_up(loaded: PaceModel) -> None:
    """A few tokens, so that what libraries do once is not counted against the first unit."""
    model = PaceModel(loaded.module, loaded.tokenizer, window=loaded.window)
    ids = loaded.tokenizer.encode_text(_WARM_UP).token_ids[: max(loaded.context_window - 2, 1)]
    try:
        "".join(model.stream(ids, GenerationOptions(max_new_tokens=2)))
    finally:
        model.engine.stop()


def _run_unit(
    suite: Suite[SampleT],
    group: Group[SampleT],
    arm: Arm,
    loaded: PaceModel,
    experts: ExpertMap | None,
    seed: int,
    written: RunFolder,
    clock: _Clock,
    cancel: CancelSignal | None,
) -> UnitRecord:
    torch.manual_seed(seed)
    outcomes: list[Outcome] = []
    seconds = 0.0
    with arm.opened(loaded, experts) as model:
        decoder = model.engine.runner.decoder
        model.engine.call(lambda: decoder.attends)  # a probe of its own, with logits
        with (
            watch_logits(loaded.module) as digest,
            watch_banks(model.pace) as effect,
            watch_memory(loaded.device) as memory,
        ):
            answers = iter(suite.answer(model, group, reading=arm.reading, cancel=cancel))
            while True:
                began = time.perf_counter()
                outcome = next(answers, None)
                passed = time.perf_counter() - began
                seconds += passed
                if outcome is None:
                    break
                if any(outcome.sample == other.sample for other in outcomes):
                    raise ConfigurationError(
                        f"{suite.name} answered the sample {outcome.sample!r} twice in the group "
                        f"{group.id!r}; give every sample an id of its own."
                    )
                outcomes.append(outcome)
                written.add(arm.name, group.id, outcome)
                clock.answered(passed)
        banks = _banks_of(model)
    tokens = sum(o.prompt_tokens - o.tokens_reused + o.completion_tokens for o in outcomes)
    return UnitRecord(
        arm=arm.name,
        group=group.id,
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        peak_bytes=memory.peak,
        added_bytes=memory.added,
        banks=banks,
        acted=None if arm.pace is None else effect.acted,
        logits=digest.value,
        outcomes=tuple(outcomes),
    )


def _banks_of(model: PaceModel) -> dict[str, dict[str, float]]:
    """What the banks did for the newest sequence, by layer."""
    if model.pace is None:
        return {}
    log = logging.getLogger("pacellm_rag.pace.attach")
    log.addFilter(_silent)  # that banks did nothing is for the summary to say, once
    try:
        stats = model.pace.stats()
    finally:
        log.removeFilter(_silent)
    return {str(layer): asdict(each) for layer, each in stats.items()}


def _silent(_: logging.LogRecord) -> bool:
    return False
