"""Files that a process is taking in: in a folder of its own (`process_folder`).

No name that a user gave is ever a path. Knows nothing of documents and owners.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from pacellm_rag_ui.disk import clear_errors, new_file, new_id
from pacellm_rag_ui.process_folder import ProcessFolder
from pacellm_rag_ui.records import LibraryLimitError, StorageError

__all__ = ["Arrivals"]

_PIECE = 1 << 20


class Arrivals:
    """A process' folder for files on their way.

    Args:
        folder: where the folders of all processes lie.
        file_bytes: largest file.

    Raises:
        StorageError: the folder can not be written.
    """

    def __init__(self, folder: Path, *, file_bytes: int) -> None:
        self._file_bytes = file_bytes
        self._own = ProcessFolder(folder)
        self._folder = self._own.path

    def close(self) -> None:
        """Removes what is still here; a second time does nothing."""
        self._own.close()

    def take_in(self, path: Path) -> Path:
        """Moves a file here, or, where it can not be kept, removes it.

        Raises:
            LibraryLimitError: it is too large.
            StorageError: there is no such file, or it is a link, a folder or a device.
        """
        try:
            with clear_errors():
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError("What was sent is not a file. Send one file at a time.")
                self._check_size(found.st_size)
                target = self._folder / new_id()
                # One with a second name could still be changed under that.
                if found.st_nlink > 1 or not _renamed(path, target):
                    return self._copy(path, follow_links=False)
                target.chmod(0o600)
                return target
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def receive(self, data: bytes | Path) -> Path:
        """Writes content here; a file that is here already stays as it is.

        Raises:
            LibraryLimitError: it is too large.
            StorageError: it can not be read or written.
        """
        if isinstance(data, bytes):
            self._check_size(len(data))
            return self.write(data)
        if not self.holds(data):
            return self._copy(data, follow_links=True)
        with clear_errors():
            self._check_size(data.lstat().st_size)
        return data

    def write(self, data: bytes) -> Path:
        """As `receive`, for content of our own making, which has no limit."""
        path = self._folder / new_id()
        with new_file(path, len(data)) as file:
            file.write(data)
        return path

    def holds(self, path: Path) -> bool:
        """Whether a path is one that `take_in` returned."""
        return path.parent == self._folder

    def _copy(self, source: Path, *, follow_links: bool) -> Path:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        if not follow_links:
            flags |= getattr(os, "O_NOFOLLOW", 0)
        path = self._folder / new_id()
        with clear_errors():
            handle = os.open(source, flags)
            try:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(f"{source} is not a file. Name a file.")
                self._check_size(found.st_size)
                with new_file(path, found.st_size) as copy:
                    size = 0
                    while piece := os.read(handle, _PIECE):
                        size += len(piece)
                        self._check_size(size)  # it may be growing
                        copy.write(piece)
            finally:
                os.close(handle)
        return path

    def _check_size(self, size: int) -> None:
        if size > self._file_bytes:
            raise LibraryLimitError(
                f"The file has {size:,} bytes; the limit of this server is {self._file_bytes:,} "
                "bytes a file. Split it."
            )


def _renamed(path: Path, target: Path) -> bool:
    """False where the target is on another disk."""
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True
