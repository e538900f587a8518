"""Several answers that are worked on together, a few at a time.

Knows answers on their way; knows nothing of where they come from.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from pacellm_rag_ui.answer_run import AnswerRun
from pacellm_rag_ui.views import AskView

__all__ = ["SideBySide"]


class SideBySide:
    """Answers side by side.

    Args:
        steps: what leads to each answer.
        at_once: how many are worked on at a time.
    """

    def __init__(self, steps: Sequence[Callable[[AnswerRun], None]], at_once: int) -> None:
        self._runs = [(AnswerRun(), each) for each in steps]
        self._at_once = min(at_once, len(self._runs))
        self.stopped = False

    def touch_by(self, touch: Callable[[], None]) -> None:
        """Has `touch` called when there is something new to see."""
        for run, _ in self._runs:
            run.touched = touch

    def looks(self) -> tuple[AskView, ...]:
        """The answers as they stand."""
        return tuple(run.look() for run, _ in self._runs)

    def stop(self) -> None:
        """Stops those that have not ended."""
        self.stopped = True
        for run, _ in self._runs:
            run.stop()

    def work(self) -> None:
        """Works on them, from the first to the last."""
        waiting: queue.SimpleQueue[tuple[AnswerRun, Callable[[AnswerRun], None]]]
        waiting = queue.SimpleQueue()
        for each in self._runs:
            waiting.put(each)

        def take() -> None:
            while True:
                try:
                    run, steps = waiting.get_nowait()
                except queue.Empty:
                    return
                run.perform(steps)

        helpers = [threading.Thread(target=take, daemon=True) for _ in range(self._at_once - 1)]
        for helper in helpers:
            helper.start()
        take()
        for helper in helpers:
            helper.join()
