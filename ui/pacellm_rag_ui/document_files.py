"""The files of the data folder: how they arrive, where they stay, how they go.

    owners/<random>/<document id>         the file as it was given
    owners/<random>/<document id>.json    its parsed pages
    arrivals/<random>/                    what a running process is taking in; locked by it

No name that a user gave is ever a path. A file is written whole in `arrivals` and then renamed.
Knows nothing of the database: the caller says which documents there are.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from pacellm_rag_ui.records import LibraryLimitError, StorageError

__all__ = ["DocumentFiles", "new_id"]

logger = logging.getLogger(__name__)

_RESERVE = 64_000_000  # bytes left free, so that conversations can still be kept
_PIECE = 1 << 20
_OURS = re.compile(r"[A-Za-z0-9_-]{22}(\.json|\.lock)?")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def new_id() -> str:
    """128 random bits, in 22 characters that are fit for URLs and file names."""
    return secrets.token_urlsafe(16)


class DocumentFiles:
    """Files by owner's folder and document id.

    Only one process at a time may make one for a folder; the caller sees to that.

    Args:
        folder: the data folder.
        file_bytes: largest file.
    """

    def __init__(self, folder: Path, *, file_bytes: int) -> None:
        self._file_bytes = file_bytes
        self._owners = folder / "owners"
        arrivals = folder / "arrivals"
        with _clear_errors():
            for inner in (self._owners, arrivals):
                inner.mkdir(mode=0o700, exist_ok=True)
            _clear_dead(arrivals)
            self._arrivals = arrivals / new_id()
            self._alive = FileLock(arrivals / f"{self._arrivals.name}.lock", thread_local=False)
            self._alive.acquire(timeout=0)
            self._arrivals.mkdir(mode=0o700)

    @property
    def any_owner(self) -> bool:
        """Whether anything lies in the owners' folder."""
        with _clear_errors():
            return any(self._owners.iterdir())

    def close(self) -> None:
        """Removes what has arrived and was not placed."""
        shutil.rmtree(self._arrivals, ignore_errors=True)
        self._alive.release()
        with suppress(OSError):
            Path(self._alive.lock_file).unlink()

    def take_in(self, path: Path) -> Path:
        """Moves a file to `arrivals`, or removes it.

        Raises:
            LibraryLimitError: it is too large.
            StorageError: there is no such file, or it is a link, a folder or a device.
        """
        try:
            with _clear_errors():
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError("What was sent is not a file. Send one file at a time.")
                self._check_size(found.st_size)
                target = self._arrivals / new_id()
                # One with a second name could still be changed under that.
                if found.st_nlink > 1 or not _renamed(path, target):
                    return self.receive(path, follow_links=False)
                target.chmod(0o600)
                return target
        finally:
            if not path.is_dir():
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def receive(self, data: bytes | Path, *, follow_links: bool = True) -> Path:
        """Writes content to `arrivals`; a file that lies there already stays as it is.

        Raises:
            LibraryLimitError: it is too large.
            StorageError: it can not be read or written.
        """
        if isinstance(data, bytes):
            self._check_size(len(data))
            with self._new_file(len(data)) as (file, path):
                file.write(data)
            return path
        with _clear_errors():
            if data.parent == self._arrivals:
                self._check_size(data.lstat().st_size)
                return data
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            if not follow_links:
                flags |= getattr(os, "O_NOFOLLOW", 0)
            with open(os.open(data, flags), "rb") as source:
                found = os.fstat(source.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(f"{data} is not a file. Name a file.")
                self._check_size(found.st_size)
                with self._new_file(found.st_size) as (file, path):
                    size = 0
                    while piece := source.read(_PIECE):
                        size += len(piece)
                        self._check_size(size)  # it may grow
                        file.write(piece)
            return path

    def write(self, data: bytes) -> Path:
        """As `receive`, for what is ours and has no limit."""
        with self._new_file(len(data)) as (file, path):
            file.write(data)
        return path

    def place(self, original: Path, pages: Path, folder: str, document_id: str) -> None:
        """Renames both files to where they stay: after a crash each is there whole or not.

        Raises:
            StorageError: they can not be placed; neither then is.
        """
        with _clear_errors():
            home = self._owners / folder
            home.mkdir(mode=0o700, exist_ok=True)
            try:
                os.replace(pages, home / f"{document_id}.json")
                os.replace(original, home / document_id)
                _settle(home)
                _settle(self._owners)
            except BaseException:
                for path in self._both(folder, document_id):
                    path.unlink(missing_ok=True)
                raise

    def original(self, folder: str, document_id: str) -> Path:
        """Where a document's file lies."""
        return self._owners / folder / document_id

    def pages(self, folder: str, document_id: str) -> Path:
        """Where its parsed pages lie."""
        return self._owners / folder / f"{document_id}.json"

    def remove(self, folder: str, document_id: str) -> None:
        """Removes a document's files; those that are gone already are no error.

        Raises:
            StorageError: they can not be removed.
        """
        with _clear_errors():
            for path in self._both(folder, document_id):
                path.unlink(missing_ok=True)

    def remove_owner(self, folder: str) -> None:
        """Removes all files of an owner.

        Raises:
            StorageError: some can not be removed.
        """
        with _clear_errors():
            _clear(self._owners / folder, keep=())

    def sweep(self, known: Mapping[str, Collection[str]]) -> None:
        """Removes files that no document has: left by a crash, or when removing them failed.

        Args:
            known: ids of the documents by owner's folder. Nobody may place files meanwhile.
        """
        for home in self._owners.iterdir():
            if not _OURS.fullmatch(home.name):
                continue
            try:
                _clear(home, keep=known.get(home.name, ()))
            except OSError:
                logger.warning("Left-over files in %s could not be removed.", home, exc_info=True)

    def _both(self, folder: str, document_id: str) -> tuple[Path, Path]:
        return self.original(folder, document_id), self.pages(folder, document_id)

    def _check_size(self, size: int) -> None:
        if size > self._file_bytes:
            raise LibraryLimitError(
                f"The file has {size / 1e6:,.1f} MB; the limit of this server is "
                f"{self._file_bytes / 1e6:,.1f} MB a file. Split it."
            )

    @contextmanager
    def _new_file(self, size: int) -> Iterator[tuple[BinaryIO, Path]]:
        """A file to be written whole: it reaches the disk, or goes."""
        path = self._arrivals / new_id()
        with _clear_errors():
            free = shutil.disk_usage(self._arrivals).free
            if free - _RESERVE < size:
                raise StorageError(_full(f"{size / 1e6:,.1f} MB do not fit"))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            handle = os.open(path, flags, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file, path
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise


def _renamed(path: Path, target: Path) -> bool:
    """False where the target is on another disk."""
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Removes our files but those of some documents, and the folder if it is then empty."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name.partition(".")[0] not in keep:
            path.unlink(missing_ok=True)
    if not keep:
        with suppress(OSError):  # something that is not ours lies there
            folder.rmdir()


def _clear_dead(arrivals: Path) -> None:
    """Removes what processes were taking in that are no more."""
    alive = set()
    for path in arrivals.glob("*.lock"):
        if not _OURS.fullmatch(path.name):
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            alive.add(path.stem)
            continue
        lock.release()
        path.unlink(missing_ok=True)
    for path in arrivals.iterdir():
        if path.is_dir() and path.name not in alive and _OURS.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Makes a folder's new names outlive a power cut; Windows does so by itself."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(_full("the file does not fit")) from error
        raise StorageError(
            f"The data folder of the server can not be used: {error.strerror or error}. "
            "Nothing was kept; tell who runs this server."
        ) from error


def _full(what: str) -> str:
    return (
        f"The disk of the data folder is full: {what}, with {_RESERVE / 1e6:.0f} MB kept free. "
        "Nothing was kept. Remove documents, or make room on the server."
    )
