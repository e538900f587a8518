"""Work that an engine does between forward passes for somebody who waits. Knows no requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Job"]


@dataclass
class Job:
    """Something that must run between forward passes, and is waited for."""

    work: Callable[[], object]
    done: threading.Event = field(default_factory=threading.Event)
    value: object = None
    error: BaseException | None = None

    def run(self) -> None:
        """Does the work, and says that it is done, however it ends."""
        try:
            self.value = self.work()
        except BaseException as error:
            self.error = error
        self.done.set()
