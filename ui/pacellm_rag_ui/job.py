"""Work in a thread of its own, looked at by a generator that yields at most so many times a second.

The work changes something and calls `touch`; the generator yields what `look` then gives. Stopping
ends the generator at once, also while the work is in the middle of a window of tokens and can only
end after it. Knows nothing of what the work is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pacellm_rag.errors import PaceLLMError

__all__ = ["Job", "told"]

logger = logging.getLogger(__name__)

View = TypeVar("View")


def told(error: BaseException) -> str:
    """What people are told of an error: the message of one raised on purpose, else where to look.

    What was not raised on purpose is logged with its traceback; a page never shows one.
    """
    if isinstance(error, PaceLLMError) and str(error):
        return str(error)
    logger.error("Work for a page failed.", exc_info=error)
    return (
        f"Something went wrong on the server ({type(error).__name__}). Try again; the server's log "
        "says more."
    )


class Job(Generic[View]):
    """One piece of work, begun when its views are first asked for.

    Args:
        work: what to do; it tells its own errors, as views.
        look: what there is to see now.
        stopped: called once when the work is stopped: asks it to end, and makes `look` final.
        updates_per_second: most views that are yielded, the last one not counted.
    """

    def __init__(
        self,
        work: Callable[[], None],
        look: Callable[[], View],
        stopped: Callable[[], None],
        *,
        updates_per_second: float,
    ) -> None:
        self._work = work
        self._look = look
        self._stopped = stopped
        self._interval = 1 / updates_per_second
        self._changed = threading.Condition()
        self._touched = False
        self._over = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pacellm-page", daemon=True)

    def touch(self) -> None:
        """Says that there is something new to see."""
        with self._changed:
            self._touched = True
            self._changed.notify_all()

    def views(self) -> Iterator[View]:
        """Does the work, and yields what there is to see, at once and until it is over.

        Leaving the generator stops the work.
        """
        with self._changed:
            self._touched = True
            if not self._over:
                self._thread.start()
        seen: object = self  # no view
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._touched or self._over)
                    new, self._touched = self._touched, False
                if not new:
                    return  # over, and seen to its end
                view = self._look()
                if view is not seen:  # the last change may be seen before it is told
                    seen = view
                    yield view
                with self._changed:
                    self._changed.wait_for(lambda: self._over, timeout=self._interval)
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the work. Does not wait for it. Safe to repeat, and from any thread."""
        with self._changed:
            if self._over or self._stopping:
                return
            self._stopping = True
        try:
            self._stopped()
        finally:
            self._end()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the thread has ended; tells whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            told(error)
            raise
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
