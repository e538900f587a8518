"""Twenty sessions at once leave the memory as they found it, within a minute after they leave.

Twice over: in this process, where every object can be counted, and over HTTP with the whole page,
where only the size of the process can. A wave of sessions goes before, as what is done once
(imports, caches of a fixed size, the allocator's own pools) is no leak.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from gradio_client import Client, handle_file
from page_doubles import Site, last, put, until
from served_page import served

from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.reading import Reading
from pacellm_rag_ui.session import Session

VISITORS = 20
A_MINUTE = 60.0
PAGES = ["Some words of a page that is neither short nor long. " * 20] * 8  # 9 KB a file

TRACED_TOLERANCE = 500_000  # bytes; what the sessions hold while they are there is far more
RESIDENT_TOLERANCE = 40_000_000  # bytes; the allocator gives memory back when it likes


class _Forgetful(ScriptedModel):
    """Remembers no prompts, which would be the double's own leak; waits so that turns mix."""

    def prefill(self, token_ids: Any, **more: Any) -> Any:
        time.sleep(0.005)
        state = super().prefill(token_ids, **more)
        self.prefills.clear()
        return state

    def stream(self, *arguments: Any, **more: Any) -> Any:
        generation = super().stream(*arguments, **more)
        self.prompts.clear()
        self.generations.clear()
        return generation


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("pacellm-")]


def _living(*kinds: type) -> int:
    gc.collect()
    return sum(type(each) in kinds for each in gc.get_objects())


def _wave(visit: Callable[[int], None]) -> None:
    """All visitors at once; the first error is raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            visit(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def _within_a_minute(true: Callable[[], bool], why: str) -> None:
    until(true, why, A_MINUTE)


def test_the_handlers_hold_nothing_a_minute_after_twenty_left(tmp_path: Path, traced: None) -> None:
    others = _living(Session, Reading)  # of other tests
    held: list[int] = []
    together = threading.Barrier(VISITORS)

    model = _Forgetful(["A word [D1 p2]."], context_window=100_000)
    with Site(tmp_path, model) as site:

        def visit(number: int) -> None:
            owner, name = f"owner{number}-{len(held)}", f"page{number}"
            page = site.page(owner, name)
            text = "\f".join([f"{owner}.", *PAGES]).encode()
            upload = put(tmp_path / "up" / owner, "a.txt", text)
            assert last(site.handlers.add_files(page, [upload])).state == "ready"
            assert last(site.handlers.ask(page, "What?")).state == "done"
            stopped = site.handlers.ask(page, "And?")
            next(stopped)
            site.handlers.stop(page)
            assert last([*stopped, "over"]) == "over"
            assert len(last(site.handlers.ask_every(page, "Which?")).rows) >= 1
            if together.wait(60) == 0:  # all are there, with what they have read
                held.append(tracemalloc.get_traced_memory()[0])
            together.wait(60)
            site.handlers.leave(owner, name)

        _wave(visit)
        _within_a_minute(lambda: site.handlers.open_pages == 0, "the first wave leaves")
        _within_a_minute(lambda: not _threads(), "its threads end")
        gc.collect()
        begin = tracemalloc.get_traced_memory()[0]
        _wave(visit)
        _within_a_minute(lambda: site.handlers.open_pages == 0, "all pages are forgotten")
        _within_a_minute(lambda: not _threads(), "all threads end")
        _within_a_minute(lambda: _living(Session, Reading) <= others, "nothing read is held")
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - begin
    assert held[1] - begin > 5 * TRACED_TOLERANCE, "The sessions held too little to tell by."
    assert left < TRACED_TOLERANCE, f"{left:,} bytes are held on to."


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_server_is_as_large_as_before_a_minute_after_twenty_left(tmp_path: Path) -> None:
    pace = ("--word-pause", "0.02", "--window-pause", "0.02", "--context", "100000")

    def visit(number: int) -> None:
        path = tmp_path / f"{number}.txt"
        path.write_text("\f".join([f"Report {number}, {time.monotonic()}.", *PAGES]))
        client = Client(url, verbose=False, analytics_enabled=False)
        try:
            [sent] = _told(lambda: client.predict([handle_file(str(path))], api_name="/upload"))
            assert sent["state"] == "ready"
            asked = _told(lambda: client.submit("What?", api_name="/ask").result())
            assert asked["state"] == "done"
            job = client.submit("And then?", api_name="/ask")
            for view in job:
                if view["text"]:
                    _told(lambda: client.predict(api_name="/stop"))
        finally:
            client.close()

    with served(tmp_path / "data", "--answer", "word " * 20 + "[D1 p1].", *pace) as url:
        process = _server_process()
        _wave(visit)
        begin, threads = _settled(process)
        _wave(visit)
        end = time.monotonic() + A_MINUTE
        while _grown(process, begin) and time.monotonic() < end:
            time.sleep(1)
        resident = process.memory_info().rss - begin
        assert resident < RESIDENT_TOLERANCE, f"The server has grown by {resident:,} bytes."
        # pools keep some for a while; one left behind by each visit would be twenty
        assert process.num_threads() < threads + 20


def _told(call: Callable[[], Any]) -> Any:
    """What a call returns; calls again where Gradio's client gave it up.

    It does so with a call that it sends while the server ends its stream of events, which the
    server does whenever nothing is pending.
    """
    for _ in range(5):
        with suppress(CancelledError):
            return call()
    raise AssertionError("Gradio's client gave up five times.")


def _server_process() -> psutil.Process:
    [found] = [
        each
        for each in psutil.Process().children()
        if any("serve_scripted" in part for part in each.cmdline())
    ]
    return found


def _settled(process: psutil.Process) -> tuple[int, int]:
    """The size of a process, and its threads, once nothing goes on in it."""
    seen = [process.memory_info().rss]
    for _ in range(20):
        time.sleep(0.5)
        seen.append(process.memory_info().rss)
        if max(seen[-4:]) - min(seen[-4:]) < 1_000_000 and len(seen) > 4:
            break
    return seen[-1], process.num_threads()


def _grown(process: psutil.Process, begin: int) -> bool:
    return process.memory_info().rss - begin >= RESIDENT_TOLERANCE
