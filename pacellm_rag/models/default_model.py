"""Where the default model lies. (Installing it comes below.)"""

from __future__ import annotations

from pathlib import Path


def default_model_folder() -> Path:
    return Path("/tmp/smollm2")
