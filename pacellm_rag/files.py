"""Where this package keeps its files, and how it writes them: whole or not at all.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

__all__ = ["cache_folder", "config_file", "readings_folder", "write_atomically"]

_APP = "pacellm-rag"


def cache_folder() -> Path:
    """The folder for things that can be made again: `PACELLM_RAG_CACHE`, else the user's cache."""
    named = os.environ.get("PACELLM_RAG_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir(_APP))


def readings_folder() -> Path:
    """The folder for what models have read: `PACELLM_RAG_READINGS`, else within `cache_folder`."""
    named = os.environ.get("PACELLM_RAG_READINGS")
    return Path(named).expanduser() if named else cache_folder() / "readings"


def config_file() -> Path:
    """The user's settings: `PACELLM_RAG_CONFIG`, else `config.toml` in the user's config folder."""
    named = os.environ.get("PACELLM_RAG_CONFIG")
    if named:
        return Path(named).expanduser()
    return Path(platformdirs.user_config_dir(_APP)) / "config.toml"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that other processes, and a crash, see the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
