"""The child process: what it may do, how it may die, what the parent reads of it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from pdf_factory import pages_pdf

from pacellm_rag.documents import load_document_bytes, sandbox
from pacellm_rag.documents.messages import (
    Failed,
    Message,
    Opened,
    PageText,
    Request,
    decode_message,
    encode_message,
)
from pacellm_rag.errors import DocumentError

REQUEST = Request(
    parser="pypdf",
    password="",
    pages=None,
    max_pages=10,
    max_page_characters=1_000,
    max_characters=10_000,
    max_unpacked_bytes=1_000_000,
    memory_bytes=300 * 1024**2,
    cpu_seconds=2,
)


def run(seconds: float = 5.0, silence: float = 5.0, request: Request = REQUEST) -> list[Message]:
    deadline = time.monotonic() + seconds
    return list(sandbox.run_parser(request, b"data", deadline=deadline, silence_seconds=silence))


def parsers() -> list[psutil.Process]:
    """The parser processes that run now."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if sandbox._BOOT in child.cmdline():
                found.append(child)
    return found


def child_runs(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Lets the child run a script in place of the worker, with `say` to send a frame's body."""
    say = (
        "import os, sys, time\n"
        "def say(body): os.write(1, len(body).to_bytes(4, 'big') + body)\n"
        'opened = b\'{"kind": "Opened", "pages": 3, "title": ""}\'\n'
    )
    monkeypatch.setattr(sandbox, "_BOOT", say + script)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("say(b'not json')", "crash"),
        ("say(b'[]')", "crash"),
        ('say(b\'{"kind": "Opened", "pages": "3", "title": ""}\')', "crash"),
        ('say(b\'{"kind": "PageText", "number": 1}\')', "crash"),
        ("say(b'[' * 50000)", "crash"),
        ("os.write(1, b'\\xff\\xff\\xff\\xff'); time.sleep(60)", "crash"),
        ("os.write(1, b'\\x00\\x00')", "crash"),
        ("while True: say(opened)", "crash"),
        ("sys.exit(3)", "crash"),
        ("os.abort()", "crash"),
        ("os.kill(os.getpid(), 9)", "crash"),
        ("os.kill(os.getpid(), 24)", "cpu"),
        ("os.close(1); time.sleep(60)", "crash"),
        ("time.sleep(60)", "time"),
    ],
)
def test_whatever_the_child_does_ends_in_a_failure_soon(
    monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    child_runs(monkeypatch, script)
    start = time.monotonic()
    last = run(seconds=1.5)[-1]
    assert isinstance(last, Failed)
    assert last.reason == reason
    assert time.monotonic() - start < 5


def test_what_came_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    child_runs(monkeypatch, "say(opened); os.abort()")
    opened, failed = run()
    assert opened == Opened(3, "")
    assert isinstance(failed, Failed)
    assert "SIGABRT" in failed.detail


def test_silence_ends_the_child_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    child_runs(monkeypatch, "say(opened); time.sleep(60)")
    start = time.monotonic()
    assert run(seconds=60, silence=0.5)[-1] == Failed("time", "the next page took more than 0.5 s")
    assert time.monotonic() - start < 5


def test_the_whole_process_group_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    child_runs(
        monkeypatch,
        "import subprocess\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        'say(b\'{"kind": "Opened", "pages": %d, "title": ""}\' % inner.pid)\n'
        "time.sleep(60)",
    )
    opened = run(seconds=3, silence=0.5)[0]
    assert isinstance(opened, Opened)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(opened.pages) and time.monotonic() < deadline:
        if psutil.Process(opened.pages).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(opened.pages)


def test_closing_early_leaves_no_process_and_no_thread_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child_runs(monkeypatch, "say(opened); time.sleep(60)")
    threads = threading.active_count()
    messages = sandbox.run_parser(
        REQUEST, b"x" * 10_000_000, deadline=time.monotonic() + 60, silence_seconds=60
    )
    assert next(messages) == Opened(3, "")
    messages.close()
    assert parsers() == []
    assert threading.active_count() == threads


def test_the_child_gets_neither_secrets_nor_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pypdf.py").write_text("raise SystemExit('imported from the working directory')")
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    document = load_document_bytes(pages_pdf(["fine"]), "a.pdf")
    assert document.pages[0].text == "fine"
    child_runs(
        monkeypatch,
        "text = str(sorted(os.environ)) + os.getcwd()\n"
        'say(b\'{"kind": "Opened", "pages": 1, "title": "\' + text.encode() + b\'"}\')',
    )
    opened = run()[0]
    assert isinstance(opened, Opened)
    assert "HF_TOKEN" not in opened.title
    assert opened.title.endswith("]/")


def test_the_worker_limits_its_own_memory_time_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    child_runs(
        monkeypatch,
        "import json, resource; sys.path += sys.argv[1:]\n"
        "from pacellm_rag.documents import worker\n"
        "class Reporter:\n  def parse(data, request):\n"
        "    for kind in ('AS', 'CPU', 'CORE', 'FSIZE'):\n"
        "        soft = resource.getrlimit(getattr(resource, 'RLIMIT_' + kind))[0]\n"
        "        yield worker.RawPage(len(kind), text=kind + ' ' + str(soft))\n"
        "sys.modules['fake'] = Reporter\n"
        "worker._PARSERS['pypdf'] = 'fake'\n"
        "worker.main()",
    )
    texts = [message.text for message in run() if isinstance(message, PageText)]
    assert texts == [f"AS {300 * 1024**2}", "CPU 2", "CORE 0", "FSIZE 0"]


@pytest.mark.parametrize(
    ("parser", "reason"),
    [
        ("hog = []\n    while True: hog.append(bytearray(10**7))\n    yield", "memory"),
        ("while True: pass\n    yield", "cpu"),
        ("print('noise on standard output')\n    os.write(1, b'more')\n    yield", None),
        ("raise ValueError('odd')\n    yield", "damaged"),
        ("import a_library_that_is_not_installed\n    yield", "start"),
    ],
)
def test_a_parser_s_own_faults_come_back_as_reasons(
    monkeypatch: pytest.MonkeyPatch, parser: str, reason: str | None
) -> None:
    child_runs(
        monkeypatch,
        "sys.path += sys.argv[1:]\n"
        "from pacellm_rag.documents import worker\n"
        "class Fake:\n  def parse(data, request):\n"
        f"    {parser} worker.RawPage(1)\n"
        "sys.modules['fake'] = Fake\n"
        "worker._PARSERS['pypdf'] = 'fake'\n"
        "worker.main()",
    )
    last = run(seconds=10, silence=10)[-1]
    assert (last.reason if isinstance(last, Failed) else None) == reason


def test_messages_survive_the_wire() -> None:
    for message in (
        Opened(3, "Ünïcödé \n\x00"),
        PageText(1, "iv", "text", False, True, "error"),
        Failed("memory", ""),
    ):
        assert decode_message(encode_message(message)) == message


class ChildKiller:
    """A progress callback that kills parsers once a page has arrived.

    Args:
        most: how many parsers to kill.
    """

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, done: int, total: int) -> None:
        for child in parsers():
            if done >= 5 and self.left:
                self.left -= 1
                child.kill()


