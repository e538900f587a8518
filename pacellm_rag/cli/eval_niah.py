"""`pacellm-rag eval niah`: needles in a haystack."""

from __future__ import annotations

from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.reading_option import reading_option, with_readings
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.evaluation.haystack import BUILTIN
from pacellm_rag.evaluation.needle import NeedleSuite
from pacellm_rag.evaluation.needles import KINDS
from pacellm_rag.evaluation.ranges import parse_depths, parse_lengths

__all__ = ["niah"]

_HELP = """Hides made-up sentences at every depth of long texts and asks for them.

The score is the share of the hidden words, names and numbers in the answer. They are made up anew
for every cell, so no model knows them. A length is that of prompt and answer together, counted by
the model's tokenizer, and at most the model's window; 1k is 1,024 tokens. No data are needed: the
text is the documentation that comes with Python, or your own. Results have a heat map.

\b
  pacellm-rag eval niah --lengths 1k..8k:8 --depths 0:100:11
  pacellm-rag eval niah --lengths 32k --context-window 32768 --needles multikey --haystack book.txt
"""


@click.command(name="niah", help=_HELP, short_help="Needles in a haystack.")
@click.option("--lengths", default="1k..8k:8", show_default=True, metavar="LENGTHS",
              help="from..to:how many, or a list such as 1k,4k.")  # fmt: skip
@click.option("--depths", default="0:100:11", show_default=True, metavar="DEPTHS",
              help="Percent of the text before it: from:to:how many, or a list.")  # fmt: skip
@click.option("--needles", type=click.Choice(KINDS), default=KINDS[0], show_default=True,
              help="One sentence; four about four places, one of which is asked for; or four about "
              "one place, all of which are asked for.")  # fmt: skip
@click.option("--haystack", default=BUILTIN, show_default=True, metavar="PATH",
              help="A .txt or .txt.xz file or a folder of them. Documents in a file may be set "
              "apart by U+001E.")  # fmt: skip
@click.option("--trials", default=1, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Cells of each length and depth, with needles of their own.")  # fmt: skip
@click.option("--bare", is_flag=True,
              help="The prompt of the original test, not a document with pages.")  # fmt: skip
@reading_option
@evaluation_options
def niah(
    terminal: Terminal,
    evaluation: EvaluationOptions,
    lengths: str,
    depths: str,
    needles: str,
    haystack: str,
    trials: int,
    bare: bool,
    readings: tuple[str, ...],
) -> None:
    """Runs the suite; the command's help is `_HELP`."""
    evaluation, extra = with_readings(evaluation, readings)
    suite = NeedleSuite(
        parse_lengths(lengths),
        parse_depths(depths),
        needles=needles,
        haystack=None if haystack == BUILTIN else Path(haystack).expanduser(),
        trials=trials,
        bare=bare,
        extra_readings=extra,
        seed=evaluation.seed,
    )
    evaluate(suite, evaluation, terminal)
