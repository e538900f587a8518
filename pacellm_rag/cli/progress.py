"""Progress bars for parsing files and for reading, on a terminal; nothing elsewhere.

A bar takes itself away when its work ends, also when that ends with Ctrl-C.
"""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from pacellm_rag.cli.terminal import Terminal, clean
from pacellm_rag.protocols import ReadProgress

__all__ = ["Bar", "FileProgress", "ReadingProgress"]


class Bar:
    """One line with a bar.

    Args:
        terminal: where it is shown, if that shows progress.
        what: what is being done.
    """

    def __init__(self, terminal: Terminal, what: str) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=terminal.console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not terminal.shows_progress,
        )
        self._task = self._progress.add_task(what, total=None, figures="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int | None, figures: str, what: str | None = None) -> None:
        """Shows how far it is; `figures` stand behind the bar."""
        self._progress.update(
            self._task, completed=done, total=total, figures=figures, description=what
        )


class FileProgress(Bar):
    """Pages of the file that is being parsed; call it with pages done and pages in all."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal, "Opening")

    def __enter__(self) -> FileProgress:
        super().__enter__()
        return self

    def begin(self, name: str) -> None:
        """Names the next file."""
        self.show(0, None, "", f"Opening {clean(name)}")

    def __call__(self, done: int, total: int) -> None:
        """Shows pages done and pages in all."""
        self.show(done, total, f"{done:,} of {total:,} pages")


class ReadingProgress(Bar):
    """Tokens that the model has read; a `protocols.ProgressCallback`."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal, "Reading")

    def __enter__(self) -> ReadingProgress:
        super().__enter__()
        return self

    def __call__(self, progress: ReadProgress) -> None:
        """Shows how far it has come."""
        if progress.queue_position:
            self.show(0, None, f"waiting, number {progress.queue_position} in the queue")
            return
        parts = [f"{progress.tokens_done:,} of {progress.tokens_total:,} tokens"]
        if progress.tokens_per_second:
            parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.seconds_left:
            parts.append(f"{_duration(progress.seconds_left)} left")
        self.show(progress.tokens_done, progress.tokens_total, ", ".join(parts))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
