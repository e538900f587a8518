"""How far an evaluation is: a bar with the time left on a terminal, some lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacellm_rag.cli.progress import Bar
from pacellm_rag.cli.terminal import Terminal, clean

if TYPE_CHECKING:
    from pacellm_rag.evaluation.runner import RunProgress

__all__ = ["EvaluationProgress", "time_left"]

_NOTES = 10  # lines in all, where nobody watches


class EvaluationProgress(Bar):
    """Shows what `runner.run` tells; a context manager, so that no bar is left behind."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal, "Evaluating")
        self._terminal = terminal
        self._noted = -1

    def __enter__(self) -> EvaluationProgress:
        super().__enter__()
        return self

    def __call__(self, progress: RunProgress) -> None:
        """Shows how far it is."""
        figures = f"{progress.done:,} of {progress.total:,} samples"
        if progress.seconds_left is not None and progress.done < progress.total:
            figures += f", {time_left(progress.seconds_left)} left"
        if self._terminal.shows_progress:
            self.show(progress.done, progress.total, figures, clean(progress.arm))
            return
        step = progress.done * _NOTES // max(progress.total, 1)
        if step > self._noted:
            self._noted = step
            self._terminal.note(figures)


def time_left(seconds: float) -> str:
    """A length of time in the two units that say enough."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
