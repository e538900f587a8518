"""`pacellm-rag calibrate`: which settings of PaceLLM help a model, if any.

Known questions and answers over packed documents, laid out as `ask` does, are what it is measured
with. Most models are best left plain, and then it says so.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pacellm_rag.cli.opening import hush_libraries
from pacellm_rag.cli.options import adapter_option, debug_option
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.context.packing import PackedContext, pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.evaluation.qa_data import Row, draw_contexts, load_rows
from pacellm_rag.models.default_model import DEFAULT_MODEL, default_model_folder

if TYPE_CHECKING:
    from pacellm_rag.models.tokenizer import ChatTokenizer
    from pacellm_rag.pace.answer_loss import Sample
    from pacellm_rag.pace.calibrate import Calibration, Trial
    from pacellm_rag.pace.config import PaceConfig

__all__ = ["calibrate"]

_COUNT = click.IntRange(min=1)
_HELP = """Searches settings of PaceLLM that make known answers likelier to MODEL.

MODEL is a folder, a .gguf file or a hub id; without it, the default model. Settings are chosen on
one half of the contexts and judged on the other. They are given only where they lower the loss
beyond chance; where none does, PaceLLM is best left off. Documents are read again for every
setting, so this takes long.

\b
Each line of the data is one page:
  {"title": "...", "context": "...", "questions": [["...", ["answer", ...]], ...]}
"""


def _layers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list such as 0,4,12.") from error


@click.command(help=_HELP, short_help="Find the settings of PaceLLM that help a model.")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Questions and answers: .jsonl or .jsonl.xz.",
)
@click.option("--source", metavar="NAME", help="Only lines whose source is this one.")
@click.option("--contexts", default=10, show_default=True, type=_COUNT, help="Packed contexts.")
@click.option("--pages", default=8, show_default=True, type=_COUNT, help="Of each context.")
@click.option("--questions", default=10, show_default=True, type=_COUNT, help="On each context.")
@click.option(
    "--layers", metavar="N,N", callback=_layers, help="Layers to try, from 0, if not all."
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the settings and the table there, as JSON.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of all that is drawn."
)
@adapter_option
@debug_option
@click.pass_obj
def calibrate(
    terminal: Terminal,
    model: str | None,
    data: Path,
    source: str | None,
    contexts: int,
    pages: int,
    questions: int,
    layers: tuple[int, ...] | None,
    out: Path | None,
    seed: int,
    adapter: str | None,
) -> None:
    """Runs the search; the command's help is `_HELP`."""
    rows = load_rows(data, source=source)
    drawn = _draw(rows, contexts, pages, questions, random.Random(seed))
    if out is not None and not out.parent.is_dir():
        raise ConfigurationError(f"There is no folder {out.parent} to write {out.name} to.")
    name = None if model == DEFAULT_MODEL else model
    if name is None:
        default_model_folder()  # refuses before the libraries load, which takes seconds
    hush_libraries()
    from pacellm_rag.models.loading import load_model
    from pacellm_rag.pace.calibrate import calibrate as search

    with terminal.working(f"Loading {name or 'the default model'}"):
        loaded = load_model(name, adapter=adapter, pace=None)
    samples = [_sample(loaded.tokenizer, packed, asked) for packed, asked in drawn]
    answers = sum(len(sample.turns) for sample in samples)
    tokens = sum(len(sample.prefix) for sample in samples)
    terminal.note(f"{len(samples)} contexts of {tokens:,} tokens in all, {answers} answers")
    with terminal.steps() as say:
        found = search(
            loaded.module,
            samples,
            layers=layers,
            seed=seed,
            reading_window=loaded.window,
            progress=_teller(say, each_trial=terminal.shows_progress),
        )
    for line in _table(found):
        terminal.line(line)
    terminal.line()
    terminal.line(_verdict(found))
    if out is not None:
        result = found.to_dict() | {
            "model": loaded.name,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "contexts": len(samples),
            "answers": answers,
            "tokens": tokens,
            "seed": seed,
        }
        _write(out, result)
        terminal.note(f"Written to {out}")


