"""`pacellm-rag-ui` with a model that says what it is told, at a pace one can watch.

Run as a program by `served_page`: tests drive the server from outside, as browsers do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacellm_rag import GenerationOptions
from pacellm_rag.errors import CancelledError
from pacellm_rag.protocols import ReadProgress
from pacellm_rag.testing import ScriptedGeneration, ScriptedModel
from pacellm_rag_ui.auth import Accounts
from pacellm_rag_ui.gate import LOOPBACK_NAMES
from pacellm_rag_ui.serving import Serving, serve


class PacedGeneration(ScriptedGeneration):
    """Waits before every word."""

    pause = 0.0

    def __next__(self) -> str:
        if self.finish_reason is None:
            time.sleep(self.pause)
        return super().__next__()

    def __iter__(self) -> Iterator[str]:
        return self


@dataclass
class PacedModel(ScriptedModel):
    """Takes its time, and can be stopped meanwhile, as the engine can."""

    window_pause: float = 0.0
    word_pause: float = 0.0

    def prefill(self, token_ids: Any, *, progress: Any = None, cancel: Any = None, **more: Any):
        known, total = self._known(token_ids), len(token_ids)
        for done in range(known, total, self.window):
            if progress is not None:
                left = (total - done) / self.window * self.window_pause
                progress(
                    ReadProgress(done, total, self.window / max(self.window_pause, 0.01), left)
                )
            end = time.monotonic() + self.window_pause
            while time.monotonic() < end:
                if cancel is not None and cancel.is_set():
                    raise CancelledError(f"Cancelled while reading (token {done} of {total}).")
                time.sleep(0.01)
        return super().prefill(token_ids, progress=progress, cancel=cancel, **more)

    def stream(self, *arguments: Any, **options: Any):
        generation = super().stream(*arguments, **options)
        generation.__class__ = PacedGeneration
        generation.pause = self.word_pause
        return generation


@dataclass(frozen=True)
class ScriptedSource:
    """Stands in for `serving.ModelSource`."""

    model: ScriptedModel
    name: str = "scripted"
    pace: str = "off"
    on_this_machine: bool = True
    load_pause: float = 0.0

    def load(self) -> ScriptedModel:
        time.sleep(self.load_pause)
        return self.model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--auth", type=Path)
    parser.add_argument("--answer", action="append", default=[])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--window-pause", type=float, default=0.0)
    parser.add_argument("--word-pause", type=float, default=0.0)
    parser.add_argument("--second-answer", help="A second model, with half of the window.")
    parser.add_argument("--load-pause", type=float, default=0.0, help="Of the second model.")
    parser.add_argument("files", nargs="*", type=Path)
    told = parser.parse_args()
    model = PacedModel(
        told.answer or ["Yes."],
        context_window=told.context,
        window=told.window,
        window_pause=told.window_pause,
        word_pause=told.word_pause,
    )
    sources: list[Any] = [ScriptedSource(model)]
    if told.second_answer:
        other = PacedModel([told.second_answer], context_window=told.context // 2)
        sources.append(ScriptedSource(other, "other", load_pause=told.load_pause))
    serve(
        Serving(
            folder=told.data,
            models=sources,
            options=GenerationOptions(),
            max_file_bytes=2_000_000,
            accounts=Accounts.from_file(told.auth) if told.auth else None,
            hosts=LOOPBACK_NAMES,
            files=tuple(told.files),
        ),
        "127.0.0.1",
        0,
    )


if __name__ == "__main__":
    main()
