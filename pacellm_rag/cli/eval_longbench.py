"""`pacellm-rag eval longbench`: LongBench v1 and v2 on the user's model.

Knows options and which suite they mean; how it is run is in `evaluating`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.longbench import LongBench, choose_tasks
from pacellm_rag.evaluation.longbench_v2 import LongBenchV2

__all__ = ["longbench"]

_HELP = """LongBench: questions, summaries and code on texts of 5 to 15 thousand words.

Version 1, its 14 English tasks: prompts, lengths of answers, what is cut out of long texts, and
scores are the official ones. With --v2: 503 questions with four choices, on texts of 8 thousand to
2 million words, answered without chain of thought and greedily (officially: drawn at temperature
0.1).

\b
The data are not part of this program; a folder with them is given as --data:
  hf download THUDM/LongBench data.zip --repo-type dataset --local-dir longbench
  hf download THUDM/LongBench-v2 data.json --repo-type dataset --local-dir longbench-v2
data.zip need not be unpacked. With --limit the tasks take turns.

\b
Tasks:
  single-doc     narrativeqa, qasper, multifieldqa_en
  multi-doc      hotpotqa, 2wikimqa, musique
  summarization  gov_report, qmsum, multi_news
  few-shot       trec, triviaqa, samsum
  code           lcc, repobench-p

\b
  pacellm-rag eval longbench --data longbench --tasks multi-doc --limit 60
  pacellm-rag eval longbench --data longbench-v2 --v2 --model ./my-model
"""


@click.command(help=_HELP, short_help="LongBench, versions 1 and 2.")
@click.option(
    "--data",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with the data, or the downloaded file.",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAME,NAME",
    help="Tasks or groups of tasks of version 1. [default: all]",
)
@click.option("--v2", is_flag=True, help="Version 2.")
@click.option(
    "--e",
    "even",
    is_flag=True,
    help="LongBench-E: as many short as long texts; without narrativeqa, musique and qmsum.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    metavar="N",
    help="Most tokens of a prompt, chat template aside; of longer ones the middle is left out. "
    "Official results have about 500 less than the model's window, such as 31500. [default: what "
    "the window takes beside chat template and answer]",
)
@click.option(
    "--newline-stop",
    is_flag=True,
    help="End answers to questions about documents at the first line break, as Activation "
    "Beacon's harness does. Not official, and worth many points.",
)
@click.option("--bare", is_flag=True, help="No chat template, for models that are no assistants.")
@evaluation_options
def longbench(
    data: Path,
    tasks: Sequence[str],
    v2: bool,
    even: bool,
    max_length: int | None,
    newline_stop: bool,
    bare: bool,
    evaluation: EvaluationOptions,
    terminal: Terminal,
) -> None:
    """Runs it; the command's help is `_HELP`."""
    suite: LongBench | LongBenchV2
    if v2:
        given = {"--tasks": tasks, "--e": even, "--newline-stop": newline_stop}
        foreign = [name for name, value in given.items() if value]
        if foreign:
            raise ConfigurationError(
                f"{', '.join(foreign)} belong to version 1 of LongBench; leave them out with --v2."
            )
        suite = LongBenchV2(data, max_length=max_length, bare=bare)
    else:
        names = [name.strip() for value in tasks for name in value.split(",")]
        chosen = choose_tasks(names or ["all"], even=even)
        suite = LongBench(
            data,
            chosen,
            even=even,
            max_length=max_length,
            newline_stop=newline_stop,
            bare=bare,
        )
    suite.check()
    if isinstance(suite, LongBench):
        evaluate(suite, evaluation, terminal)
    else:
        evaluate(suite, evaluation, terminal)
