"""What can go wrong on a disk, said so that a person knows what to do; and settled writes.

Knows nothing of what is written.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pacellm_rag_ui.records import StorageError

__all__ = ["clear_errors", "is_ours", "new_file", "new_id", "settle_names"]

_RESERVE = 64_000_000  # bytes left free, so that conversations can still be kept
_OURS = re.compile(r"[A-Za-z0-9_-]{22}(\.json|\.lock)?")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def new_id() -> str:
    """128 random bits, in 22 characters that are fit for URLs and file names."""
    return secrets.token_urlsafe(16)


def is_ours(name: str) -> bool:
    """Whether a file may have been named by `new_id`: no other is ever removed."""
    return _OURS.fullmatch(name) is not None


@contextmanager
def new_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """A new file, for its owner only: after the block it is on the disk whole, or not at all.

    Args:
        path: where; nothing may be there.
        size: bytes that will be written.

    Raises:
        StorageError: it can not be written.
    """
    with clear_errors():
        if shutil.disk_usage(path.parent).free - _RESERVE < size:
            raise StorageError(_full(f"{size / 1e6:,.1f} MB do not fit"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def settle_names(folder: Path) -> None:
    """Makes a folder's new names outlive a power cut; Windows does so by itself."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def clear_errors(outcome: str = "Nothing was kept.") -> Iterator[None]:
    """Turns errors of the operating system into StorageError.

    Args:
        outcome: how things stand after such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(_full("the file does not fit")) from error
        raise StorageError(
            f"The data folder of the server can not be used: {error.strerror or error}. {outcome} "
            "Tell who runs this server."
        ) from error


def _full(what: str) -> str:
    return (
        f"The disk of the data folder is full: {what}, with {_RESERVE / 1e6:.0f} MB kept free. "
        "Nothing was kept. Remove documents, or make room on the server."
    )