@pytest.fixture(scope="module")
def long_pdf() -> bytes:
    return pages_pdf(
        ["\n".join([f"Line {line} of page {n}" for line in range(60)]) for n in range(400)]
    )


def test_a_parser_killed_half_way_is_replaced_by_the_other(long_pdf: bytes) -> None:
    killer = ChildKiller(most=1)
    document = load_document_bytes(long_pdf, "a.pdf", progress=killer)
    assert killer.left == 0
    assert all(page.text for page in document.pages)
    assert document.warnings == ()


def test_when_all_parsers_are_killed_the_warnings_name_the_missing_pages(long_pdf: bytes) -> None:
    document = load_document_bytes(long_pdf, "a.pdf", progress=ChildKiller(most=100))
    assert len(document.pages) == 400
    assert document.pages[0].text.startswith("Line 0 of page 0")
    assert [(w.kind, w.pages) for w in document.warnings] == [
        ("failed_pages", document.pages_without_text)
    ]
    assert 0 < len(document.pages_without_text) < 400


def test_documents_can_be_read_in_several_threads_at_once() -> None:
    files = [pages_pdf([f"text of file {n}"]) for n in range(6)]
    texts: dict[int, str] = {}

    def read(n: int) -> None:
        texts[n] = load_document_bytes(files[n], f"{n}.pdf").pages[0].text

    threads = [threading.Thread(target=read, args=(n,)) for n in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: f"text of file {n}" for n in range(len(files))}


def test_a_parser_that_can_not_be_started_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DocumentError, match="could not be started"):
        load_document_bytes(pages_pdf(["x"]), "a.pdf")
