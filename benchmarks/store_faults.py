"""Faults put to the store of readings: killed processes, damaged files, races; and how fast it is.

Everything that is saved follows from its tokens, so whatever is loaded can be compared. (1) A
child process saves and loads pieces in a loop, under a limit that makes it remove some, and is
killed with SIGKILL at a random moment; then everything that is on disk is loaded and compared.
(2) Copies of stored files are flipped, cut, extended and overwritten; none may load, none may pass
as checked. (3) Two processes save the same piece at once; one whole file must be there. Prints a
table and, last, a line of JSON; ends with 1 on any violation. Needs fork: Linux or macOS.

    python benchmarks/store_faults.py [--kills 200] [--damages 1000] [--races 50] [--megabytes 200]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pacellm_rag.models.readings import verify_pieces
from pacellm_rag.models.state_store import StateStore, StoredPiece

Tokens = npt.NDArray[np.int64]
Tensors = dict[str, torch.Tensor]

SEQUENCES, PIECE, PIECES = 12, 96, 4  # sequences, tokens of a piece, pieces of a sequence
LONGEST_LIFE = 0.25  # seconds of a child that is going to be killed
LIMIT = 16 * 2**20  # bytes; all sequences together take half as much again


def tokens_of(sequence: int, pieces: int = PIECES) -> Tokens:
    """A sequence; neighbours begin with the same piece."""
    count = PIECE * pieces
    own = np.random.default_rng(sequence).integers(-(2**50), 2**50, count, dtype=np.int64)
    own[:PIECE] = np.random.default_rng(10**6 + sequence // 2).integers(0, 2**50, PIECE)
    return own


def tensors_of(tokens: Tokens, start: int) -> Tensors:
    """What a model would know after these tokens: 0.6 MB a piece, and always the same."""
    seed = int.from_bytes(hashlib.sha256(tokens.tobytes()).digest()[:7], "big") + start
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 8, len(tokens) - start, 64)
    states = {
        f"{index}.{name}": torch.randn(shape, generator=generator).to(torch.bfloat16)
        for index in range(3)
        for name in ("keys", "values")
    }
    return {**states, "state": torch.randn(7, 33, generator=generator), "end": torch.tensor(start)}


def same(one: Tensors, two: Tensors) -> bool:
    """Whether names, types, shapes and bits agree."""
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


class Expected:
    """Tensors by key, made once."""

    def __init__(self) -> None:
        self._made: dict[str, Tensors] = {}

    def __call__(self, piece: StoredPiece, tokens: Tokens) -> Tensors:
        """What a piece of these tokens must hold."""
        if piece.key not in self._made:
            self._made[piece.key] = tensors_of(tokens[: piece.end], piece.start)
        return self._made[piece.key]


@contextmanager
def child(work: Callable[[], bool]) -> Iterator[int]:
    """Runs `work` in a copy of this process; gives its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    yield pid


def live(folder: Path, seed: int) -> bool:
    """Saves and loads for ever; False once something wrong was loaded."""
    rng, store = random.Random(seed), StateStore(folder, "faults", limit_bytes=LIMIT)
    while True:
        tokens = tokens_of(rng.randrange(SEQUENCES))
        chain = store.chain(tokens, len(tokens))
        for piece in chain:
            loaded = store.load(piece)
            if loaded is not None and not same(
                loaded, tensors_of(tokens[: piece.end], piece.start)
            ):
                return False
        for start in range(chain[-1].end if chain else 0, len(tokens), PIECE):
            end = start + PIECE
            store.save(tokens[:end], start, tensors_of(tokens[:end], start), model="faults")


def check_all(store: StateStore, expected: Expected, counts: dict[str, int]) -> None:
    """Loads everything that can be found, and compares it."""
    for sequence in range(SEQUENCES):
        tokens = tokens_of(sequence)
        for piece in store.chain(tokens, len(tokens)):
            loaded = store.load(piece)
            counts["loads"] += 1
            if loaded is None:
                counts["refused"] += 1
            elif not same(loaded, expected(piece, tokens)):
                counts["wrong"] += 1


