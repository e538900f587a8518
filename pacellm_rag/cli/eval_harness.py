"""`pacellm-rag eval lm-eval`: tasks of the lm-evaluation-harness on a model with PaceLLM."""

from __future__ import annotations

from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.default_model import DEFAULT_MODEL, default_model_folder

__all__ = ["lm_eval"]

_HELP = """Runs tasks of EleutherAI's lm-evaluation-harness.

It needs the extra: pip install 'pacellm-rag[eval]'. The harness makes prompts and scores; prompts
that do not fit lose their middle, not their beginning. Tasks that fetch data need the network once;
some of RULER's make their own.

\b
  pacellm-rag eval lm-eval --tasks niah_single_1,ruler_vt --length 4096 --limit 50
"""


@click.command(name="lm-eval", help=_HELP, short_help="Tasks of the lm-evaluation-harness.")
@click.option("--tasks", required=True, metavar="NAME,NAME", help="As the harness calls them.")
@click.option(
    "--include",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Your own task files.",
)
@click.option(
    "--length",
    metavar="N",
    type=click.IntRange(min=64),
    help="Tokens of tasks that make theirs by length. [default: the model's window]",
)
@click.option("--chat-template", is_flag=True, help="Put prompts into the model's chat template.")
@evaluation_options
def lm_eval(
    terminal: Terminal,
    evaluation: EvaluationOptions,
    tasks: str,
    include: Path | None,
    length: int | None,
    chat_template: bool,
) -> None:
    """Runs the tasks; the command's help is `_HELP`."""
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ConfigurationError("--tasks names no task; give one or more, such as ruler_vt.")
    from pacellm_rag.evaluation.harness import HarnessSuite

    model = evaluation.model
    folder = str(default_model_folder()) if model in (None, DEFAULT_MODEL) else model
    suite = HarnessSuite(
        names,
        include=include,
        max_length=length,
        tokenizer_path=folder,
        chat_template=chat_template,
        seed=evaluation.seed,
    )
    evaluate(suite, evaluation, terminal)
