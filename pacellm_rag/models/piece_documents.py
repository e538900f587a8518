"""Whose a kept piece is: beside each, which documents the readings that go through it had begun.

    <key>.documents   JSON: a list with, for each such reading, the sorted ids of its documents

A piece may belong to several readings: two documents that begin with the same letterhead share it.
It has to go when of each of them a document is to be forgotten. No such file means that nobody said
what was read. To be called with the lock of the piece's key (`piece_lock`) held, but for
`with_documents`. Knows names and files; knows nothing of tensors.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from pacellm_rag.models.stored_piece import entries

__all__ = ["SUFFIX", "add_reading", "leave_out", "with_documents"]

SUFFIX = ".documents"

_Readings = set[frozenset[str]]


def add_reading(folder: Path, key: str, documents: Collection[str], *, new: bool) -> None:
    """Notes that a reading goes through a piece.

    Args:
        folder: of the model's pieces.
        key: the piece's.
        documents: ids of those that the reading had begun by the piece's end.
        new: whether the piece is not there yet, and so no other reading goes through it.

    Raises:
        OSError: it can not be noted.
    """
    path = folder / f"{key}{SUFFIX}"
    known: _Readings = set() if new else _known(path)
    wanted = known | {frozenset(documents)}
    if wanted != known or (new and path.exists()):
        _write(path, wanted)


def leave_out(folder: Path, key: str, documents: Collection[str]) -> bool:
    """Takes the readings of some documents from a piece.

    Returns:
        Whether any reading is left that it is kept for; if not, nothing is changed.

    Raises:
        OSError: the file can not be read or written.
    """
    path = folder / f"{key}{SUFFIX}"
    try:
        known = _known(path)
    except ValueError:  # damaged: it may be anybody's
        return False
    left = {each for each in known if each.isdisjoint(documents)}
    if left and left != known:
        _write(path, left)
    return bool(left)


def with_documents(folder: Path, documents: Collection[str]) -> list[str]:
    """The keys of the pieces that a reading of one of these documents goes through.

    Those of which it can not be told, as their file is damaged, are among them.

    Raises:
        OSError: a file can not be read.
    """
    found = []
    for path in entries(folder):
        if path.suffix == SUFFIX:
            try:
                readings = _known(path)
            except ValueError:
                found.append(path.stem)
                continue
            if any(not each.isdisjoint(documents) for each in readings):
                found.append(path.stem)
    return found


def _known(path: Path) -> _Readings:
    """The readings noted.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {frozenset()}
    if not isinstance(said, list) or not all(isinstance(each, list) for each in said):
        raise ValueError(f"{path} is no list of readings.")
    return {frozenset(map(str, each)) for each in said}


def _write(path: Path, readings: _Readings) -> None:
    """None at all, and the one of which nothing is known, is what no file means."""
    if readings == {frozenset()}:
        path.unlink(missing_ok=True)
        return
    # named so that `clear_leftovers` finds it when the process is killed
    handle, temporary = tempfile.mkstemp(".partial", f"{path.stem}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(sorted(map(sorted, readings))).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
