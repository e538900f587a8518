"""All readings in a folder, of all models: listed, removed and checked without torch.

This is what the shell's `cache` does, and whoever has documents forgotten; `state_store` is what
models use. Knows bytes and names only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pacellm_rag.files import readings_folder
from pacellm_rag.models.piece_documents import SUFFIX, leave_out, with_documents
from pacellm_rag.models.stored_piece import (
    DamagedPieceError,
    Manifest,
    PieceFile,
    StoredPiece,
    all_piece_files,
    describe,
    entries,
    read_manifest,
    remove_file,
)

__all__ = [
    "forget_documents",
    "forget_readings",
    "list_pieces",
    "remove_leftovers",
    "remove_pieces",
    "verify_pieces",
]

logger = logging.getLogger(__name__)

_CHUNK = 2**20  # bytes
_BESIDE = (".lock", ".partial", SUFFIX)
_PATIENCE = 10.0  # seconds that a piece may be written by somebody while it is to be forgotten


def list_pieces(folder: Path) -> list[StoredPiece]:
    """The pieces of all models below `folder`, the last used first; damaged ones are logged.

    Raises:
        OSError: a folder can not be listed.
    """
    found = []
    for file in all_piece_files(folder):
        try:
            found.append(describe(file, read_manifest(file)))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (DamagedPieceError, OSError) as error:
            logger.warning("%s %s.", file.path, error)
    return sorted(found, key=lambda piece: -piece.used)


def remove_pieces(folder: Path, keys: Collection[str]) -> list[PieceFile]:
    """Removes pieces and all that continue them, which nobody could use without.

    Returns:
        What was removed; what is in use on Windows stays and is not among it.

    Raises:
        OSError: a folder can not be listed.
    """
    present = all_piece_files(folder)
    following = defaultdict(list)
    for file in present:
        following[file.before].append(file)
    doomed: dict[Path, PieceFile] = {}
    waiting = [file for file in present if file.key in keys]
    while waiting:
        file = waiting.pop()
        if file.path not in doomed:
            doomed[file.path] = file
            waiting += following[file.node]
    # children first: whoever is killed in between leaves no piece without its parent
    last_first = sorted(doomed.values(), key=lambda file: -file.end)
    return [file for file in last_first if remove_file(file.path)]


def forget_readings(documents: Collection[str]) -> int:
    """Forgets whatever was read of some documents, by all models, on disk and in this process.

    A stretch that readings of other documents share with these, such as a common letterhead, stays
    for those. What is in use in memory goes when it is not any more, and is not kept on disk. What
    other processes hold in memory is theirs.

    Args:
        documents: their ids (`Document.id`).

    Returns:
        How many files could not be removed, as somebody uses them. Try again later.

    Raises:
        OSError: the folder of readings can not be used.
    """
    engine = sys.modules.get("pacellm_rag.models.engine")  # none where no model was loaded
    for each in engine.live_engines() if engine is not None else ():
        each.forget(documents)
    return forget_documents(readings_folder(), documents)


def forget_documents(folder: Path, documents: Collection[str]) -> int:
    """The part of `forget_readings` that is on disk, below `folder`.

    Raises:
        OSError: the folder can not be listed, or a file in it not be read or written.
    """
    doomed: dict[Path, set[str]] = {}
    busy = 0
    for own in entries(folder):
        if not own.is_dir():
            continue
        for key in with_documents(own, documents):
            with _waited_for(own, key) as alone:
                if not alone:
                    busy += 1
                elif not leave_out(own, key, documents):
                    doomed.setdefault(own, set()).add(key)
    keys = {key for each in doomed.values() for key in each}
    if keys:
        remove_pieces(folder, keys)
    left = {file.key for file in all_piece_files(folder)} if keys else set()
    for own, own_keys in doomed.items():
        for key in own_keys - left:
            (own / f"{key}{SUFFIX}").unlink(missing_ok=True)
    return busy + len(keys & left)


@contextlib.contextmanager
def _waited_for(folder: Path, key: str) -> Iterator[bool]:
    """Holds a piece's lock, if it is free within some seconds."""
    from pacellm_rag.models.piece_lock import only_writer  # filelock loads asyncio

    until = time.monotonic() + _PATIENCE
    while True:
        with only_writer(folder, key) as alone:
            if alone or time.monotonic() > until:
                yield alone
                return
        time.sleep(0.05)


def remove_leftovers(folder: Path) -> int:
    """Removes what writers that were killed left behind; returns how many bytes that were.

    Raises:
        OSError: a folder can not be listed.
    """
    from pacellm_rag.models.piece_lock import clear_leftovers  # filelock loads asyncio

    return sum(clear_leftovers(inner) for inner in entries(folder) if inner.is_dir())


def verify_pieces(
    folder: Path, progress: Callable[[int, int], None] | None = None
) -> list[tuple[Path, str]]:
    """Checks every byte of all pieces of all models, without torch.

    Args:
        folder: what the store was made with.
        progress: told how many files have been checked, and how many there are.

    Returns:
        The files that are damaged or foreign, each with what is wrong, completing "the file ...".
        What a writer that was killed left behind is none: the next one clears it away.

    Raises:
        OSError: a folder can not be listed.
    """
    paths = sorted(_files_below(folder))
    problems = []
    for done, path in enumerate(paths):
        if progress is not None:
            progress(done, len(paths))
        try:
            file = PieceFile.at(path)
            _check_tensors(path, read_manifest(file))
        except FileNotFoundError:  # removed meanwhile
            continue
        except DamagedPieceError as error:
            problems.append((path, str(error)))
        except OSError as error:
            problems.append((path, f"can not be read ({error})"))
    if progress is not None:
        progress(len(paths), len(paths))
    return problems


def _check_tensors(path: Path, manifest: Manifest) -> None:
    with path.open("rb") as stream:
        for name, (begin, end) in manifest.ranges.items():
            stream.seek(begin)
            digest = hashlib.sha256()
            while begin < end and (read := stream.read(min(_CHUNK, end - begin))):
                digest.update(read)
                begin += len(read)
            if digest.hexdigest() != manifest.digests[name]:
                raise DamagedPieceError(f"has a wrong checksum in tensor {name}")


def _files_below(folder: Path) -> Iterator[Path]:
    for entry in entries(folder):
        inside = entries(entry) if entry.is_dir() else [entry]
        yield from (p for p in inside if p.suffix not in _BESIDE and not p.is_dir())
