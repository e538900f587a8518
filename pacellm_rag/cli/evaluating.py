"""What the commands of `pacellm-rag eval` share: their options, and running a suite by them.

A command makes a suite from its own options and gives it to `evaluate`, which loads the model, runs
the arms, writes the results and says what they are. Loads no model before it knows that arms, data
and folder are as they should be.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pacellm_rag.cli import opening
from pacellm_rag.cli.evaluation_progress import EvaluationProgress
from pacellm_rag.cli.evaluation_table import summary_lines
from pacellm_rag.cli.options import ADAPTER_HELP, debug_option
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError, NoEffectError
from pacellm_rag.evaluation.arms import PACE, pace_settings, parse_arms, parse_setting
from pacellm_rag.evaluation.groups import take_groups
from pacellm_rag.evaluation.records import read_run
from pacellm_rag.evaluation.summarising import summarise
from pacellm_rag.evaluation.summary import Summary
from pacellm_rag.evaluation.types import Suite
from pacellm_rag.files import write_atomically
from pacellm_rag.models.default_model import DEFAULT_MODEL, default_adapter
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.settings import DTYPES, Settings, load_settings

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

__all__ = ["EvaluationOptions", "evaluate", "evaluation_options"]

SUMMARY_FILE = "summary.json"
DEFAULT_ARMS = "plain,pace,placebo"

SampleT = TypeVar("SampleT")


@dataclass(frozen=True)
class EvaluationOptions:
    """How a suite is to be run.

    Attributes:
        model: a folder, a .gguf file or an id of the model hub; None for the default model.
        adapter: what is laid on it; as in `Settings`.
        device: where to compute.
        dtype: what to compute in.
        context_window: most tokens, prompt and answer together; None for the model's own.
        window: tokens per forward pass while reading.
        arms: names, separated by commas, the baseline first.
        settings: further arms by name.
        limit: most samples, to the end of their group; None for all.
        seed: of all that is drawn.
        out: folder for the results; None for `eval/<suite>`.
        fresh: forget what that folder holds of a run.
    """

    model: str | None = None
    adapter: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    context_window: int | None = None
    window: int = 1024
    arms: str = DEFAULT_ARMS
    settings: Mapping[str, PaceConfig] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    out: Path | None = None
    fresh: bool = False

    @property
    def is_default_model(self) -> bool:
        """Whether the model is the default one, by name or for want of a name."""
        return self.model in (None, DEFAULT_MODEL)

    @property
    def adapter_in_words(self) -> str:
        """What is laid on the model, for people who read the results."""
        if self.adapter != "auto":
            return self.adapter
        own = self.is_default_model and default_adapter() is not None
        return "the default model's own" if own else "none"

    @property
    def model_settings(self) -> Settings:
        """The part that the model is opened with."""
        return Settings(
            model=None if self.is_default_model else self.model,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
            context_window=self.context_window,
            window=self.window,
            pace="off",
            store_gb=0.0,
        )


def _named_settings(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, PaceConfig]:
    found: dict[str, PaceConfig] = {}
    for value in values:
        name, settings = parse_setting(value)
        if name in found:
            raise ConfigurationError(f"The arm {name} is set twice; set every arm once.")
        found[name] = settings
    return found


_FROM_SETTINGS = ("model", "adapter", "device", "dtype", "context_window", "window")
_OPTIONS = (
    click.option("--model", metavar="NAME", help="Folder, .gguf file or hub id, if not the "
                 "default model."),
    click.option("--adapter", metavar="NAME", help=ADAPTER_HELP),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."),
    click.option("--dtype", type=click.Choice(DTYPES), help="Number type to compute in."),
    click.option("--context-window", type=int, metavar="N", help="Most tokens of prompt and answer "
                 "together, if not the model's own limit; more stretches its positions (YaRN)."),
    click.option("--window", type=int, metavar="N", help="Tokens read at once; fewer save memory."),
    click.option("--arms", default=DEFAULT_ARMS, show_default=True, metavar="NAME,NAME",
                 help="What to compare, on the same weights and samples; the first is what the "
                 "others are compared with. plain: no memory banks. pace: with the checkpoint's "
                 "settings of them, else those calibrated for the default model, else the "
                 "defaults. placebo: neurons permuted, mathematically nothing: what it changes is "
                 "noise. NAME@READING reads the text in another of the suite's ways."),
    click.option("--arm", "settings", multiple=True, metavar="NAME=SETTINGS",
                 callback=_named_settings, help="A further arm, by settings of the banks: JSON "
                 "such as '{\"window\": 256}', or a file with it, such as `calibrate --out` "
                 "writes. Can be given several times."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N "
                 "samples; those that share a text with the last of them too. A run without it "
                 "goes on from there."),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0),
                 help="Of all that is drawn."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
                 help="Where results go [default: eval/ and the suite's name]. A run that was "
                 "stopped goes on from what is there."),
    click.option("--fresh", is_flag=True, help="Forget what that folder holds of a run."),
)  # fmt: skip


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command these options, and calls it with `evaluation` and `terminal`."""

    @functools.wraps(command)
    @click.pass_obj
    def run(terminal: Terminal, /, **parameters: Any) -> Any:
        given = {name: parameters.pop(name) for name in _FROM_SETTINGS}
        settings = load_settings(given)
        terminal.quiet = settings.quiet
        evaluation = EvaluationOptions(
            **{name: getattr(settings, name) for name in _FROM_SETTINGS},
            **{name: parameters.pop(name) for name in ("arms", "settings", "limit", "seed", "out",
                                                       "fresh")},
        )  # fmt: skip
        return command(evaluation=evaluation, terminal=terminal, **parameters)

    for option in reversed(_OPTIONS):
        run = option(run)
    return debug_option(run)


