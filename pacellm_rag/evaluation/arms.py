"""The arms of a run: the ways in which one set of weights is made to answer.

All arms share the weights in memory. What an arm puts on them (memory banks, permuted neurons) it
takes off again, bit for bit, also after an error. Parsing needs no torch; opening does. Knows
models; knows nothing of suites or files of results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.types import WHOLE
from pacellm_rag.pace.config import PaceConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pacellm_rag.models.model import PaceModel
    from pacellm_rag.pace.expert_map import ExpertMap

__all__ = [
    "PACE",
    "PLACEBO",
    "PLAIN",
    "Arm",
    "pace_settings",
    "parse_arms",
    "parse_setting",
    "placebo_experts",
]

PLAIN, PACE, PLACEBO = "plain", "pace", "placebo"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_EXPERTS = 64
_CLUSTERED = 50_000_000  # weights to cluster: some seconds, and a fraction of one for each unit


@dataclass(frozen=True)
class Arm:
    """One way of answering.

    Attributes:
        name: unique within a run.
        pace: settings of the memory banks to attach; None for none.
        placebo: permute neurons by Cortical Experts, which mathematically changes nothing: what
            this arm gains or loses is rounding and luck, the noise of the evaluation.
        reading: how the text is given; one of the suite's `readings`.
    """

    name: str
    pace: PaceConfig | None
    placebo: bool = False
    reading: str = WHOLE

    def to_dict(self) -> dict[str, Any]:
        """The arm as JSON can hold it."""
        pace = None if self.pace is None else self.pace.to_dict()
        return {
            "name": self.name,
            "pace": pace,
            "placebo": self.placebo,
            "reading": self.reading,
        }

    @contextmanager
    def opened(self, loaded: PaceModel, experts: ExpertMap | None = None) -> Iterator[PaceModel]:
        """A model of this arm, that has read nothing yet, on the weights of another.

        Args:
            loaded: the weights, with nothing attached.
            experts: of the placebo, as `placebo_experts` found them; None finds them.

        Raises:
            ModelError: the model can not take what the arm puts on it, or has banks already.
            ConfigurationError: the settings name layers that the model does not have.
        """
        from pacellm_rag.models.model import PaceModel
        from pacellm_rag.pace.clustering import apply_permutation, undo

        module = loaded.module
        with ExitStack() as leaving:
            if self.placebo:
                experts = placebo_experts(module) if experts is None else experts
                apply_permutation(module, experts)
                leaving.callback(undo, module, experts)
            model = PaceModel(module, loaded.tokenizer, window=loaded.window, pace=self.pace)
            if model.pace is not None:
                leaving.callback(model.pace.detach)
            # what was closed early may still be worked on for a token
            leaving.callback(lambda: model.engine.stop())
            yield model


def placebo_experts(module: nn.Module) -> ExpertMap:
    """The permutation of the placebo arm: of as many layers as can be clustered in seconds.

    They lie evenly over the depth. The rounding of a single one reaches every later token.

    Raises:
        ModelError: the neurons of this model can not be moved.
    """
    from pacellm_rag.pace.architectures import find_feed_forwards
    from pacellm_rag.pace.clustering import cluster_neurons
    from pacellm_rag.pace.expert_map import first_rows

    networks = find_feed_forwards(module)
    depth, each = len(networks), max(first_rows(networks[0]).numel(), 1)
    number = min(max(_CLUSTERED // each, 1), depth)
    layers = sorted({(2 * place + 1) * depth // (2 * number) for place in range(number)})
    experts = min(_EXPERTS, *(network.width for network in networks))
    return cluster_neurons(module, experts, layers=layers)


def pace_settings(module: PreTrainedModel, *, is_default: bool) -> tuple[PaceConfig, str]:
    """The settings of the arm `pace`, those of `load_model(pace="on")`, and where they come from.

    Args:
        module: the model.
        is_default: whether it is the default model.
    """
    from pacellm_rag.models.default_model import CALIBRATED_PACE
    from pacellm_rag.pace.attach import saved_config

    saved = saved_config(module)
    if saved is not None:
        return saved, "the settings that the checkpoint carries"
    if is_default:
        return PaceConfig.from_dict(CALIBRATED_PACE), "calibrated for the default model"
    return PaceConfig(), "the defaults of PaceLLM, not calibrated for this model"


def parse_arms(
    names: str,
    settings: Mapping[str, PaceConfig] | None = None,
    *,
    pace: PaceConfig | None = None,
    readings: Sequence[str] = (WHOLE,),
) -> tuple[Arm, ...]:
    """The arms of a list such as "plain,pace,placebo"; the first is the baseline.

    A name may be followed by a way of reading: "plain@top4". Named settings that the list leaves
    out come at its end.

    Args:
        names: separated by commas.
        settings: arms beside `plain`, `pace` and `placebo`, by name.
        pace: settings of the arm `pace`; None takes the defaults.
        readings: the suite's ways of reading.

    Raises:
        ConfigurationError: an unknown arm or reading, one that comes twice, no arm at all, or
            several without a plain one among them.
    """
    settings = settings or {}
    for name in settings:
        if name in (PLAIN, PACE, PLACEBO) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"A setting can not be named {name!r}; use letters, digits and _ . + -, and none "
                f"of {PLAIN}, {PACE} and {PLACEBO}."
            )
    listed = [name.strip() for name in names.split(",") if name.strip()]
    listed += [name for name in settings if all(n.partition("@")[0] != name for n in listed)]
    if not listed:
        raise ConfigurationError(f"There is no arm to run; name some, such as {PLAIN},{PACE}.")
    arms = tuple(_arm(name, settings, pace or PaceConfig(), readings) for name in listed)
    twice = next((arm.name for i, arm in enumerate(arms) if arm in arms[:i]), None)
    if twice is not None:
        raise ConfigurationError(f"The arm {twice} is there twice; name every arm once.")
    if len(arms) > 1 and all(arm.pace is not None or arm.placebo for arm in arms):
        raise ConfigurationError(
            f"Among several arms there must be {PLAIN}, so that it can be told what the others "
            f"change; the arms are {', '.join(arm.name for arm in arms)}."
        )
    return arms


def _arm(
    name: str, settings: Mapping[str, PaceConfig], pace: PaceConfig, readings: Sequence[str]
) -> Arm:
    way, at, reading = name.partition("@")
    known = {PLAIN: None, PACE: pace, PLACEBO: None, **settings}
    if way not in known:
        raise ConfigurationError(
            f"There is no arm {way!r}; known are {', '.join(known)}. Further ones are named with "
            "--arm NAME=SETTINGS."
        )
    if at and reading not in readings:
        raise ConfigurationError(
            f"The arm {name!r} asks for the reading {reading!r}; this suite knows "
            f"{', '.join(readings)}."
        )
    return Arm(name, known[way], placebo=way == PLACEBO, reading=reading or WHOLE)


def parse_setting(text: str) -> tuple[str, PaceConfig]:
    """An arm's name and settings, from "NAME=JSON" or "NAME=FILE".

    The JSON holds fields of `PaceConfig`; a file may be what `calibrate --out` wrote.

    Raises:
        ConfigurationError: it is neither, or holds settings that can not work.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise ConfigurationError(
            f"{text!r} names no arm; write NAME=SETTINGS, with JSON such as "
            "'wide={\"window\": 2048}' or a file that holds it."
        )
    content, place = value, f"The settings of the arm {name}"
    if not value.startswith("{"):
        place = f"The file {value} of the arm {name}"
        try:
            content = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{place} can not be read: {error}.") from error
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ConfigurationError(f"{place} is no JSON: {error}.") from error
    if isinstance(fields, dict) and "config" in fields:  # what `calibrate --out` wrote
        fields = fields["config"]
        if fields is None:
            raise ConfigurationError(
                f"{place} holds a calibration that found no setting better than plain; there is "
                "nothing to run."
            )
    if not isinstance(fields, dict):
        raise ConfigurationError(f'{place} holds no object with settings, such as {{"slots": 64}}.')
    try:
        return name, PaceConfig.from_dict(fields)
    except TypeError as error:
        raise ConfigurationError(f"{place} has a value of the wrong type: {error}.") from error
