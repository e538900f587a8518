"""A server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE = 90.0  # seconds; Gradio takes four to import on an idle core


@contextmanager
def served(data: Path, *arguments: str, program: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a server that keeps its things in `data`; ended and waited for after.

    Args:
        data: its folder.
        arguments: of the program.
        program: what python runs; the server with the scripted model where nothing is named.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ui"), "OMP_NUM_THREADS": "1"}
    scripted = (str(Path(__file__).parent / "serve_scripted.py"),)
    command = [sys.executable, *(program or scripted)]
    process = subprocess.Popen(
        [*command, "--data", str(data), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield _address(lines)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.put(line)
    lines.put(None)


def _address(lines: queue.Queue[str | None]) -> str:
    said = ""
    while True:
        line = lines.get(timeout=_PATIENCE)
        assert line is not None, f"The server has ended: {said}"
        said += line
        found = re.search(r"Listening on (http://\S+)", line)
        if found:
            return found.group(1)
