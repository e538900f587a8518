"""A folder of one process among those of others: whole as long as the process lives.

    <parent>/<random>/      the process' own
    <parent>/<random>.lock  held by the process
    <parent>.lock           held while one is made

What a process leaves behind goes when it closes its folder, or, if it was killed, when the next
one makes its own. Knows nothing of what lies in the folders.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pacellm_rag_ui.disk import clear_errors, is_ours, new_id
from pacellm_rag_ui.records import StorageError

__all__ = ["ProcessFolder"]

_PATIENCE = 60.0  # seconds to wait while another process makes its own


class ProcessFolder:
    """A folder for this process alone. Close it when done.

    Args:
        parent: where the folders of all processes lie; made if it is not there.

    Attributes:
        path: the folder.

    Raises:
        StorageError: it can not be made.
    """

    def __init__(self, parent: Path) -> None:
        with clear_errors():
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with FileLock(f"{parent}.lock", timeout=_PATIENCE):
                    _clear_dead(parent)
                    self.path = parent / new_id()
                    self._alive = FileLock(f"{self.path}.lock", thread_local=False)
                    self._alive.acquire(timeout=0)
                    self.path.mkdir(mode=0o700)
            except Timeout as error:
                raise StorageError(
                    f"Another process has been using {parent} for {_PATIENCE:.0f} seconds. Try "
                    "again, or end it."
                ) from error

    def close(self) -> None:
        """Removes it with what is still there; a second time does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._alive.is_locked:
            self._alive.release()
            with suppress(OSError):
                Path(self._alive.lock_file).unlink()


def _clear_dead(parent: Path) -> None:
    """Removes the folders of processes that are no more."""
    alive = set()
    for path in parent.glob("*.lock"):
        if not is_ours(path.name):
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            alive.add(path.stem)
            continue
        lock.release()
        path.unlink(missing_ok=True)
    for path in parent.iterdir():
        if path.is_dir() and is_ours(path.name) and path.name not in alive:
            shutil.rmtree(path, ignore_errors=True)
