"""The command itself: its commands, its exit codes, and what happens to errors and Ctrl-C.

Commands raise; only this module turns errors into messages and statuses. Knows no command's work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

from pacellm_rag import __version__
from pacellm_rag.cli.ask import ask
from pacellm_rag.cli.cache import cache
from pacellm_rag.cli.calibrate import calibrate
from pacellm_rag.cli.chat import chat
from pacellm_rag.cli.cluster import cluster
from pacellm_rag.cli.evaluate import evaluation
from pacellm_rag.cli.models import models
from pacellm_rag.cli.options import debug_option, wants_traceback
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import (
    CancelledError,
    ConfigurationError,
    ContextOverflowError,
    DocumentError,
    MissingDependencyError,
    ModelError,
    NoEffectError,
    PaceLLMError,
)

__all__ = ["main", "shell"]

UNEXPECTED, USAGE, DOCUMENT, OVERFLOW, MODEL, NO_EFFECT = 1, 2, 3, 4, 5, 6
INTERRUPTED, PIPE_CLOSED, TERMINATED = 130, 141, 143

_EXIT_CODES: tuple[tuple[type[PaceLLMError], int], ...] = (
    (ConfigurationError, USAGE),
    (DocumentError, DOCUMENT),
    (MissingDependencyError, DOCUMENT),  # a library that reads one kind of file
    (ContextOverflowError, OVERFLOW),
    (ModelError, MODEL),
    (NoEffectError, NO_EFFECT),
    (CancelledError, INTERRUPTED),
)
_HELP = """Ask local language models about whole documents.

The documents are read whole, once, in one long context; every answer names the pages that it
rests on. Nothing leaves this machine.

\b
  pacellm-rag models install
  pacellm-rag ask report.pdf contract.pdf -q "When does the contract end?"
  pacellm-rag chat report.pdf
"""
_EPILOG = """\b
Exit codes:
    0  done
    1  unexpected error
    2  wrong use: options, settings, no question
    3  a document can not be read
    4  the documents do not fit the model's context window
    5  the model can not be loaded, or is not installed
    6  an arm of an evaluation had no effect
  130  stopped with Ctrl-C
  141  the program that read the output has ended

\b
Settings are looked up in this order:
  1. options, such as --max-new-tokens 100
  2. environment variables, such as PACELLM_RAG_MAX_NEW_TOKENS=100
  3. the settings file, with lines such as max_new_tokens = 100: the one that
     PACELLM_RAG_CONFIG names, or pacellm-rag/config.toml in your folder of
     configurations
"""


class Shell(click.Group):
    """A group of commands that ends every error with a message and its own exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        terminal = ctx.obj = Terminal()
        try:
            with terminal.showing_log():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            ctx.exit(_end(ctx, terminal, error))


def _end(ctx: click.Context, terminal: Terminal, error: BaseException) -> int:
    """Says why a command ended early; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        terminal.note("Stopped.")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return PIPE_CLOSED
    return _report(ctx, terminal, error)


def _report(ctx: click.Context, terminal: Terminal, error: BaseException) -> int:
    """Says what went wrong; returns the exit code."""
    debug = wants_traceback(ctx)
    if debug:
        terminal.plain("".join(traceback.format_exception(error)))
    if isinstance(error, PaceLLMError):
        terminal.error(str(error))
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), UNEXPECTED)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        terminal.error(
            f"The memory is used up ({_first_line(error)}). Read fewer pages, lower --window, or "
            "take a smaller model, --dtype bfloat16 or another --device."
        )
        return MODEL
    hint = "" if debug else " This is a mistake in the program; --debug shows where."
    terminal.error(f"{type(error).__name__}: {_first_line(error)}{hint}")
    return UNEXPECTED


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _discard_output() -> None:
    """Lets Python flush at exit into nothing instead of into the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=Shell,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pacellm-rag")
@debug_option
def shell() -> None:
    """The command `pacellm-rag`; its help is `_HELP`."""


shell.add_command(ask)
shell.add_command(cache)
shell.add_command(calibrate)
shell.add_command(chat)
shell.add_command(cluster)
shell.add_command(evaluation)
shell.add_command(models)


def main() -> NoReturn:
    """Runs the command line of this process and ends it."""
    _prepare_process()
    try:
        shell.main(prog_name="pacellm-rag")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _prepare_process() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # replaced by something that is no text file
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to programmers
    # A plain death would leave the cursor hidden and the parser of documents running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
