"""`pacellm-rag eval packed`: known questions over several documents that are read together."""

from __future__ import annotations

from pathlib import Path

import click

from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.reading_option import reading_option, with_readings
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.evaluation.packed import PackedSuite

__all__ = ["packed"]

_HELP = """Asks known questions over documents that are packed from the pages of a data set.

It scores the answers' words (F1, exact match), the pages that they are cited to, and what the model
says where the documents hold no answer. Those questions are the data's own, or else ones about
pages of other titles, no accepted answer of which stands in the context. The data are questions
with their pages, such as those of SQuAD, HotpotQA or MuSiQue, which you download and write as
.jsonl or .jsonl.xz. Each line is one page, or one question over several documents:

\b
  {"source": "squad", "title": "...", "context": "...",
   "questions": [["...", ["answer", ...]], ["...", []]]}
  {"source": "hotpotqa", "paragraphs": [["title", "text", true], ...], "questions": [...]}

\b
  pacellm-rag eval packed --data qa.jsonl.xz --reading bm25:4 --reading window:1024
"""


def _pages(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    first, dots, last = value.partition("..")
    try:
        return int(first), int(last if dots else first)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no range such as 8..12, nor a number.") from error


@click.command(name="packed", help=_HELP, short_help="Known questions over packed documents.")
@click.option("--data", required=True, metavar="FILE", type=click.Path(path_type=Path),
              help="Questions and answers: .jsonl or .jsonl.xz.")  # fmt: skip
@click.option("--contexts", default=40, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Contexts to pack.")  # fmt: skip
@click.option("--pages", default="8..12", show_default=True, metavar="N..N", callback=_pages,
              help="Pages of each.")  # fmt: skip
@click.option("--document-pages", default=3, show_default=True, type=click.IntRange(min=1),
              metavar="N", help="Most pages of one title in a context.")  # fmt: skip
@click.option("--questions", default=12, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Most questions about each.")  # fmt: skip
@click.option("--unanswerable", default=0.2, show_default=True, metavar="SHARE",
              type=click.FloatRange(0, 1), help="Share of them without an answer.")  # fmt: skip
@click.option("--page-words", default=300, show_default=True, type=click.IntRange(min=1),
              metavar="N", help="Leave out pages with more words.")  # fmt: skip
@click.option("--source", metavar="NAME", help="Only lines whose source is this one.")
@click.option(
    "--untitled",
    is_flag=True,
    help="Take pages without a title too; their questions must say what they are about.",
)
@reading_option
@evaluation_options
def packed(
    terminal: Terminal,
    evaluation: EvaluationOptions,
    data: Path,
    contexts: int,
    pages: tuple[int, int],
    document_pages: int,
    questions: int,
    unanswerable: float,
    page_words: int,
    source: str | None,
    untitled: bool,
    readings: tuple[str, ...],
) -> None:
    """Runs the suite; the command's help is `_HELP`."""
    evaluation, extra = with_readings(evaluation, readings)
    suite = PackedSuite(
        data.expanduser(),
        contexts=contexts,
        pages=pages,
        document_pages=document_pages,
        questions=questions,
        unanswerable=unanswerable,
        most_words=page_words,
        source=source,
        untitled=untitled,
        extra_readings=extra,
        seed=evaluation.seed,
    )
    evaluate(suite, evaluation, terminal)
