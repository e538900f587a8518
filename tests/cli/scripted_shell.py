"""The shell as a process of its own, with a model that reads or answers without end.

Usage: scripted_shell.py reading|answering|plain ARGUMENTS...
"""

from __future__ import annotations

import signal
import sys
import time
from itertools import repeat
from typing import Any

from pacellm_rag.cli import main, opening
from pacellm_rag.protocols import ReadProgress
from pacellm_rag.testing import ScriptedModel


class SlowReader(ScriptedModel):
    """Reads for minutes."""

    def prefill(self, token_ids: Any, *, progress: Any = None, **_: Any) -> Any:
        for done in range(100_000):
            progress(ReadProgress(done, 100_000, 100.0, 1000.0))
            sys.stderr.write("reading\n")
            sys.stderr.flush()
            time.sleep(0.01)


class SlowWriter(ScriptedModel):
    """Answers for minutes."""

    def stream(self, *arguments: Any, **more: Any) -> Any:
        generation = super().stream(*arguments, **more)
        generation._pieces = Endless(["word "])
        return generation


class Endless(list[str]):
    """A list of one piece that never ends."""

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, _: Any) -> Any:
        time.sleep(0.01)
        return next(repeat("word "))


MODELS = {"reading": SlowReader, "answering": SlowWriter, "plain": ScriptedModel}

if __name__ == "__main__":
    # test runners that were started in the background ignore it, and their children with them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model = MODELS[sys.argv.pop(1)]()
    opening.open_tokenizer = lambda _: model.tokenizer
    opening.open_model = lambda _: model
    main()
