"""Sessions at once on the page's server: how long uploads, answers and stops take for each of them.

A server in a process of its own, on a scripted model that waits a fixed time before each window and
each word, so that what is measured is the server and not a model. Each session is a program of its
own (`gradio_client`, over HTTP): it uploads a file, asks and takes the answer to its end, then asks
again and stops in mid-answer, some rounds long; all begin at one moment. Prints a table and, last,
a line of JSON.

    python benchmarks/sessions.py [--sessions 1 5 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pacellm_rag import GenerationOptions
from pacellm_rag.testing import ScriptedGeneration, ScriptedModel

WORDS = 40  # of an answer
WORD_PAUSE = 0.02  # seconds before each
WINDOW_PAUSE = 0.05
PAGES, PAGE_WORDS = 5, 100  # of a file; the scripted model's own tokenizer is slow
ASKED, ENDLESS = "What does it say?", "Unendingly?"
PARTS = ("upload", "first piece", "whole answer", "stop")

Row = dict[str, float | int | str]


class PacedGeneration(ScriptedGeneration):
    """Waits before every word."""

    def __next__(self) -> str:
        if self.finish_reason is None:
            time.sleep(WORD_PAUSE)
        return super().__next__()


@dataclass
class PacedModel(ScriptedModel):
    """Takes its time, and remembers nothing: what is measured last must not pay for the first."""

    lock: Any = field(default_factory=threading.Lock)

    def prefill(self, token_ids: Any, **more: Any) -> Any:
        """Waits before every window."""
        time.sleep(WINDOW_PAUSE * math.ceil(len(token_ids) / self.window))
        self.prefills.clear()
        return super().prefill(token_ids, **more)

    def stream(self, token_ids: Any, *arguments: Any, **options: Any) -> ScriptedGeneration:
        """An answer that waits before every word, and is as long as the question wants it."""
        endless = self.tokenizer.encode_text(ENDLESS).token_ids[0] in token_ids[-40:]
        with self.lock:
            self.answers = [" ".join(["word"] * (10_000 if endless else WORDS - 2)) + " [D1 p1]."]
            generation = super().stream(token_ids, *arguments, **options)
            self.prompts.clear()
            self.generations.clear()
        generation.__class__ = PacedGeneration
        return generation


@dataclass(frozen=True)
class PacedSource:
    """Stands in for `serving.ModelSource`."""

    model: ScriptedModel
    name: str = "scripted"
    pace: str = "off"
    on_this_machine: bool = True

    def load(self) -> ScriptedModel:
        """The model, which is there."""
        return self.model


def serve_paced(data: Path) -> None:
    """Serves until the process is ended."""
    from pacellm_rag_ui.gate import LOOPBACK_NAMES
    from pacellm_rag_ui.serving import Serving, serve

    source: Any = PacedSource(PacedModel(context_window=100_000))
    options = GenerationOptions(max_new_tokens=10_000)
    serve(Serving(data, [source], options, 10**7, None, LOOPBACK_NAMES), "127.0.0.1", 0)


@contextlib.contextmanager
def server(data: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server, and its process."""
    root = Path(__file__).parents[1]
    paths = [str(root), str(root / "ui"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(data)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert process.stderr is not None
    try:
        said = ""
        while "Listening on " not in said:
            said = process.stderr.readline()
            if not said:
                raise SystemExit("The server did not start; see above.")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield said.split()[2], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


class Times:
    """What took how long, of all sessions."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def add(self, part: str, started: float) -> None:
        """Notes the time since `started`."""
        took = time.perf_counter() - started
        with self._lock:
            self.seconds[part].append(took)


def visit(url: str, file: Path, rounds: int, times: Times, begin: threading.Barrier) -> None:
    """One session, from its first upload to its end."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, analytics_enabled=False)
    try:
        begin.wait(120)
        for number in range(rounds):
            file.write_text(page_text(f"{file.stem} {number}"), encoding="utf-8")
            started = time.perf_counter()
            [sent] = client.predict([handle_file(str(file))], api_name="/upload")
            times.add("upload", started)
            check(sent["state"] == "ready", f"upload: {sent}")
            started, first = time.perf_counter(), True
            view: dict[str, Any] = {}
            for view in client.submit(ASKED, api_name="/ask"):
                if first and view["text"]:
                    times.add("first piece", started)
                    first = False
            times.add("whole answer", started)
            check(view["state"] == "done", f"answer: {view}")
            stopped(client, times)
    except Exception as error:
        times.errors.append(repr(error))
    finally:
        client.close()


def stopped(client: Any, times: Times) -> None:
    """Stops an answer behind its first word: from the call to the last view."""
    job = client.submit(ENDLESS, api_name="/ask")
    started = 0.0
    view: dict[str, Any] = {}
    for view in job:
        if not started and view["text"]:
            started = time.perf_counter()
            client.predict(api_name="/stop")
    times.add("stop", started)
    check(view["state"] == "stopped", f"stop: {view}")


def check(true: bool, what: str) -> None:
    """Ends a session that did not go as it should."""
    if not true:
        raise RuntimeError(what)


def page_text(name: str) -> str:
    """The text of a file of its own."""
    words = " ".join(f"word{n}" for n in range(PAGE_WORDS))
    return "\f".join(f"{name}, page {page}. {words}." for page in range(PAGES))


def at_once(url: str, folder: Path, sessions: int, rounds: int) -> Times:
    """So many sessions at once."""
    times, begin = Times(), threading.Barrier(sessions)
    files = [folder / f"report-{sessions}-{n}.txt" for n in range(sessions)]
    threads = [
        threading.Thread(target=visit, args=(url, file, rounds, times, begin)) for file in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if times.errors:
        raise SystemExit(f"{len(times.errors)} sessions failed: {times.errors[0]}")
    return times


def at_share(ordered: list[float], share: float) -> float:
    """The least value that this share of all does not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def rows_of(sessions: int, times: Times) -> Iterator[Row]:
    """The lines of the table."""
    for part in PARTS:
        seconds = sorted(times.seconds[part])
        yield {
            "sessions": sessions,
            "what": part,
            "count": len(seconds),
            "p50": at_share(seconds, 0.5),
            "p95": at_share(seconds, 0.95),
            "max": seconds[-1],
        }


def main() -> None:
    """Runs the waves, one after the other, on one server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve_paced(arguments.serve)
        return
    load = os.getloadavg()[0]
    rows: list[Row] = []
    resident: list[float] = []  # MB of the server: before, and behind each wave
    with tempfile.TemporaryDirectory() as place, server(Path(place) / "data") as (url, process):
        at_once(url, Path(place), 1, 1)  # what is done once, such as imports
        resident.append(process.memory_info().rss / 1e6)
        print("| sessions | what | count | p50 ms | p95 ms | max ms |")
        print("|---:|---|---:|---:|---:|---:|")
        for sessions in arguments.sessions:
            for row in rows_of(sessions, at_once(url, Path(place), sessions, arguments.rounds)):
                rows.append(row)
                cells = " | ".join(
                    f"{1000 * float(row[each]):.0f}" for each in ("p50", "p95", "max")
                )
                print(f"| {sessions} | {row['what']} | {row['count']} | {cells} |", flush=True)
            time.sleep(3)
            resident.append(process.memory_info().rss / 1e6)
    print(
        json.dumps(
            {
                "benchmark": "sessions",
                "rounds": arguments.rounds,
                "words": WORDS,
                "word_pause": WORD_PAUSE,
                "window_pause": WINDOW_PAUSE,
                "server_mb": [round(each, 1) for each in resident],
                "cores": os.cpu_count(),
                "load_before": load,
                "load_after": os.getloadavg()[0],
                "machine": platform.machine(),
                "python": platform.python_version(),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
