"""Where output goes: answers to standard output, everything else to standard error.

Everything passes `clean`, since documents, file names and models may hold characters that a
terminal would obey. Progress is shown on standard error, only where that is a terminal. Knows
nothing of documents or models.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.text import Text

__all__ = ["Terminal", "clean"]

# Besides controls: characters that turn the reading direction and so can hide or forge text.
_REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_FORBIDDEN: dict[int, str | None] = {
    **{code: None for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"},
    **dict.fromkeys(map(ord, _REORDERING)),
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
    0x2028: "\n",
    0x2029: "\n",
}
for _kept in "\n\t":
    del _FORBIDDEN[ord(_kept)]


def clean(text: str) -> str:
    """The text without characters that a terminal obeys instead of showing."""
    return text.translate(_FORBIDDEN)


class Terminal:
    """The streams of one command.

    Attributes:
        quiet: leave out progress and notes.
        console: standard error, for progress.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def shows_progress(self) -> bool:
        """Whether somebody can see progress move."""
        return not self.quiet and sys.stderr.isatty() and not self.console.is_dumb_terminal

    def write(self, piece: str) -> None:
        """Puts a piece of an answer on standard output, at once."""
        click.echo(clean(piece), nl=False)

    def line(self, text: str = "") -> None:
        """Puts a line on standard output."""
        self.write(f"{text}\n")

    def note(self, text: str) -> None:
        """Says something useful on standard error, unless quiet."""
        if not self.quiet:
            self.plain(text, style="dim")

    def warning(self, text: str) -> None:
        """Warns on standard error."""
        self.plain(f"Warning: {text}", style="yellow")

    def error(self, text: str) -> None:
        """Says on standard error what went wrong."""
        self.plain(f"Error: {text}", style="red")

    def plain(self, text: str, style: str = "") -> None:
        """Puts lines on standard error, above a progress bar where there is one."""
        # only people want lines broken: whoever searches a file looks for whole ones
        broken = self.console.is_terminal
        self.console.print(Text(clean(text), style=style), soft_wrap=not broken)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows a spinner during work that can not tell how far it is."""
        if not self.shows_progress:
            yield
            return
        with self.console.status(Text(clean(what), style="dim"), spinner="dots"):
            yield

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """Gives a function that tells what is being done: in a spinner, else line by line."""
        if not self.shows_progress:
            yield self.note
            return
        with self.console.status("") as status:
            yield lambda what: status.update(Text(clean(what), style="dim"))

    @contextmanager
    def showing_log(self) -> Iterator[None]:
        """Shows the warnings that this package's modules log."""
        logger, handler = logging.getLogger("pacellm_rag"), _LogHandler(self)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _LogHandler(logging.Handler):
    """Passes warnings on to a terminal, each once."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows one."""
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            self._terminal.warning(message)
