"""`pacellm-rag chat`: a conversation about documents that are read once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from pacellm_rag.answer import Answer
from pacellm_rag.cli.answering import describe_citation, describe_receipt, print_answer
from pacellm_rag.cli.opening import open_documents, open_reader
from pacellm_rag.cli.options import document_options, setting_options
from pacellm_rag.cli.terminal import Terminal, clean
from pacellm_rag.errors import PaceLLMError
from pacellm_rag.protocols import Message
from pacellm_rag.reader import DocumentReader
from pacellm_rag.settings import Settings

__all__ = ["chat"]

_PROMPT = "> "
_HELP = """\
Ask anything about the documents; earlier questions and answers are remembered.
  /new      forget the conversation, keep the documents
  /sources  show where the last answer comes from, and the documents
  /help     show this
  /quit     leave (also Ctrl-D, or Ctrl-C on an empty line)
Ctrl-C stops an answer that is being written; it is then forgotten."""


@click.command(short_help="Talk about documents.")
@document_options
@setting_options
def chat(
    settings: Settings, terminal: Terminal, files: tuple[str, ...], password: str | None
) -> None:
    """Talks about FILEs: PDF, Word, HTML, Markdown or plain text.

    The files are read whole, once. Type /help in the conversation for its commands.
    """
    documents = open_documents(files, password, terminal)
    reader = open_reader(documents, (), settings, terminal)
    if reader.receipt is not None:
        terminal.note(describe_receipt(reader.receipt))
    terminal.note("Ask something; /help shows the commands.")
    conversation = _Conversation(reader, settings, terminal)
    for line in _typed_lines(terminal):
        if not conversation.take(line):
            return


class _Conversation:
    """What was said so far, and what to do with the next line."""

    def __init__(self, reader: DocumentReader, settings: Settings, terminal: Terminal) -> None:
        self._reader = reader
        self._settings = settings
        self._terminal = terminal
        self._history: list[Message] = []
        self._last: Answer | None = None

    def take(self, line: str) -> bool:
        """Answers a line or obeys it; False ends the conversation."""
        command = line.lower()
        if command in ("/quit", "/exit"):
            return False
        if command == "/new":
            self._history, self._last = [], None
            self._terminal.note("The conversation is forgotten; the documents are not.")
        elif command == "/sources":
            self._show_sources()
        elif command == "/help":
            self._terminal.line(_HELP)
        elif line.startswith("/"):
            self._terminal.warning(f"There is no command {line.split()[0]}; /help shows them.")
        else:
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        try:
            answer, words = print_answer(
                self._reader, question, self._settings, self._terminal, self._history
            )
        except KeyboardInterrupt:
            self._terminal.note("Stopped.")
            return
        except PaceLLMError as error:
            hint = " /new forgets the conversation, which makes room." if self._history else ""
            self._terminal.error(f"{error}{hint}")
            return
        self._last = answer
        self._history += [Message("user", question), Message("assistant", words)]

    def _show_sources(self) -> None:
        terminal = self._terminal
        if self._last is not None:
            for number, citation in enumerate(self._last.citations, 1):
                terminal.line(describe_citation(number, citation))
                found = {"model": "the model's own words", "attention": "what the model looked at"}
                why = found.get(citation.source, "the words shared")
                terminal.line(f"    found by {why}; {citation.score:.0%} of the evidence")
            if not self._last.citations:
                terminal.line("The last answer has no sources.")
        terminal.line("Documents:")
        for document in self._reader.documents:
            terminal.line(f"  {document.title} (pages: {len(document.pages)}) {document.source}")


def _typed_lines(terminal: Terminal) -> Iterator[str]:
    """Lines that are not blank, from a terminal with a prompt and line editing, or a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if clean(line).strip():
                yield clean(line).strip()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and history
    while True:
        try:
            line = clean(_prompt_for_line()).strip()
        except EOFError:
            terminal.line()
            return
        except KeyboardInterrupt:
            terminal.line()
            if _line_was_empty():
                raise
            continue
        if line:
            yield line


def _prompt_for_line() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    sys.stderr.write(_PROMPT)  # input() would write it between the answers
    sys.stderr.flush()
    return input()


def _line_was_empty() -> bool:
    """Whether nothing had been typed when Ctrl-C came."""
    try:
        import readline
    except ImportError:
        return True
    return not readline.get_line_buffer()
