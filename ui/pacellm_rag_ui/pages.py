"""Images of PDF pages with a quotation marked, drawn where a hostile file can do no harm.

Every image is drawn by a process of its own (`page_process`), of which one waits ready. Images and
failures are kept for a while. Knows nothing of owners: who may see a file is the caller's concern.
Safe to call from many threads; calls block.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.page_messages import PageRequest, RenderLimits
from pacellm_rag_ui.page_process import PageProcess

__all__ = ["PageImage", "PageImages", "render_page"]

_DEFAULT_LIMITS = RenderLimits()
_NARROWEST, _WIDEST = 100, 2_000
_LONGEST_QUOTE = 4_000
_LONGEST_PASSWORD = 1_000
_LASTING = frozenset({"damaged", "memory", "crash", "time", "no_page", "password", "size"})


@dataclass(frozen=True)
class PageImage:
    """The image of a page.

    Attributes:
        webp: the image file.
        width: in pixels.
        height: in pixels.
        marked: whether the quotation was found and is marked.
        pages: how many the file has.
    """

    webp: bytes
    width: int
    height: int
    marked: bool
    pages: int


@dataclass(frozen=True)
class _Key:
    """What an image was drawn of; a file that has changed is another one.

    In place of the password stands a digest that is of no use elsewhere.
    """

    path: str
    version: tuple[int, int, int]  # inode, size, time of last change
    request: PageRequest


@dataclass(frozen=True)
class _Kept:
    result: PageImage | PageImageError
    bytes: int
    until: float


class PageImages:
    """Draws pages for a server: few at a time, and never the same one twice in a row."""

    def __init__(
        self,
        *,
        limits: RenderLimits = _DEFAULT_LIMITS,
        processes: int = 2,
        waiting: int = 16,
        patience_seconds: float = 20.0,
        cache_bytes: int = 64 * 1024**2,
        failure_seconds: float = 300.0,
    ) -> None:
        """Starts nothing yet.

        Args:
            limits: what one image may cost.
            processes: most images drawn at a time, and of one file one at a time: one hostile file
                never holds up the others.
            waiting: most calls that wait for their turn; further ones are told to come again.
            patience_seconds: longest wait for the turn.
            cache_bytes: size of all images kept, 800 ordinary ones.
            failure_seconds: how long a page that could not be drawn is not tried again.

        Raises:
            ConfigurationError: there would be no process.
        """
        if processes < 1:
            raise ConfigurationError(f"processes is {processes}; it must be 1 or more.")
        self._limits = limits
        self._processes = processes
        self._waiting_allowed = waiting
        self._patience = patience_seconds
        self._cache_bytes = cache_bytes
        self._failure_seconds = failure_seconds
        self._turn = threading.Condition()  # guards all that follows
        self._drawing: set[str] = set()  # paths
        self._waiting = 0
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._spare: PageProcess | None = None
        self._closed = False
        self._salt = os.urandom(16)

    def __enter__(self) -> PageImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def render(
        self, path: Path, number: int, *, quote: str = "", width: int = 1000, password: str = ""
    ) -> PageImage:
        """The image of a page.

        Args:
            path: a PDF file.
            number: physical page number, from 1.
            quote: what to mark; beyond 4,000 characters it is cut.
            width: in pixels, taken as 100 to 2,000. Very high pages get narrower.
            password: of an encrypted file.

        Raises:
            PageImageError: the page can not be drawn; the message is for people.
        """
        request = _request(number, quote, width, password)
        secret = hashlib.sha256(self._salt + password.encode()).hexdigest() if password else ""
        key = _Key(str(path), _version(path), replace(request, password=secret))
        with self._turn:
            known = self._look_up(key)
            if known is None:
                self._wait_for_turn(key.path)
                known = self._look_up(key)  # another call may have drawn it meanwhile
                if known is None:
                    self._drawing.add(key.path)
        if known is None:
            known = self._draw(key, path, request)
        if isinstance(known, PageImageError):
            raise PageImageError(str(known), known.trouble)
        return known

    def forget(self, path: Path) -> None:
        """Drops all images of a file."""
        with self._turn:
            for key in [key for key in self._kept if key.path == str(path)]:
                self._kept_bytes -= self._kept.pop(key).bytes

    def close(self) -> None:
        """Ends the waiting process and drops all images; later calls are refused."""
        with self._turn:
            self._closed = True
            spare, self._spare = self._spare, None
            self._kept.clear()
            self._kept_bytes = 0
            self._turn.notify_all()
        if spare:
            spare.close()

    def _draw(self, key: _Key, path: Path, request: PageRequest) -> PageImage | PageImageError:
        result: PageImage | PageImageError
        try:
            result = _drawn(self._take_process(), path, request)
        except PageImageError as error:
            result = error
        finally:
            with self._turn:
                self._drawing.discard(key.path)
                self._turn.notify_all()
        with self._turn:
            self._keep(key, result)
        self._make_spare()
        return result

    def _wait_for_turn(self, path: str) -> None:
        """Waits until the file may be drawn; holds the lock before and after.

        Raises:
            PageImageError: it takes too long, or too many wait.
        """
        until = time.monotonic() + self._patience
        if self._busy(path) and self._waiting >= self._waiting_allowed:
            raise _busy(f"{self._waiting} page images are waited for already")
        self._waiting += 1
        try:
            while self._busy(path) and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._turn.wait(left):
                    raise _busy(f"the image could not be drawn within {self._patience:g} s")
        finally:
            self._waiting -= 1
        if self._closed:
            raise _busy("the server is shutting down")

    def _busy(self, path: str) -> bool:
        return path in self._drawing or len(self._drawing) >= self._processes

    def _look_up(self, key: _Key) -> PageImage | PageImageError | None:
        kept = self._kept.get(key)
        if kept is None or time.monotonic() > kept.until:
            return None
        self._kept.move_to_end(key)
        return kept.result

    def _keep(self, key: _Key, result: PageImage | PageImageError) -> None:
        if self._closed:
            return
        if isinstance(result, PageImage):
            new = _Kept(result, len(result.webp) + len(key.request.quote) + 1024, float("inf"))
        elif result.trouble in _LASTING:
            size = len(key.request.quote) + 2048
            new = _Kept(result, size, time.monotonic() + self._failure_seconds)
        else:
            return
        old = self._kept.pop(key, None)
        self._kept_bytes += new.bytes - (old.bytes if old else 0)
        self._kept[key] = new
        while self._kept_bytes > self._cache_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.bytes

    def _take_process(self) -> PageProcess:
        with self._turn:
            spare, self._spare = self._spare, None
        if spare and spare.alive:
            return spare
        if spare:
            spare.close()
        return PageProcess(self._limits)

    def _make_spare(self) -> None:
        """Starts the process for the next image, so that nobody waits for its start."""
        with self._turn:
            if self._closed or self._spare:
                return
            try:
                self._spare = PageProcess(self._limits)
            except PageImageError:
                return  # the next call tries again, and says so


def render_page(
    path: Path, number: int, *, quote: str = "", width: int = 1000, password: str = ""
) -> PageImage:
    """The image of one page, by a process for it alone; for the arguments see `PageImages.render`.

    Raises:
        PageImageError: the page can not be drawn.
    """
    request = _request(number, quote, width, password)
    return _drawn(PageProcess(_DEFAULT_LIMITS), path, request)


def _drawn(process: PageProcess, path: Path, request: PageRequest) -> PageImage:
    try:
        said, webp = process.draw(path, request)
    finally:
        process.close()
    return PageImage(webp, said.width, said.height, said.marked, said.pages)


def _request(number: int, quote: str, width: int, password: str) -> PageRequest:
    return PageRequest(
        number=number,
        quote=" ".join(quote[:_LONGEST_QUOTE].split()),
        width=max(_NARROWEST, min(width, _WIDEST)),
        password=password[:_LONGEST_PASSWORD],
    )


def _version(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise PageImageError("The file is no longer here. Add it again.", "no_file") from None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _busy(why: str) -> PageImageError:
    return PageImageError(f"The server is busy: {why}. Try again in a moment.", "busy")
