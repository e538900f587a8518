"""Uploaded files into the library: moved out of their place, read under limits, kept.

Knows the library and the readers of files; knows nothing of how uploads arrive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pacellm_rag.documents import Document, DocumentLimits, load_document_bytes
from pacellm_rag.errors import (
    CancelledError,
    DocumentError,
    EncryptedDocumentError,
    PaceLLMError,
)
from pacellm_rag_ui.backend import Backend
from pacellm_rag_ui.job import Job, told
from pacellm_rag_ui.library import LibraryError, StoredDocument
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.session import BusyError, Session
from pacellm_rag_ui.views import FileReport

__all__ = ["add_files"]

_STOPPED = "Stopped before it was read."
_LOCKED = "It is protected by a password."
_WRONG = "This password does not open it. Try another one."


def add_files(
    backend: Backend, session: Session, files: Sequence[tuple[str, Path]], password: str = ""
) -> Iterator[FileReport]:
    """Takes files in, one after the other; yields a report at each change.

    Args:
        backend: what all handlers share.
        session: the page.
        files: name, and where it lies.
        password: tried on encrypted files; never kept.
    """
    upload = _Upload(backend, session, files, password)
    job = Job(
        upload.work,
        upload.changes,
        upload.stop,
        updates_per_second=backend.settings.updates_per_second,
    )
    upload.job = job
    try:
        with session.uploading(job):
            for changes in job.views():
                yield from changes
    except BusyError as error:
        for index, (name, path) in enumerate(files):
            with suppress(OSError):
                path.unlink()
            yield FileReport(display_name(name), "refused", str(error), index=index)


class _Upload:
    """Several files on their way."""

    job: Job[list[FileReport]]

    def __init__(
        self,
        backend: Backend,
        session: Session,
        files: Sequence[tuple[str, Path]],
        password: str,
    ) -> None:
        self._backend = backend
        self._session = session
        self._files = list(files)
        self._password = password
        self._lock = threading.Lock()
        self._reports: dict[int, FileReport] = {}
        self._new: set[int] = set()
        self._stopped = threading.Event()

    def changes(self) -> list[FileReport]:
        """What has changed since the last look."""
        with self._lock:
            new, self._new = sorted(self._new), set()
            return [self._reports[index] for index in new]

    def stop(self) -> None:
        """Stops at the next page; what is not read is refused."""
        self._stopped.set()
        with self._lock:
            ended = {i for i, report in self._reports.items() if report.state != "parsing"}
        for index, (name, _) in enumerate(self._files):
            if index not in ended:
                self._tell(index, FileReport(display_name(name), "refused", _STOPPED))

    def _tell(self, index: int, report: FileReport) -> None:
        with self._lock:
            told_before = self._reports.get(index)
            if told_before is not None and told_before.state != "parsing":
                return
            self._reports[index] = replace(report, index=index)
            self._new.add(index)
        self.job.touch()

    def work(self) -> None:
        """Moves all files away first, then reads one after the other."""
        taken: list[tuple[int, str, Path]] = []
        most = self._backend.settings.files_at_once
        for index, (name, path) in enumerate(self._files):
            shown = display_name(name)
            try:
                moved = self._backend.library.take_in(path)
            except LibraryError as error:
                with suppress(OSError):
                    path.unlink()
                self._tell(index, FileReport(shown, "refused", str(error)))
                continue
            if index >= most:
                moved.unlink(missing_ok=True)
                message = f"{len(self._files)} files came at once; {most} may. Send it again."
                self._tell(index, FileReport(shown, "refused", message))
                continue
            taken.append((index, name, moved))
            self._tell(index, FileReport(shown, "parsing", "Waiting to be read"))
        for index, name, moved in taken:
            try:
                with self._session.upload_turn:
                    self._read(index, name, moved)
            except CancelledError:
                self._tell(index, FileReport(display_name(name), "refused", _STOPPED))
            except EncryptedDocumentError:
                message = _WRONG if self._password else _LOCKED
                self._tell(index, FileReport(display_name(name), "locked", message))
            except Exception as error:
                self._tell(index, FileReport(display_name(name), "refused", told(error)))
            finally:
                moved.unlink(missing_ok=True)

    def _read(self, index: int, name: str, moved: Path) -> None:
        shown = display_name(name)

        def progress(done: int, total: int) -> None:
            if self._stopped.is_set():
                raise CancelledError("Stopped.")
            self._tell(index, FileReport(shown, "parsing", f"Page {done} of {total}"))

        if self._stopped.is_set():
            raise CancelledError("Stopped.")
        self._tell(index, FileReport(shown, "parsing", "Opening"))
        limits = self._backend.settings.document_limits
        data = _bytes_of(moved, name, limits)
        document = load_document_bytes(
            data, name, password=self._password or None, limits=limits, progress=progress
        )
        stored = self._same(document)
        if stored is not None:
            message = f"It is there already, as “{display_name(stored.title)}”."
            self._tell(index, FileReport(shown, "ready", message, stored))
            return
        tokens = self._count(document)
        with self._lock:  # either it is stopped, or it is kept and told so
            if self._stopped.is_set():
                raise CancelledError("Stopped.")
            stored = self._backend.library.add_document(
                self._session.owner, name, moved, document, tokens
            )
            self._reports[index] = FileReport(shown, "ready", _summary(stored), stored, index)
            self._new.add(index)
        self.job.touch()

    def _same(self, document: Document) -> StoredDocument | None:
        documents = self._backend.library.documents(self._session.owner)
        return next((each for each in documents if each.content_id == document.id), None)

    def _count(self, document: Document) -> int | None:
        """Its tokens; None where there is no model to count with (yet), which the meter tells."""
        try:
            tokenizer = self._backend.model_soon(self._session).tokenizer
        except PaceLLMError:
            return None
        return self._backend.counts.count(tokenizer, document, None)


def _bytes_of(path: Path, name: str, limits: DocumentLimits) -> bytes:
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise DocumentError(
            f"{display_name(name)} has {size / 1e6:,.1f} MB; {limits.file_bytes / 1e6:,.1f} MB may "
            "be. Split the file.",
            path=name,
        )
    return path.read_bytes()


def _summary(stored: StoredDocument) -> str:
    parts = [f"{stored.pages:,} page{'s' if stored.pages != 1 else ''}"]
    if stored.tokens is not None:
        parts.append(f"{stored.tokens:,} tokens")
    return " ".join([f"{', '.join(parts)}.", *stored.warnings])
