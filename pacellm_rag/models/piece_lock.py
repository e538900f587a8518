"""One writer per piece, across threads and processes, and what is left behind of pieces.

The operating system frees a lock when its process dies, so a lock file that is left over holds
nobody up. Knows names of files only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["clear_leftovers", "only_writer"]

_LEFTOVER = re.compile(r"([0-9a-f]{64})\.(?:lock|documents|[^.]*\.partial)")


@contextlib.contextmanager
def only_writer(folder: Path, key: str) -> Iterator[bool]:
    """Holds the lock of a piece, without waiting for it.

    Yields:
        Whether it is held; False while somebody else has it.

    Raises:
        OSError: no lock can be made in the folder.
    """
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # Removed while it is held. Whoever has opened it meanwhile and locks it next sees that it
        # is gone (filelock compares); if not, two write one piece: double work, no damage.
        with contextlib.suppress(OSError):  # Windows: it goes when it is released
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def clear_leftovers(folder: Path) -> int:
    """Removes unfinished files and locks of writers that do not live any more.

    Also what was noted of pieces that have been removed.

    Returns:
        How many bytes the unfinished files had.

    Raises:
        OSError: the folder can not be listed.
    """
    paths = list(folder.iterdir())
    there = {path.name.partition(".")[0] for path in paths if path.suffix == ".safetensors"}
    left: dict[str, list[Path]] = {}
    for path in paths:
        named = _LEFTOVER.fullmatch(path.name)
        if named is not None and not (path.suffix == ".documents" and named[1] in there):
            left.setdefault(named[1], []).append(path)
    freed = 0
    for key, paths in left.items():
        with contextlib.suppress(OSError), only_writer(folder, key) as alone:
            for path in paths if alone else ():
                if path.suffix == ".partial":
                    freed += path.stat().st_size
                    path.unlink()
                elif path.suffix == ".documents" and not any(folder.glob(f"{key}.*.safetensors")):
                    path.unlink()
    return freed
