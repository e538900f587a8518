"""One file on its way through its parsers: runs them in the sandbox and gathers the pages.

Knows the limits of one document, which all its parsers share, not which parsers there are.
"""

from __future__ import annotations

import time
from contextlib import closing

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.messages import Failed, Opened, PageText, Request
from pacellm_rag.documents.outcome import ParseOutcome
from pacellm_rag.documents.parsed import PageProgress
from pacellm_rag.documents.sandbox import run_parser
from pacellm_rag.errors import DocumentError, EncryptedDocumentError

__all__ = ["FileReading"]


class FileReading:
    """Reads one file with one parser after the other.

    Args:
        data: the whole file.
        name: what messages call it.
        password: for encrypted files, "" when none is known.
        limits: what it may cost.
        progress: called for every page.
    """

    def __init__(
        self,
        data: bytes,
        name: str,
        password: str,
        limits: DocumentLimits,
        progress: PageProgress | None,
    ) -> None:
        self.outcome = ParseOutcome(name, limits)
        self._data = data
        self._password = password
        self._progress = progress
        self._start = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Wall time that the document may still take."""
        return self._start + self.outcome.limits.wall_seconds - time.monotonic()

    def run(
        self,
        parser: str,
        pages: tuple[int, ...] | None = None,
        *,
        share: float = 1.0,
        silence_seconds: float,
    ) -> tuple[Failed | None, int]:
        """Runs one parser and keeps every page that is better than what is there.

        Args:
            parser: its name in the worker's table.
            pages: what to read, or None for all.
            share: how much of the time that is left it may take.
            silence_seconds: longest wait for the next page.

        Returns:
            Why it broke off, or None, and the last page that arrived, or 0.

        Raises:
            EncryptedDocumentError: it needs a password, or `password` is wrong.
            DocumentError: the parser could not be started.
        """
        outcome, limits = self.outcome, self.outcome.limits
        last_page = 0
        if outcome.characters_left <= 0 or self.seconds_left <= 0:
            return None, last_page
        request = Request(
            parser=parser,
            password=self._password,
            pages=pages,
            max_pages=limits.pages,
            max_page_characters=limits.characters_per_page,
            max_characters=outcome.characters_left,
            max_unpacked_bytes=limits.unpacked_bytes,
            memory_bytes=limits.memory_bytes,
            cpu_seconds=limits.cpu_seconds,
        )
        deadline = time.monotonic() + share * self.seconds_left
        messages = run_parser(
            request, self._data, deadline=deadline, silence_seconds=silence_seconds
        )
        with closing(messages):
            for message in messages:
                if isinstance(message, Opened):
                    outcome.open(message)
                    self._report()
                elif isinstance(message, PageText):
                    last_page = message.number
                    outcome.keep(message)
                    self._report()
                elif isinstance(message, Failed):
                    self._fail(message)
                    return message, last_page
        return None, last_page

    def _fail(self, failure: Failed) -> None:
        outcome, name = self.outcome, self.outcome.name
        outcome.failures.append(failure)
        if outcome.pages:
            return
        if failure.reason == "password_wrong":
            raise EncryptedDocumentError(
                f"The password for {name} is wrong. Try another one.", path=name
            )
        if failure.reason == "password_needed":
            raise EncryptedDocumentError(
                f"{name} is encrypted and needs a password: pass password=...", path=name
            )
        if failure.reason == "start":
            raise DocumentError(
                f"{name} was not read: the parser process could not be started "
                f"({failure.detail}). Close other programs and try again.",
                path=name,
            )

    def _report(self) -> None:
        if self._progress:
            self._progress(len(self.outcome.pages), self.outcome.page_count)
