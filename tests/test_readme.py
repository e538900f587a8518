"""What the README and the examples say is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("$ pacellm-rag")
]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))

pytestmark = pytest.mark.slow


def run(command: list[str], real_cache_folder: str | None, readings: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PACELLM_RAG_CACHE"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment["PACELLM_RAG_READINGS"] = str(readings)
    if real_cache_folder is not None:
        environment["PACELLM_RAG_CACHE"] = real_cache_folder
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of these keep what they have read: the documents are the same."""
    return tmp_path_factory.mktemp("readings")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(example: Path, real_cache_folder: str | None, readings: Path) -> None:
    assert run([sys.executable, str(example)], real_cache_folder, readings).strip()


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_of_the_readme_runs(
    code: str, real_cache_folder: str | None, readings: Path
) -> None:
    assert run([sys.executable, "-c", code], real_cache_folder, readings).strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(
    command: str, real_cache_folder: str | None, readings: Path
) -> None:
    assert run(shlex.split(command), real_cache_folder, readings).strip()


def test_the_readme_has_code_and_commands_to_run() -> None:
    assert PYTHON
    assert COMMANDS
    assert EXAMPLES
