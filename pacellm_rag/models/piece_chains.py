"""Which pieces of readings continue which, and which must go when there are too many.

Knows the names of their files only.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from pacellm_rag.models.stored_piece import PieceFile, all_piece_files, remove_file

__all__ = ["Nodes", "by_node", "chain_to", "make_room", "mark_used"]

Nodes = defaultdict[tuple[Path, str, int], list[PieceFile]]


def by_node(files: Iterable[PieceFile]) -> Nodes:
    """The pieces by where they end: those that end at a piece's `before` are what it continues."""
    found: Nodes = defaultdict(list)
    for file in files:
        found[file.node].append(file)
    return found


def chain_to(file: PieceFile, present: Nodes) -> list[PieceFile]:
    """The pieces from token 0 to the end of this one; none where one is missing."""
    found = [file]
    while (before := found[-1].before) is not None:
        if not present[before] or found[-1].start >= found[-1].end:
            return []
        found.append(max(present[before], key=lambda file: file.used))
    return found[::-1]


def mark_used(files: Iterable[PieceFile]) -> None:
    """Makes these the last used of all, at one time."""
    now = time.time_ns()
    for file in files:
        with contextlib.suppress(OSError):  # removed meanwhile, or not ours to change
            os.utime(file.path, ns=(now, now))


def make_room(folder: Path, saved: PieceFile, limit_bytes: int) -> None:
    """Removes the least recently used pieces that nothing continues, until the limit is met."""
    files = all_piece_files(folder)
    kept = {saved.path, *(f.path for f in chain_to(saved, by_node(files)))}
    mark_used(file for file in files if file.path in kept)
    continued = Counter(file.before for file in files)
    ends = by_node(files)
    total = sum(file.nbytes for file in files)
    leaves = [(f.used, f.path, f) for f in files if not continued[f.node]]
    heapq.heapify(leaves)
    while total > limit_bytes and leaves:
        _, path, file = heapq.heappop(leaves)
        if path in kept or not remove_file(path):
            continue
        total -= file.nbytes
        if file.before is not None:
            continued[file.before] -= 1
            if not continued[file.before]:
                for leaf in ends[file.before]:
                    heapq.heappush(leaves, (leaf.used, leaf.path, leaf))
