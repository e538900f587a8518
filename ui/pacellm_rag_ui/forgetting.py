"""Documents that were removed are forgotten by the models too, soon and over a restart.

Knows the library's note of what was removed, and whom to tell; knows nothing of models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from pacellm_rag_ui.library import Library, StorageError

__all__ = ["Forgetting"]

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds that the server's end waits for what is being forgotten


class Forgetting:
    """Has contents forgotten that were removed and nobody keeps any more.

    A thread that is there only while there is something to forget does it: models may be in the
    middle of a window. What could not be forgotten is tried again with the next removal, and when
    the server starts next.

    Args:
        library: what is kept.
        forget: has contents forgotten, by their ids, and returns how many files are left.
    """

    def __init__(self, library: Library, forget: Callable[[Collection[str]], int]) -> None:
        self._library = library
        self._forget = forget
        self._lock = threading.Lock()
        self._again = False
        self._thread: threading.Thread | None = None
        library.when_removed(lambda path: self.begin())

    def begin(self) -> None:
        """Forgets what has been removed by now; does not wait for it."""
        with self._lock:
            self._again = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="pacellm-page-forgets", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Waits some seconds for what is being forgotten."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._again:
                    self._thread = None
                    return
                self._again = False
            try:
                removed = self._library.removed_contents()
                left = self._forget(list(removed)) if removed else 0
                if left:
                    logger.warning("%d files of removed documents' readings are in use.", left)
                elif removed:
                    self._library.contents_forgotten(removed)
            except StorageError as error:  # also where the server has ended meanwhile
                logger.debug("Removed documents are forgotten later: %s", error)
            except Exception:  # what is noted stays noted
                logger.warning("Removed documents could not be forgotten yet.", exc_info=True)
