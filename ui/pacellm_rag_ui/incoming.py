"""Files on their way from a browser to the library: written to a private folder, then taken once.

Gradio's own upload puts files into a folder that all users share, under a name made from their
content, and changes the files' names. Here each upload gets a name nobody can guess, in a folder
of this process alone, and only the owner who sent it can take it. Knows nothing of HTTP or of
documents.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pacellm_rag.errors import PaceLLMError
from pacellm_rag_ui.process_folder import ProcessFolder

__all__ = ["Incoming", "TooLargeError"]

_FORGOTTEN_SECONDS = 600.0


class TooLargeError(PaceLLMError):
    """A file that is being sent has more bytes than are taken."""


@dataclass(frozen=True)
class _Arrival:
    owner: str
    name: str
    path: Path
    time: float


class Incoming:
    """The folder of uploads. Close it when done.

    Args:
        folder: where the folders of all processes lie; those of processes that were killed are
            removed, as nobody waits for them any more.
        max_bytes: of one file.
        max_waiting: files that one owner may have here without taking them.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_waiting: int = 50) -> None:
        self._own = ProcessFolder(folder)
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._arrivals: dict[str, _Arrival] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Removes what was not taken; a second time does nothing."""
        self._own.close()

    async def receive(self, owner: str, name: str, pieces: AsyncIterator[bytes]) -> str:
        """Writes a file as it comes; returns the token by which its owner takes it.

        Raises:
            TooLargeError: it is too large, or too many files of this owner wait.
        """
        self.sweep()
        self._check_room(owner)
        token, path = self._new_path()
        size = 0
        try:
            with path.open("xb") as file:
                async for piece in pieces:
                    size += len(piece)
                    if size > self._max_bytes:
                        raise TooLargeError(
                            f"The file has more than {self._max_bytes / 1e6:,.0f} MB, the limit "
                            "of this server. Split it, or ask for a higher --max-file-mb."
                        )
                    file.write(piece)
        except BaseException:  # the sender has gone, too
            path.unlink(missing_ok=True)
            raise
        self._keep(token, _Arrival(owner, name, path, time.monotonic()))
        return token

    def copy(self, owner: str, source: Path) -> Path:
        """A private copy of a file that lies where others may reach it."""
        token, path = self._new_path()
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)
        self._keep(token, _Arrival(owner, source.name, path, time.monotonic()))
        return path

    def take(self, owner: str, token: str) -> tuple[str, Path] | None:
        """Name and place of an upload, once; None where this owner has sent no such file."""
        with self._lock:
            arrival = self._arrivals.get(token)
            if arrival is None or arrival.owner != owner:
                return None
            del self._arrivals[token]
        return arrival.name, arrival.path

    def sweep(self) -> None:
        """Deletes what nobody has taken for ten minutes."""
        oldest = time.monotonic() - _FORGOTTEN_SECONDS
        with self._lock:
            gone = [token for token, a in self._arrivals.items() if a.time < oldest]
            paths = [self._arrivals.pop(token).path for token in gone]
        for path in paths:
            path.unlink(missing_ok=True)

    def _check_room(self, owner: str) -> None:
        with self._lock:
            waiting = sum(arrival.owner == owner for arrival in self._arrivals.values())
        if waiting >= self._max_waiting:
            raise TooLargeError(
                f"{waiting} files have been sent and not been read; {self._max_waiting} may wait. "
                "Try again in a few minutes."
            )

    def _new_path(self) -> tuple[str, Path]:
        token = secrets.token_urlsafe(24)
        return token, self._own.path / token

    def _keep(self, token: str, arrival: _Arrival) -> None:
        with self._lock:
            self._arrivals[token] = arrival
