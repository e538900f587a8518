"""`pacellm-rag eval mydocs`: your own documents and questions."""

from __future__ import annotations

from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.opening import open_documents
from pacellm_rag.cli.reading_option import reading_option, with_readings
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.mydocs import MyDocsSuite

__all__ = ["mydocs"]

_HELP = """Asks your own questions about your own documents, which are read together.

It scores the answers' words (F1, exact match), the pages that they are cited to, and what the model
says where the documents hold no answer. Each line of the questions is one:

\b
  {"question": "...", "answers": ["...", ...], "document": "report.pdf", "page": 3}
  {"question": "...", "answers": []}

The second is one that the documents do not answer. Document and page are needed for scoring
citations only, and the document only where there are several; "id" and "kind" name and sort
questions.

\b
  pacellm-rag eval mydocs --data questions.jsonl --files report.pdf contract.pdf
  pacellm-rag eval mydocs --data examples/questions.jsonl --files examples/documents/*.pdf
"""


@click.command(name="mydocs", help=_HELP, short_help="Your own documents and questions.")
@click.option("--data", required=True, metavar="FILE", type=click.Path(path_type=Path),
              help="The questions, .jsonl.")  # fmt: skip
@click.option("--files", multiple=True, metavar="FILE...", type=click.Path(),
              help="The documents, one or several.")  # fmt: skip
@click.argument("more", nargs=-1, metavar="", type=click.Path())
@click.option("--password", metavar="TEXT", envvar="PACELLM_RAG_PASSWORD",
              help="For encrypted PDFs. [variable: PACELLM_RAG_PASSWORD]")  # fmt: skip
@click.option("--per-reading", default=5, show_default=True, type=click.IntRange(min=1),
              metavar="N", help="Questions asked before the documents are read anew: the groups "
              "that intervals are drawn from, and what a stopped run does again.")  # fmt: skip
@reading_option
@evaluation_options
def mydocs(
    terminal: Terminal,
    evaluation: EvaluationOptions,
    data: Path,
    files: tuple[str, ...],
    more: tuple[str, ...],
    password: str | None,
    per_reading: int,
    readings: tuple[str, ...],
) -> None:
    """Runs the suite; the command's help is `_HELP`."""
    evaluation, extra = with_readings(evaluation, readings)
    named = [*files, *more]
    if not named:
        raise ConfigurationError("There is no document to ask about; name some with --files.")
    documents = open_documents(named, password, terminal)
    suite = MyDocsSuite(
        data.expanduser(),
        tuple(documents),
        per_reading=per_reading,
        extra_readings=extra,
    )
    evaluate(suite, evaluation, terminal)
