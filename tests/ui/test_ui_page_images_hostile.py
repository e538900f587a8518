"""A hostile file, or a process that breaks down, costs one image, never the server."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ui_page_files import blank_bomb, form_bomb, pdf, shading_bomb

from pacellm_rag_ui import page_process
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.pages import PageImages, RenderLimits

TIGHT = RenderLimits(cpu_seconds=2, wall_seconds=6, memory_bytes=512 * 1024**2)
READ = (
    "import sys, struct\n"
    "def frame():\n"
    "    n, = struct.unpack('>I', sys.stdin.buffer.read(4)); return sys.stdin.buffer.read(n)\n"
    "def say(body):\n"
    "    sys.stdout.buffer.write(struct.pack('>I', len(body)) + body); sys.stdout.flush()\n"
    "request, data = frame(), frame()\n"
)
DRAWN = 'say(b\'{"width": 1, "height": 1, "marked": false, "pages": 1}\')\n'


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good"
    path.write_bytes(pdf(["The tide is high"]))
    return path


def written(folder: Path, data: bytes) -> Path:
    path = folder / "hostile"
    path.write_bytes(data)
    return path


BOMBS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "hours of computing": (shading_bomb, {"time"}),
    "forms within forms": (form_bomb, {"time", "crash", "memory"}),
    "gigabytes of blanks": (blank_bomb, {"crash", "memory", "time"}),
    "no PDF": (lambda: b"MZ" * 5_000, {"damaged"}),
    "nothing": (lambda: b"", {"damaged"}),
    "half a file": (lambda: pdf(["The tide"] * 50)[:3_000], {"damaged"}),
    "only a head": (lambda: b"%PDF-1.7\n", {"damaged"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_file_costs_one_image_and_the_next_file_is_drawn(
    tmp_path: Path, good: Path, name: str
) -> None:
    make, expected = BOMBS[name]
    path = written(tmp_path, make())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with PageImages(limits=TIGHT) as images:
        with pytest.raises(PageImageError) as caught:
            images.render(path, 1)
        assert caught.value.trouble in expected
        assert caught.value.status == 422
        assert "Open the original instead" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert time.monotonic() - start < TIGHT.wall_seconds + 3
        again = time.monotonic()
        with pytest.raises(PageImageError):
            images.render(path, 1)
        assert time.monotonic() - again < 0.5  # it is not tried again at once
        assert images.render(good, 1, quote="tide").marked
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB


def test_other_files_are_drawn_while_a_hostile_one_keeps_a_process_busy(
    tmp_path: Path, good: Path
) -> None:
    hostile = written(tmp_path, shading_bomb())
    troubles: list[str] = []

    def ask(number: int) -> None:
        try:
            images.render(hostile, number)
        except PageImageError as error:
            troubles.append(error.trouble)

    with PageImages(limits=TIGHT, processes=2, patience_seconds=0.5) as images:
        # Pages of one hostile file, more than there are processes: they wait for one another.
        threads = [threading.Thread(target=ask, args=(1,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        assert images.render(good, 1, quote="tide").marked
        assert time.monotonic() - start < 2
        for thread in threads:
            thread.join()
    assert sorted(troubles) == ["busy", "busy", "busy", "time"]


def test_a_file_too_large_is_not_opened(good: Path) -> None:
    limits = RenderLimits(file_bytes=100)
    with PageImages(limits=limits) as images:
        with pytest.raises(PageImageError, match="files up to 100 bytes") as caught:
            images.render(good, 1)
        assert caught.value.trouble == "size"


def test_more_callers_than_may_wait_are_told_to_come_again(tmp_path: Path) -> None:
    hostile = written(tmp_path, shading_bomb())
    with PageImages(limits=TIGHT, waiting=0) as images:
        first = threading.Thread(
            target=pytest.raises, args=(PageImageError, images.render, hostile, 1)
        )
        first.start()
        time.sleep(0.2)
        start = time.monotonic()
        with pytest.raises(PageImageError, match="Try again in a moment") as caught:
            images.render(hostile, 2)
        assert time.monotonic() - start < 0.5
        assert (caught.value.trouble, caught.value.status) == ("busy", 503)
        first.join()


def test_closing_lets_those_go_that_wait(tmp_path: Path) -> None:
    hostile = written(tmp_path, shading_bomb())
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(PageImageError) as caught:
            images.render(hostile, 1)
        said.append(caught.value.trouble)

    images = PageImages(limits=TIGHT)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    images.close()
    for thread in threads:
        thread.join()
    assert said[0] == "busy"
    assert len(said) == 2
    assert not [c for c in psutil.Process().children() if "page_worker" in " ".join(c.cmdline())]


BROKEN = {
    "ends at once": ("", "crash"),
    "aborts": ("import os; os.abort()", "crash"),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "crash"),
    "reads and says nothing": (READ, "crash"),
    "hangs before it reads": ("import time; time.sleep(60)", "time"),
    "hangs when it has read": (READ + "import time; time.sleep(60)", "time"),
    "uses up its CPU time": (READ + "import os, signal; os.kill(0, signal.SIGXCPU)", "time"),
    "says no JSON": (READ + "say(b'hello')", "crash"),
    "says nested JSON": (READ + "say(b'[' * 4000)", "crash"),
    "says a list": (READ + "say(b'[1]')", "crash"),
    "says other fields": (READ + "say(b'{\"width\": 1}')", "crash"),
    "says other types": (READ + DRAWN.replace("false", "0") + "say(b'RIFF0000WEBP')", "crash"),
    "says an unknown trouble": (READ + 'say(b\'{"trouble": "<b>", "pages": 1}\')', "crash"),
    "says a header without end": (READ + "say(b' ' * 10_000_000)", "crash"),
    "sends no image": (READ + DRAWN, "crash"),
    "sends half an image": (
        READ
        + DRAWN
        + "sys.stdout.buffer.write(struct.pack('>I', 9) + b'RIFF'); sys.stdout.flush()",
        "crash",
    ),
    "claims a huge image": (
        READ + DRAWN + "sys.stdout.buffer.write(b'\\xff' * 100); sys.stdout.flush()\n"
        "import time; time.sleep(60)",
        "crash",
    ),
    "sends HTML for an image": (READ + DRAWN + "say(b'<script>alert(1)</script>')", "crash"),
    "starts a process that holds the pipe": (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3)\n",
        "crash",
    ),
    "has no library": ("import sys; sys.modules['pypdfium2'] = None\n", "start"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_process_that_breaks_down_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, good: Path, name: str
) -> None:
    code, trouble = BROKEN[name]
    boot = code if trouble != "start" else code + page_process._BOOT
    monkeypatch.setattr(page_process, "_BOOT", boot)
    start = time.monotonic()
    with (
        PageImages(limits=RenderLimits(wall_seconds=2)) as images,
        pytest.raises(PageImageError) as caught,
    ):
        images.render(good, 1)
    if name != "starts a process that holds the pipe":  # only the clock helps there
        assert caught.value.trouble == trouble
    assert time.monotonic() - start < 12


def test_no_process_can_be_started_is_said_so(monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.setattr(page_process.sys, "executable", "/nothing/python")
    with PageImages() as images, pytest.raises(PageImageError, match="can not start") as caught:
        images.render(good, 1)
    assert caught.value.status == 503
    monkeypatch.undo()
    with PageImages() as images:
        assert images.render(good, 1).pages == 1


def test_the_process_sees_no_secrets_no_paths_and_limits_itself(
    monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    monkeypatch.setenv("PACELLM_SECRET", "sesame")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    process = page_process.PageProcess(TIGHT)
    try:
        child = psutil.Process(process._child.pid)
        deadline = time.monotonic() + 10
        while child.rlimit(psutil.RLIMIT_FSIZE)[0] != 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert child.rlimit(psutil.RLIMIT_FSIZE)[0] == 0
        assert child.rlimit(psutil.RLIMIT_AS)[0] == TIGHT.memory_bytes
        assert child.rlimit(psutil.RLIMIT_CPU)[0] == TIGHT.cpu_seconds
        assert not {"PACELLM_SECRET", "PYTHONPATH", "HOME"} & set(child.environ())
        assert child.cwd() == os.path.abspath(os.sep)
        assert os.getsid(child.pid) != os.getsid(0)
        assert str(good) not in " ".join(child.cmdline())
    finally:
        process.close()
    assert process._child.returncode == -signal.SIGKILL
    process.close()
