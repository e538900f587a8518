"""Parsing in a child process, so that a hostile file can only harm the child.

Knows processes, not formats. The child (`worker`) starts without site packages' start-up code, with
an almost empty environment, in a session of its own, and limits its own memory and CPU time before
it imports a parser. It gets the file over a pipe and never a path. The parent bounds the time and
all that it reads, and kills the child's whole process group at the end, however it ends. Where the
`resource` module is missing (Windows) only the time is bounded.

Running a parser costs 20 ms for the child and the parser's own import (pypdf 120 ms).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pacellm_rag.documents.messages import (
    Done,
    Failed,
    Message,
    Request,
    decode_message,
    read_frame,
    write_frame,
)

__all__ = ["run_parser"]

# The child sees the libraries that the parent sees, behind the standard library and without the
# working directory. -S leaves out .pth files, whose code could do anything before the limits.
_BOOT = (
    "import sys; sys.path += sys.argv[1:]; del sys.argv[1:]; "
    "from pacellm_rag.documents.worker import main; main()"
)
# Finding the interpreter's own libraries can need these; nothing else is passed on.
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_BYTES_PER_CHARACTER = 6  # JSON's longest escape; UTF-8 takes at most four
_FRAME_OVERHEAD = 64 * 1024
_SECONDS_TO_DIE = 5.0


def run_parser(
    request: Request, data: bytes, *, deadline: float, silence_seconds: float
) -> Generator[Message, None, None]:
    """Runs one parser on one file.

    Closing the iterator kills the child.

    Args:
        request: what to do.
        data: the whole file.
        deadline: on the clock of `time.monotonic`.
        silence_seconds: longest wait for the next message.

    Yields:
        What the child says. The last message is always `Done` or `Failed`.
    """
    try:
        child = _start()
    except OSError as error:
        yield Failed("start", str(error))
        return
    frames: queue.SimpleQueue[bytes | ValueError | None] = queue.SimpleQueue()
    assert child.stdin is not None  # both are pipes
    assert child.stdout is not None
    feeder = threading.Thread(target=_feed, args=(child.stdin, request, data), daemon=True)
    reader = threading.Thread(target=_collect, args=(child.stdout, request, frames), daemon=True)
    try:
        feeder.start()
        reader.start()
        while True:
            patience = max(min(silence_seconds, deadline - time.monotonic()), 0)
            try:
                frame = frames.get(timeout=patience)
            except queue.Empty:
                yield Failed("time", f"the next page took more than {patience:.1f} s")
                return
            message = _message(frame, child, request.memory_bytes)
            yield message
            if isinstance(message, (Done, Failed)):
                return
    finally:
        _kill(child)
        for thread, pipe in ((feeder, child.stdin), (reader, child.stdout)):
            with contextlib.suppress(RuntimeError):  # it was never started
                thread.join(_SECONDS_TO_DIE)
            if not thread.is_alive():
                with contextlib.suppress(OSError):
                    pipe.close()


def _start() -> subprocess.Popen[bytes]:
    here = ""
    with contextlib.suppress(FileNotFoundError):  # the working directory has been deleted
        here = os.path.realpath(os.getcwd())
    libraries = [
        path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) != here
    ]
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOT, _PACKAGE_ROOT, *libraries],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=os.path.abspath(os.sep),
        env=environment,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _feed(pipe: BinaryIO, request: Request, data: bytes) -> None:
    """Sends the request and the file; a child that stops listening is `_collect`'s concern."""
    with contextlib.suppress(OSError):
        write_frame(pipe, json.dumps(asdict(request)).encode())
        write_frame(pipe, data)


def _collect(
    pipe: BinaryIO, request: Request, frames: queue.SimpleQueue[bytes | ValueError | None]
) -> None:
    """Reads what the child says, never more than the request can need."""
    longest = _BYTES_PER_CHARACTER * request.max_page_characters + _FRAME_OVERHEAD
    left = _BYTES_PER_CHARACTER * request.max_characters + _FRAME_OVERHEAD
    left += request.max_pages * 2_048  # number, label, error, JSON's own characters
    try:
        while (frame := read_frame(pipe, min(longest, left))) is not None:
            left -= len(frame)
            frames.put(frame)
        frames.put(None)
    except (OSError, ValueError) as error:
        frames.put(ValueError(str(error)))


def _message(
    frame: bytes | ValueError | None, child: subprocess.Popen[bytes], memory_bytes: int
) -> Message:
    if frame is None:
        return _death(child, memory_bytes)
    if isinstance(frame, ValueError):
        return Failed("crash", f"the parser said too much: {frame}")
    try:
        return decode_message(frame)
    except ValueError as error:
        return Failed("crash", f"the parser said something unintelligible: {error}")


def _death(child: subprocess.Popen[bytes], memory_bytes: int) -> Failed:
    """Why a child ended that did not say so itself."""
    _kill(child)  # changes nothing for a process that has ended already
    code = child.returncode
    if code is None:
        return Failed("crash", "the parser process can not be ended")
    if code == -getattr(signal, "SIGXCPU", 0):
        return Failed("cpu", "the CPU time ran out")
    if code < 0:
        # The C++ parser aborts where it gets no memory: the same signal as for its other faults.
        name = signal.Signals(-code).name
        return Failed("crash", f"ended by {name}; it may use {memory_bytes // 2**20} MB of memory")
    return Failed("crash", f"ended with status {code}")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and all that it started. Safe to repeat."""
    if child.returncode is not None:
        return  # waited for already; its number may belong to another process by now
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_SECONDS_TO_DIE)
