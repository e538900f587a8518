"""Where and when a run happens: the machine, the libraries, the commit, the command.

For people who read results; results do not depend on it. Knows no model.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["commit_of", "surroundings"]

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
_PATIENCE = 10  # seconds for git


def surroundings(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """What there is to say about this machine and process, as JSON can hold it.

    Args:
        arguments: of the command; None takes those of this process.
    """
    import psutil

    command = sys.argv if arguments is None else ["pacellm-rag", *arguments]
    program = Path(command[0]).name.replace("__main__.py", "pacellm-rag")  # `python -m`
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([program, *command[1:]]),
        "commit": commit_of(Path(__file__).parent),
        "hardware": {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "memory_bytes": int(psutil.virtual_memory().total),
            "gpus": _gpus(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        },
    }


def commit_of(folder: Path) -> str | None:
    """The git commit that a folder's files are of, with "+" where they were changed since.

    None where the folder is not kept by git, or git can not tell.
    """
    if not _git(folder, "ls-files", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:
        return None
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name, which Linux tells in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
