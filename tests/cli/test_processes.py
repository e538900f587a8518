"""The shell as a process: signals, pipes, terminals, start-up."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="needs a POSIX system")

SCRIPTED = [sys.executable, str(Path(__file__).with_name("scripted_shell.py"))]
PROMPT_TO_STOP = 3.0


def start(*command: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*SCRIPTED, *command], **streams)  # type: ignore[call-overload]


class OnTerminal:
    """A process whose three streams are one terminal."""

    def __init__(self, command: Sequence[str]) -> None:
        self._end, inner = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [*SCRIPTED, *command], stdin=inner, stdout=inner, stderr=inner, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Reads what is shown until it holds a text, which is then taken off."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = max(deadline - time.monotonic(), 0)
            assert select.select([self._end], [], [], left)[0], f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._end, 4096).decode()
        self.shown = self.shown.split(text, 1)[1]

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self) -> None:
        # Python's readline misses a signal in the instant between a key and the wait for the next
        time.sleep(0.2)
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Waits for the end; `shown` then holds all the rest."""
        try:
            while True:
                piece = os.read(self._end, 4096)
                if not piece:
                    break
                self.shown += piece.decode()
        except OSError:  # Linux: the other end is closed
            pass
        return self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)


@pytest.fixture
def on_terminal() -> Iterator[type[OnTerminal]]:
    opened: list[OnTerminal] = []

    class Tracked(OnTerminal):
        def __init__(self, command: Sequence[str]) -> None:
            super().__init__(command)
            opened.append(self)

    yield Tracked
    for process in opened:
        process.close()


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from pacellm_rag.cli import shell\n"
        "for arguments in (['--help'], ['ask', '--help'], ['models', 'install', '--help']):\n"
        "    shell.main(arguments, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max-new-tokens" in done.stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pacellm_rag", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "pacellm-rag")


def test_ctrl_c_while_reading_stops_at_once_and_quietly(report: str) -> None:
    with start(
        "reading", "ask", report, "-q", "Why?", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any(line == b"reading\n" for line in process.stderr)
        interrupted = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
        code = process.wait(10)
    assert time.monotonic() - interrupted < PROMPT_TO_STOP
    assert code == 130
    assert "Traceback" not in rest
    assert rest.endswith("Stopped.\n")


def test_ctrl_c_while_answering_ends_the_line(report: str) -> None:
    with start(
        "answering", "ask", report, "-q", "Why?", "--max-new-tokens", "1000",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"word"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert output.endswith(b"\n")
    assert b"Traceback" not in errors


def test_termination_ends_with_143(report: str) -> None:
    with start("reading", "ask", report, "-q", "Why?", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(line == b"reading\n" for line in process.stderr)
        process.terminate()
        rest = process.stderr.read()
    assert process.returncode == 143
    assert b"Traceback" not in rest


def test_a_reader_of_the_output_that_went_away_ends_it_quietly(report: str) -> None:
    with start(
        "answering", "ask", report, "-q", "Why?", "--max-new-tokens", "1000",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        errors = process.stderr.read().decode()
        code = process.wait(10)
    assert code == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_progress_is_shown_on_a_terminal_and_taken_down_by_ctrl_c(
    report: str, on_terminal: type[OnTerminal]
) -> None:
    terminal = on_terminal(["reading", "ask", report, "-q", "Why?"])
    terminal.wait_for("of 100,000 tokens, 100 tokens/s, 16 min 40 s left")
    interrupted = time.monotonic()
    terminal.interrupt()
    assert terminal.end() == 130
    assert time.monotonic() - interrupted < PROMPT_TO_STOP
    assert "\x1b[?25h" in terminal.shown  # the cursor is back
    assert "\x1b[2K" in terminal.shown  # the bar is wiped
    assert "Stopped." in terminal.shown.rsplit("\x1b[?25h")[-1]
    assert "Traceback" not in terminal.shown


def test_no_progress_is_shown_when_quiet(report: str, on_terminal: type[OnTerminal]) -> None:
    terminal = on_terminal(["plain", "ask", report, "-q", "Why?", "--quiet", "--no-citations"])
    assert terminal.end() == 0
    assert terminal.shown == "Yes.\r\n"


def test_ctrl_c_in_a_chat_stops_the_answer_then_clears_the_line_then_leaves(
    report: str, on_terminal: type[OnTerminal]
) -> None:
    terminal = on_terminal(["answering", "chat", report, "--max-new-tokens", "1000"])
    terminal.wait_for("> ")
    terminal.type("Why?\r")
    terminal.wait_for("word word")
    terminal.interrupt()
    terminal.wait_for("Stopped.")
    terminal.wait_for("> ")
    terminal.type("half a que")
    terminal.wait_for("half a que")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


def test_ctrl_d_leaves_a_chat(report: str, on_terminal: type[OnTerminal]) -> None:
    terminal = on_terminal(["plain", "chat", report])
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
