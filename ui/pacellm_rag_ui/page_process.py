"""One page process, seen from the server: started, asked once, ended.

Knows processes and pipes, not PDF. The process gets the file over a pipe, never a path, with an
almost empty environment, in a session of its own. The parent bounds the time and all that it reads,
and kills the process group however it ends. Where the `resource` module is missing (Windows) only
the time is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import pacellm_rag
from pacellm_rag.documents.messages import read_frame, write_frame
from pacellm_rag_ui.page_errors import PageImageError, Trouble
from pacellm_rag_ui.page_messages import (
    LARGEST_IMAGE,
    LONGEST_HEADER,
    Drawn,
    PageRequest,
    RenderLimits,
    Undrawn,
    decode_reply,
)

__all__ = ["PageProcess"]

# The process sees the libraries that the parent sees, behind the standard library and without the
# working directory. -S leaves out .pth files, whose code could do anything before the limits.
_BOOT = (
    "import sys; n = int(sys.argv[1]); sys.path += sys.argv[2:2 + n]; del sys.argv[1:2 + n]; "
    "from pacellm_rag_ui.page_worker import main; main()"
)
# Finding the interpreter's own libraries can need these; nothing else is passed on.
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_ROOTS = [str(Path(__file__).resolve().parents[1])]
_SECONDS_TO_DIE = 5.0
_LENGTH = struct.Struct(">I")  # of a frame, as `pacellm_rag.documents.messages` writes it

_Reply = tuple[Drawn | Undrawn, bytes]


class PageProcess:
    """A process that draws one page. Use it once, and close it."""

    def __init__(self, limits: RenderLimits) -> None:
        """Starts the process; returns before it is ready.

        Raises:
            PageImageError: the system starts none.
        """
        self._limits = limits
        here = ""
        with contextlib.suppress(FileNotFoundError):  # the working directory has been deleted
            here = os.path.realpath(os.getcwd())
        roots = [*_ROOTS, *(str(Path(root).resolve().parent) for root in pacellm_rag.__path__)]
        paths = [
            *roots,
            *(path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) != here),
        ]
        settings = json.dumps(asdict(limits))
        command = [sys.executable, "-I", "-S", "-c", _BOOT, str(len(paths)), *paths, settings]
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=os.path.abspath(os.sep),
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise PageImageError(
                "The server can not start the process that draws pages. Try again later.", "start"
            ) from error
        self._threads: list[threading.Thread] = []

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._child.poll() is None

    def draw(self, path: Path, request: PageRequest) -> tuple[Drawn, bytes]:
        """Draws one page of a file.

        Returns:
            What was drawn, and its WebP image.

        Raises:
            PageImageError: it was not drawn.
        """
        with _open(path, self._limits) as file:
            replies: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
            assert self._child.stdin is not None  # both are pipes
            assert self._child.stdout is not None
            work = (
                (_feed, (self._child.stdin, request, file)),
                (_collect, (self._child.stdout, replies)),
            )
            self._threads = [threading.Thread(target=t, args=a, daemon=True) for t, a in work]
            try:
                for thread in self._threads:
                    thread.start()
                reply = replies.get(timeout=self._limits.wall_seconds)
            except queue.Empty:
                raise self._error("time", request) from None
            except RuntimeError as error:
                raise self._error("start", request) from error
            finally:
                self.close()
        if reply is None:
            raise self._error(self._death(), request)
        said, image = reply
        if isinstance(said, Undrawn):
            raise self._error(said.trouble, request, said.pages)
        return said, image

    def close(self) -> None:
        """Ends the process and all that it started. Safe to repeat."""
        child = self._child
        if child.returncode is None:
            with contextlib.suppress(OSError):
                if sys.platform == "win32":
                    child.kill()
                else:
                    os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_SECONDS_TO_DIE)
        until = time.monotonic() + _SECONDS_TO_DIE
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # it was never started
                thread.join(max(until - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _death(self) -> Trouble:
        """Why it ended that did not say so itself."""
        return "time" if self._child.returncode == -getattr(signal, "SIGXCPU", 0) else "crash"

    def _error(self, trouble: Trouble, request: PageRequest, pages: int = 0) -> PageImageError:
        limits, page = self._limits, f"Page {request.number}"
        seconds = min(limits.cpu_seconds, limits.wall_seconds)
        memory = f"{limits.memory_bytes // 2**20} MB of memory"
        original = "Open the original instead."
        texts: dict[Trouble, str] = {
            "no_page": f"There is no page {request.number}: the file has {pages} pages.",
            "damaged": f"{page} can not be drawn: the file is damaged there. {original}",
            "password": f"{page} can not be drawn: the file needs a password. {original}",
            "time": f"{page} took longer to draw than {seconds:g} s. {original}",
            "memory": f"{page} needs more to draw than the {memory} allowed. {original}",
            "crash": f"{page} can not be drawn: the drawing process broke down over it; "
            f"it may use {memory}. {original}",
            "start": "The process that draws pages could not work. Check that pypdfium2 and Pillow "
            "are installed on the server, and try again.",
        }
        return PageImageError(texts.get(trouble, f"{page} can not be drawn. {original}"), trouble)


def _open(path: Path, limits: RenderLimits) -> BinaryIO:
    try:
        file = path.open("rb")
    except (OSError, ValueError):
        raise PageImageError("The file is no longer here. Add it again.", "no_file") from None
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= limits.file_bytes:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise PageImageError("The file is no longer here. Add it again.", "no_file")
    raise PageImageError(
        f"The file has {status.st_size:,} bytes; pages are drawn of files up to "
        f"{limits.file_bytes:,} bytes. Open the original instead.",
        "size",
    )


def _feed(pipe: BinaryIO, request: PageRequest, file: BinaryIO) -> None:
    """Sends the request and the file; a process that stops listening is `_collect`'s concern."""
    with contextlib.suppress(OSError, ValueError):
        write_frame(pipe, json.dumps(asdict(request)).encode())
        pipe.write(_LENGTH.pack(os.fstat(file.fileno()).st_size))
        shutil.copyfileobj(file, pipe, 1024**2)
        pipe.close()  # a file that has become shorter ends here


def _collect(pipe: BinaryIO, replies: queue.SimpleQueue[_Reply | None]) -> None:
    """Reads one reply, never more than an image can be."""
    try:
        header = read_frame(pipe, LONGEST_HEADER)
        said = decode_reply(header) if header is not None else None
        image = read_frame(pipe, LARGEST_IMAGE) if isinstance(said, Drawn) else b""
        if said is None or image is None:
            replies.put(None)
        elif image[:4] + image[8:12] == b"RIFFWEBP" or isinstance(said, Undrawn):
            replies.put((said, image))
        else:
            replies.put(None)
    except (OSError, ValueError):
        replies.put(None)
