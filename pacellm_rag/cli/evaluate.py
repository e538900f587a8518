"""`pacellm-rag eval`: the group of commands that measure what PaceLLM brings."""

from __future__ import annotations

import click

from pacellm_rag.cli.eval_harness import lm_eval
from pacellm_rag.cli.eval_infinitebench import infinitebench
from pacellm_rag.cli.eval_longbench import longbench
from pacellm_rag.cli.eval_mydocs import mydocs
from pacellm_rag.cli.eval_niah import niah
from pacellm_rag.cli.eval_packed import packed

__all__ = ["evaluation"]

_HELP = """Measures what PaceLLM brings: the same questions with it, without it, and with a placebo.

All arms run on the same weights, samples and machine, and every difference comes with its 95 %
interval. The placebo reorders neurons, which changes nothing but rounding: what it shows is noise.
Stopped runs go on where they were.

\b
  pacellm-rag eval mydocs --data questions.jsonl --files report.pdf
  pacellm-rag eval niah --lengths 1k..8k:8 --depths 0:100:11
"""


@click.group(name="eval", help=_HELP, short_help="Measure what PaceLLM brings.")
def evaluation() -> None:
    """The group; its help is `_HELP`."""


for _command in (mydocs, packed, niah, longbench, infinitebench, lm_eval):
    evaluation.add_command(_command)