def evaluate(suite: Suite[SampleT], evaluation: EvaluationOptions, terminal: Terminal) -> Summary:
    """Runs a suite, writes the results and prints them.

    What is done is summed up and written also when the run ends with Ctrl-C or an error, which
    then goes on to the caller.

    Returns:
        The summary, of a run that is complete.

    Raises:
        NoEffectError: an arm other than the placebo computed the same as the baseline, bit for
            bit. The results are written.
        ConfigurationError: arms, data or folder are not as needed.
        PaceLLMError: the model can not be loaded, or a sample failed.
    """
    readings = tuple(suite.readings)
    parse_arms(evaluation.arms, evaluation.settings, readings=readings)  # refuses before loading
    folder = Path("eval") / suite.name if evaluation.out is None else evaluation.out
    tokenizer = opening.open_tokenizer(evaluation.model_settings)
    with terminal.working(f"Making the samples of {suite.name}"):
        groups = take_groups(suite, tokenizer, evaluation.limit)
    loaded = _load(evaluation, terminal)
    from pacellm_rag.evaluation.runner import run
    from pacellm_rag.evaluation.surroundings import surroundings

    pace, source = pace_settings(loaded.module, is_default=evaluation.is_default_model)
    arms = parse_arms(evaluation.arms, evaluation.settings, pace=pace, readings=readings)
    notes: dict[str, Any] = surroundings()
    notes["adapter"] = evaluation.adapter_in_words
    if any(arm.name.partition("@")[0] == PACE for arm in arms):
        notes["pace"] = source
        terminal.note(f"Settings of the arm pace: {source}")
    samples = sum(len(group.samples) for group in groups)
    terminal.note(
        f"{samples:,} samples in {len(groups):,} groups under {len(arms)} "
        f"{'arm' if len(arms) == 1 else 'arms'}; results go to {folder}"
    )
    try:
        with EvaluationProgress(terminal) as progress:
            run(
                suite,
                groups,
                arms,
                loaded,
                folder,
                seed=evaluation.seed,
                fresh=evaluation.fresh,
                notes=notes,
                progress=progress,
            )
    except (KeyboardInterrupt, Exception) as error:
        _keep_part(folder, terminal, error)
        raise
    summary = _conclude(folder, terminal)
    if summary.without_effect:
        raise NoEffectError(
            f"{', '.join(summary.without_effect)} had no effect: not a bit of what "
            f"{summary.baseline.name} computes was changed, so nothing was compared. With prompts "
            "shorter than the window of the banks, or thresholds that nothing meets, they never "
            "act: ask for longer texts or other settings (--arm)."
        )
    return summary


def _load(evaluation: EvaluationOptions, terminal: Terminal) -> PaceModel:
    from pacellm_rag.models.model import PaceModel

    with terminal.working(f"Loading {evaluation.model or 'the default model'}"):
        loaded = opening.open_model(evaluation.model_settings)
    if not isinstance(loaded, PaceModel):
        raise ConfigurationError(
            f"{loaded.name} is no model with weights in this process, so no arm can be put on it."
        )
    return loaded


def _keep_part(folder: Path, terminal: Terminal, error: BaseException) -> None:
    """Sums up what is done, if anything is; what goes wrong with that is not what is told."""
    if isinstance(error, ConfigurationError):
        return  # the folder may hold another run
    try:
        _conclude(folder, terminal)
    except ConfigurationError:
        terminal.note("No group was finished; there are no results.")
        return
    except Exception as trouble:
        terminal.warning(f"What is done is kept, but could not be summed up: {trouble!r}")
        return
    terminal.note("What is done is kept: the same command goes on from there.")


def _conclude(folder: Path, terminal: Terminal) -> Summary:
    """Writes summary and reports, and prints the table."""
    from pacellm_rag.evaluation.report import write_report

    record = read_run(folder)
    summary = summarise(record)
    path = folder / SUMMARY_FILE
    text = json.dumps(summary.to_dict(), indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
    written = [path, *write_report(summary, record.outcomes(), folder)]
    for line in summary_lines(summary):
        terminal.line(line)
    terminal.note(f"Written to {folder}: {', '.join(each.name for each in written)}")
    return summary
