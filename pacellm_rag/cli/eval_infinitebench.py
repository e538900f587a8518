"""`pacellm-rag eval infinitebench`: InfiniteBench, or three of its tasks at any length.

Knows options and which suite they mean; how it is run is in `evaluating`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench import InfiniteBench
from pacellm_rag.evaluation.infinitebench_prompts import CHAT, PROMPTS
from pacellm_rag.evaluation.infinitebench_tasks import parse_tasks
from pacellm_rag.evaluation.ranges import parse_depths, parse_lengths
from pacellm_rag.evaluation.synthetic import SyntheticBench, parse_kinds

__all__ = ["infinitebench"]

_HELP = """InfiniteBench: books, scripts, code and numbers of 100 thousand tokens and more.

Prompts, lengths of answers, what is cut out of texts that do not fit the window, and scores are the
official ones. The data are not part of this program; a folder with them is given as --data:

\b
  hf download xinrongzhang2022/InfiniteBench --repo-type dataset --local-dir infinitebench

\b
Tasks:
  books      en.sum, en.qa, en.mc, zh.qa
  scripts    en.dia
  code       code.debug, code.run
  numbers    math.find, math.calc
  retrieval  passkey, number, kv

With --synthetic, texts for passkey, number and kv are made here, of lengths that a small model
takes; they need no data.

\b
  pacellm-rag eval infinitebench --data infinitebench --tasks en.mc,en.dia
  pacellm-rag eval infinitebench --synthetic passkey,number,kv --lengths 1k..8k:4 --samples 5
"""


@click.command(help=_HELP, short_help="InfiniteBench, and retrieval at any length.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with a file NAME.jsonl for every task.",
)
@click.option("--tasks", metavar="NAME,NAME", help="Tasks of the data. [default: all]")
@click.option("--synthetic", metavar="NAME,NAME", help="Make texts instead: passkey,number,kv.")
@click.option(
    "--lengths",
    metavar="RANGE",
    help="Tokens of the texts that are made, prompt and answer together: from..to:count, or some "
    "with commas between them; 1k is 1,024. [default: 1k..8k:4]",
)
@click.option(
    "--depths",
    metavar="RANGE",
    help="Where in them the answer stands, in percent: from:to:count, or some with commas between "
    "them. [default: 0:100:5]",
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=1),
    help="Texts for each task, length and depth. [default: 1]",
)
@click.option(
    "--prompts",
    default=CHAT,
    show_default=True,
    type=click.Choice(list(PROMPTS)),
    help="gpt4: in the chat template. yarn_mistral: bare text, for models that are no assistants.",
)
@click.option(
    "--max-length",
    metavar="N",
    type=click.IntRange(min=2),
    help="Most tokens of a prompt, chat template aside; of longer ones the middle is left out. "
    "[default: what the window takes beside chat template and answer]",
)
@click.option(
    "--answer-tokens",
    metavar="N",
    type=click.IntRange(min=1),
    help="Let all answers have N tokens at least. The official numbers (6 for a passkey, 5 for "
    "code) are meant for the prompts yarn_mistral; GPT-4 had no limit. Texts that are made have 96 "
    "with the prompts gpt4.",
)
@evaluation_options
def infinitebench(
    data: Path | None,
    tasks: str | None,
    synthetic: str | None,
    lengths: str | None,
    depths: str | None,
    samples: int | None,
    prompts: str,
    max_length: int | None,
    answer_tokens: int | None,
    evaluation: EvaluationOptions,
    terminal: Terminal,
) -> None:
    """Runs it; the command's help is `_HELP`."""
    if synthetic is not None:
        of_data = {"--data": data, "--tasks": tasks, "--max-length": max_length}
        _refuse(of_data, "about the data set; leave it out with --synthetic")
        made = SyntheticBench(
            parse_kinds(synthetic),
            parse_lengths(lengths or "1k..8k:4"),
            parse_depths(depths or "0:100:5"),
            samples=samples or 1,
            seed=evaluation.seed,
            prompts=prompts,
            answer_tokens=answer_tokens or 0,
        )
        evaluate(made, evaluation, terminal)
        return
    of_texts = {"--lengths": lengths, "--depths": depths, "--samples": samples}
    _refuse(of_texts, "about texts that are made; give --synthetic with it")
    if data is None:
        raise ConfigurationError(
            "There is nothing to ask: give --data with the folder of InfiniteBench, or --synthetic "
            "passkey,number,kv for texts that are made here."
        )
    suite = InfiniteBench(
        data,
        parse_tasks(tasks or "all"),
        prompts=prompts,
        max_length=max_length,
        answer_tokens=answer_tokens or 0,
    )
    suite.check()
    evaluate(suite, evaluation, terminal)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuses options that are given where they would mean nothing."""
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{name} is {why}.")