def _draw(
    rows: Sequence[Row], contexts: int, pages: int, questions: int, rng: random.Random
) -> list[tuple[PackedContext, list[tuple[str, str]]]]:
    """Packs pages of the same title as documents, and draws questions with their first answers."""
    drawn: list[tuple[PackedContext, list[tuple[str, str]]]] = []
    for context in draw_contexts(rows, [pages] * contexts, rng):
        pool = [(q.text, q.answers[0]) for placed in context.rows for q in placed.row.answerable]
        asked = rng.sample(pool, min(questions, len(pool)))
        drawn.append((pack_context(context.documents), asked))
    return drawn


def _sample(
    tokenizer: ChatTokenizer, packed: PackedContext, asked: Sequence[tuple[str, str]]
) -> Sample:
    """The prompts of `ask`, cut where the questions begin, and the answers as tokens."""
    from pacellm_rag.models.head_probe import shared_prefix_length
    from pacellm_rag.pace.answer_loss import Sample

    def encode(question: str) -> tuple[int, ...]:
        return tokenizer.encode_messages(build_messages(packed, question)).token_ids

    prompts = [encode(question) for question, _ in asked]
    shared = shared_prefix_length([encode("A"), encode("9?"), *prompts])
    blank = "" if tokenizer.hf.chat_template else " "  # as the plain template writes answers
    turns = []
    for prompt, (_, answer) in zip(prompts, asked, strict=True):
        said = tokenizer.hf(blank + answer.strip(), add_special_tokens=False)["input_ids"]
        needed = len(prompt) + len(said)
        if needed > tokenizer.context_window:
            raise ContextOverflowError(
                f"A context with its question and answer has {needed:,} tokens; {tokenizer.name} "
                f"takes {tokenizer.context_window:,}. Lower --pages, or choose a --source of "
                "shorter pages.",
                needed_tokens=needed,
                available_tokens=tokenizer.context_window,
            )
        turns.append((prompt[shared:], tuple(said)))
    return Sample(prompts[0][:shared], tuple(turns))


def _teller(say: Callable[[str], None], *, each_trial: bool) -> Callable[[int, int, str], None]:
    """Tells how many trials there are, and which one runs where somebody watches."""
    began = time.monotonic()

    def tell(done: int, total: int, text: str) -> None:
        if done == 0:
            say(f"{total} trials; each reads half of the contexts")
        elif each_trial and text:
            minutes = (time.monotonic() - began) / done * (total - done) / 60
            say(f"Trial {done + 1} of {total}: {text}; about {minutes:.0f} min left")

    return tell


_HEAD = ("half", "layers", "blend", "window", "high", "low", "answers", "change", "95 % interval",
         "acted")  # fmt: skip


def _table(found: Calibration) -> Iterator[str]:
    yield "Change of the answers' loss against plain, in nats; below 0 is better."
    yield from _aligned(found.trials)
    if found.validation:
        yield ""
        yield "What each half chose, on the other half:"
        yield from _aligned(found.validation)


def _aligned(trials: Sequence[Trial]) -> Iterator[str]:
    lines = [_HEAD, *map(_cells, trials)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded)


def _cells(trial: Trial) -> tuple[str, ...]:
    config, change = trial.config, trial.change
    return (
        trial.half,
        ",".join(map(str, config.layers or ())),
        f"{config.blend:g}",
        str(config.window),
        f"{config.high:g}",
        f"{config.low:g}",
        str(change.n),
        f"{change.mean:+.4f}",
        f"{change.low:+.4f} {change.high:+.4f}",
        f"{trial.acted:.0%}",
    )


def _verdict(found: Calibration) -> str:
    if found.config is None or found.evidence is None:
        return (
            f"None of {found.settings} settings lowers the loss of the answers beyond chance; "
            "PaceLLM stays off."
        )
    change = found.evidence
    return (
        f"{_words(found.config)} lower the loss of answers that did not choose them by "
        f"{-change.mean:.4f} nats (95 % interval {-change.high:.4f} to {-change.low:.4f}, "
        f"{change.n} answers, {found.settings} settings tried)."
    )


def _words(config: PaceConfig) -> str:
    layers = " and ".join(map(str, config.layers or ()))
    return (
        f"Layers {layers}, blend {config.blend:g}, window {config.window}, thresholds "
        f"{config.high:g} and {config.low:g}"
    )


def _write(out: Path, result: dict[str, Any]) -> None:
    try:
        out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"The result could not be written to {out}: {error}. Name a file in a folder that "
            "can be written to."
        ) from error
