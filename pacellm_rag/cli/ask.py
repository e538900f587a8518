"""`pacellm-rag ask`: questions from the command line or a pipe, answered one after the other."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from pacellm_rag.cli.answering import answer_json, describe_receipt, print_answer
from pacellm_rag.cli.opening import count, open_documents, open_reader
from pacellm_rag.cli.options import document_options, setting_options
from pacellm_rag.cli.terminal import Terminal, clean
from pacellm_rag.context.planning import Plan
from pacellm_rag.settings import Settings

__all__ = ["ask"]

_DOES_NOT_FIT = 4


@click.command(short_help="Answer questions about documents.")
@document_options
@click.option(
    "-q",
    "--question",
    "questions",
    multiple=True,
    metavar="TEXT",
    help="What to ask; repeat it for more questions. Without it, questions are read from standard "
    "input, one a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per question.")
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Only count the tokens of each document and tell whether they fit; loads no weights.",
)
@setting_options
def ask(
    settings: Settings,
    terminal: Terminal,
    files: tuple[str, ...],
    password: str | None,
    questions: tuple[str, ...],
    as_json: bool,
    plan_only: bool,
) -> None:
    """Answers questions about FILEs: PDF, Word, HTML, Markdown or plain text.

    The files are read whole, once, then every question is answered from what was read. Answers
    and their sources go to standard output, everything else to standard error.
    """
    questions = tuple(map(clean, questions))
    if plan_only:
        _print_plans(files, password, questions or ("",), settings, terminal, as_json)
        return
    pending = _pending_questions(questions)
    documents = open_documents(files, password, terminal)
    first = next(pending)
    reader = open_reader(documents, questions or (first,), settings, terminal)
    for number, question in enumerate(itertools.chain((first,), pending)):
        if as_json:
            with terminal.working("Answering"):
                answer = reader.ask(question, cite=settings.citations)
            terminal.line(answer_json(answer, reader))
            continue
        if number:
            terminal.line()
        if len(questions) != 1:
            terminal.line(f"Question: {' '.join(question.split())}")
        print_answer(reader, question, settings, terminal)
    if reader.receipt is not None:
        terminal.note(describe_receipt(reader.receipt))


def _pending_questions(questions: Sequence[str]) -> Iterator[str]:
    """The questions to answer, at least one; those of a pipe as they come.

    Raises:
        UsageError: there is none.
    """
    if questions:
        if not all(question.strip() for question in questions):
            raise click.UsageError("A question (-q) is empty.")
        return iter(questions)
    if sys.stdin.isatty():
        raise click.UsageError('Ask something: -q "...", or questions on standard input.')
    lines = (clean(line).strip() for line in sys.stdin)
    piped = (line for line in lines if line)
    first = next(piped, None)
    if first is None:
        raise click.UsageError('There is no question: neither -q "..." nor on standard input.')
    return itertools.chain((first,), piped)


def _print_plans(
    files: Sequence[str],
    password: str | None,
    questions: Sequence[str],
    settings: Settings,
    terminal: Terminal,
    as_json: bool,
) -> None:
    documents = open_documents(files, password, terminal)
    plans = count(documents, questions, settings, terminal)
    for question, plan in zip(questions, plans, strict=True):
        terminal.line(_plan_json(question, plan) if as_json else _describe_plan(question, plan))
    if not all(plan.fits for plan in plans):
        click.get_current_context().exit(_DOES_NOT_FIT)


def _plan_json(question: str, plan: Plan) -> str:
    derived = ("prompt_tokens", "needed_tokens", "left_tokens", "fits")
    values = {name: getattr(plan, name) for name in derived}
    return json.dumps({"question": question, **asdict(plan), **values})


def _describe_plan(question: str, plan: Plan) -> str:
    rows = [
        (document.tokens, f"{' '.join(document.title.split())} (pages: {document.pages})")
        for document in plan.documents
    ]
    rows.append((plan.other_tokens, "instructions and question"))
    rows.append((plan.answer_tokens, "kept for the answer (--max-new-tokens)"))
    lines = [f"Question: {' '.join(question.split())}"] if question else []
    lines += [f"{tokens:>12,}  {what}" for tokens, what in rows]
    lines.append(f"{plan.needed_tokens:>12,}  of {plan.context_window:,} tokens of {plan.model}")
    if plan.fits:
        lines.append(f"Fits: {plan.left_tokens:,} tokens stay free.")
    else:
        lines.append(f"Does not fit: {-plan.left_tokens:,} tokens too many.")
    return "\n".join(lines)