def kill_children(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """The first fault: processes that end at any moment."""
    counts = dict.fromkeys(("kills", "unfinished_files", "loads", "refused", "wrong", "damaged"), 0)
    rng, expected = random.Random(seed), Expected()
    store = StateStore(folder, "faults", limit_bytes=LIMIT)
    for number in range(kills):
        with child(lambda number=number: live(folder, seed + number)) as pid:  # type: ignore[misc]
            time.sleep(rng.uniform(0, LONGEST_LIFE))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        counts["kills"] += 1
        counts["wrong"] += not os.WIFSIGNALED(status)  # it ended by itself: loaded wrong data
        counts["unfinished_files"] += len(list(folder.rglob("*.partial")))
        # before the store sees them, which removes what is damaged without a word to us
        counts["damaged"] += len(verify_pieces(folder))
        check_all(store, expected, counts)
    counts["damaged"] += len(verify_pieces(folder))
    store.save(tokens_of(10**5, 1), 0, {}, model="faults")
    counts["left_behind"] = sum(path.suffix != ".safetensors" for path in folder.glob("*/*"))
    return counts


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The content with one fault, and what it is."""
    kind, at = rng.choice(("flip", "cut", "extend", "zero", "move")), rng.randrange(len(content))
    if rng.random() < 0.3:  # the header is a small part of the file
        at = rng.randrange(min(len(content), 3000))
    length = rng.randrange(1, 5000)
    if kind == "flip":
        return kind, content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return kind, content[:at]
    if kind == "extend":
        return kind, content + rng.choice((bytes(length), rng.randbytes(length), content))
    if kind == "zero":
        return kind, content[:at] + bytes(len(content[at : at + length])) + content[at + length :]
    return kind, content[at:] + content[:at]


def damage_files(folder: Path, damages: int, seed: int) -> dict[str, int]:
    """The second fault: files that are not what was written."""
    counts = dict.fromkeys(("damages", "loaded", "passed_verify", "not_removed"), 0)
    rng = random.Random(seed)
    store, stock = (StateStore(folder / n, "faults", limit_bytes=2**40) for n in ("now", "stock"))
    for sequence in range(3):
        for end in (PIECE, 2 * PIECE):
            tokens, start = tokens_of(sequence)[:end], end - PIECE
            stock.save(tokens, start, tensors_of(tokens, start), model="faults")
    pieces = {p.key: p for s in range(3) for p in stock.chain(tokens_of(s), 2 * PIECE)}
    contents = {piece.key: piece.path.read_bytes() for piece in pieces.values()}
    while counts["damages"] < damages:
        piece = rng.choice(list(pieces.values()))
        kind, content = damaged(contents[piece.key], rng)
        if content == contents[piece.key]:
            continue  # zeros over zeros
        path = folder / "now" / piece.path.relative_to(folder / "stock")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        counts["damages"] += 1
        counts[kind] = counts.get(kind, 0) + 1
        counts["passed_verify"] += not verify_pieces(folder / "now")
        counts["loaded"] += store.load(replace(piece, path=path)) is not None
        counts["not_removed"] += path.exists()
        path.unlink(missing_ok=True)
    return counts


def race(folder: Path, races: int) -> dict[str, int]:
    """The third fault: two processes that save one piece at the same time."""
    counts = dict.fromkeys(("races", "nobody_saved", "files_not_one", "wrong"), 0)
    store = StateStore(folder, "faults", limit_bytes=2**40)
    for number in range(races):
        tokens = tokens_of(5000 + 2 * number, pieces=1)
        tensors = tensors_of(tokens, 0)
        waiting, start = os.pipe()

        def save(
            tokens: Tokens = tokens, tensors: Tensors = tensors, waiting: int = waiting,
            start: int = start,
        ) -> bool:  # fmt: skip
            os.close(start)
            os.read(waiting, 1)  # until the other end is closed
            return store.save(tokens, 0, tensors, model="faults")

        with child(save) as one, child(save) as two:
            os.close(waiting)
            os.close(start)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (one, two)]
        chain = store.chain(tokens, len(tokens))
        loaded = store.load(chain[0]) if chain else None
        counts["races"] += 1
        counts["nobody_saved"] += 0 not in codes
        counts["files_not_one"] += len(list(folder.rglob("*.safetensors"))) != number + 1
        counts["wrong"] += loaded is None or not same(loaded, tensors) or max(codes) > 2
    counts["damaged"] = len(verify_pieces(folder))
    return counts


def measure(folder: Path, megabytes: int) -> dict[str, float]:
    """How fast one large piece is saved and loaded; the file is in the system's cache."""
    store = StateStore(folder, "speed", limit_bytes=2**40)
    count = max(1, megabytes // 2)  # layers' keys or values of 2 MB
    tensors = {f"{i}": torch.randn(1, 8, 1024, 128).to(torch.bfloat16) for i in range(count)}
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    saves, loads, tokens = [], [], tokens_of(1, 1)
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        store.save(tokens, 0, tensors, model="speed")
        saves.append(time.perf_counter() - started)
        (piece,) = store.chain(tokens, len(tokens))
        started = time.perf_counter()
        loaded = store.load(piece)
        loads.append(time.perf_counter() - started)
        if loaded is None or not same(loaded, tensors):
            raise SystemExit("What was loaded is not what was saved.")
    content = torch.cat([tensor.view(-1) for tensor in tensors.values()]).view(torch.uint8).numpy()
    started = time.perf_counter()
    hashlib.sha256(content.data).hexdigest()
    hashed = time.perf_counter() - started
    return {
        "piece_mb": round(size, 1),
        "save_s": round(min(saves), 3),
        "save_mb_per_s": round(size / min(saves)),
        "load_s": round(min(loads), 3),
        "load_mb_per_s": round(size / min(loads)),
        "sha256_mb_per_s_one_thread": round(size / hashed),
    }


VIOLATIONS = {
    "kills": ("refused", "wrong", "damaged", "left_behind"),
    "damages": ("loaded", "passed_verify", "not_removed"),
    "races": ("nobody_saved", "files_not_one", "wrong", "damaged"),
}


def main() -> None:
    """Runs the faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=200, help="of the piece that is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to test; default: temporary")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # children are forked, which other threads would not survive
    logging.getLogger("pacellm_rag").setLevel(logging.ERROR)  # a warning for each damage
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        results: dict[str, dict[str, int]] = {
            "kills": kill_children(folder / "kills", arguments.kills, arguments.seed),
            "damages": damage_files(folder / "damages", arguments.damages, arguments.seed),
            "races": race(folder / "races", arguments.races),
        }
        speed = measure(folder / "speed", arguments.megabytes)
    violations = sum(results[part][what] for part, names in VIOLATIONS.items() for what in names)
    print("| fault | what | value |\n|---|---|---:|")
    figures: dict[str, Mapping[str, float]] = {**results, "speed": speed}
    for part, counts in figures.items():
        for what, value in counts.items():
            print(f"| {part} | {what.replace('_', ' ')} | {value:,} |")
    print(
        json.dumps(
            {
                "benchmark": "store_faults",
                "violations": violations,
                **results,
                "speed": speed,
                "seconds": round(time.perf_counter() - started, 1),
                "seed": arguments.seed,
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
