from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kept_pieces import ROOM, keep, names, same, spans, tensors_of, tokens_of

from pacellm_rag.models import state_store
from pacellm_rag.models.piece_lock import only_writer
from pacellm_rag.models.readings import verify_pieces
from pacellm_rag.models.state_store import StateStore, StoredPiece

LOG = "pacellm_rag.models.state_store"


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "readings", "model/bf16", limit_bytes=ROOM)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger(LOG).addHandler(handler)
    yield said
    logging.getLogger(LOG).removeHandler(handler)


# --- what is damaged is never used


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_damaged_header_is_removed_and_the_next_best_chain_found(
    store: StateStore, warnings: list[str]
) -> None:
    tokens = tokens_of(30)
    pieces = keep(store, tokens, 10, 20, 30)
    flip(pieces[1].path, 20)
    assert spans(store.chain(tokens, 30)) == [(0, 10)]
    assert not pieces[1].path.exists()
    assert len(warnings) == 1


def test_every_flip_cut_extension_and_hole_is_noticed(store: StateStore, tmp_path: Path) -> None:
    tokens = tokens_of(12)
    (piece,) = keep(store, tokens, 12)
    whole = piece.path.read_bytes()
    rng = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    at = [*range(8), *rng.sample(range(8, header), 25), *rng.sample(range(header, len(whole)), 25)]
    damaged = [
        whole[:i] + bytes([whole[i] ^ 1 << rng.randrange(8)]) + whole[i + 1 :] for i in at
    ]  # fmt: skip
    damaged += [whole[:n] for n in (0, 1, 7, 8, 9, header - 1, header, len(whole) - 1)]
    damaged += [whole + b"\0", whole + whole, b"\0" * len(whole), b"\xff" * 8 + whole[8:]]
    damaged += [whole[:header] + b"\0" * (len(whole) - header)]
    for content in damaged:
        piece.path.write_bytes(content)
        assert len(verify_pieces(store.folder)) == 1
        assert store.load(piece) is None
        assert not piece.path.exists()
    piece.path.write_bytes(whole)
    assert same(store.load(piece), tensors_of(tokens, 0))


def test_a_renamed_piece_is_no_other(store: StateStore, warnings: list[str]) -> None:
    one, two = (keep(store, tokens_of(12, seed), 12)[0] for seed in (0, 1))
    for source, name in (
        (one, one.path.name.replace(one.key, two.key)),
        (one, two.path.name),
        (two, two.path.name.replace(".0-12.", ".0-11.")),
        (two, two.path.name.replace("0" * 16, one.key[:16], 1)),
    ):
        copy = source.path.with_name(name)
        kept = two.path.read_bytes()
        shutil.copy(source.path, copy)
        assert any(path == copy for path, _ in verify_pieces(store.folder))
        renamed = StoredPiece(**{**vars(source), "path": copy, "key": name[:64]})
        assert store.load(renamed) is None
        copy.unlink(missing_ok=True)
        two.path.write_bytes(kept)
    assert len(warnings) == 4


def test_foreign_files_and_those_of_other_models_are_reported(store: StateStore) -> None:
    (piece,) = keep(store, tokens_of(8), 8)
    other = StateStore(store.folder, "other", limit_bytes=ROOM)
    (theirs,) = keep(other, tokens_of(8), 8)
    assert store.load(theirs) is None
    assert theirs.path.exists()  # a slip of the caller's; the file is good
    moved = piece.path.with_name(theirs.path.name)
    theirs.path.rename(moved)
    (piece.path.parent / "notes.txt").write_text("mine")
    (store.folder / "empty.safetensors").touch()
    assert {path.name for path, _ in verify_pieces(store.folder)} == {
        moved.name, "notes.txt", "empty.safetensors",
    }  # fmt: skip
    assert store.load(StoredPiece(**{**vars(theirs), "path": moved})) is None


def test_a_piece_of_another_format_is_read_again(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(state_store, "FORMAT", 2)
    assert store.save(tokens_of(8), 0, tensors_of(tokens_of(8), 0), model="tiny")
    assert "has format 2" in verify_pieces(store.folder)[0][1]
    assert store.chain(tokens_of(8), 8) == []
    assert len(warnings) == 1


def test_a_piece_that_was_removed_meanwhile_is_no_reason_to_warn(
    store: StateStore, warnings: list[str]
) -> None:
    (piece,) = keep(store, tokens_of(8), 8)
    piece.path.unlink()
    assert store.load(piece) is None
    assert warnings == []


def test_too_little_memory_to_load_leaves_the_file(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    (piece,) = keep(store, tokens_of(8), 8)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(state_store, "read_tensors", fail)
    assert store.load(piece) is None
    assert store.load(piece) is None
    assert piece.path.exists()
    assert len(warnings) == 1


# --- what can not be written


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_costs_one_warning_and_leaves_nothing(
    store: StateStore,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    call: str,
    number: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    tokens = tokens_of(8)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        for _ in range(3):
            assert not store.save(tokens, 0, tensors_of(tokens, 0), model="tiny")
    assert names(store.folder) == []
    (warning,) = warnings
    assert os.strerror(number) in warning
    assert ("Make room" if number == errno.ENOSPC else "Give write permission") in warning
    assert len(keep(store, tokens, 8)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_disk_that_is_full_in_the_middle_of_a_file(
    store: StateStore, warnings: list[str]
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        done = store.save(tokens_of(8), 0, {"a": torch.ones(500_000)}, model="tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not done
    assert names(store.folder) == []
    assert "Make room" in warnings[0]


def test_a_folder_that_can_not_be_made(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").touch()
    store = StateStore(tmp_path / "file" / "readings", "m", limit_bytes=ROOM)
    assert not store.save(tokens_of(4), 0, {}, model="tiny")
    assert store.chain(tokens_of(4), 4) == []
    assert "PACELLM_RAG_CACHE" in warnings[0]


def test_tensors_that_no_file_can_hold_are_named(store: StateStore, warnings: list[str]) -> None:
    sparse = torch.eye(3).to_sparse()
    assert not store.save(tokens_of(4), 0, {"odd": sparse}, model="tiny")
    assert not store.save(tokens_of(4), 0, {"c": torch.ones(1, dtype=torch.cfloat)}, model="tiny")
    assert "Tensor odd" in warnings[0]
    assert "torch.complex64" in warnings[1]
    assert names(store.folder) == []


# --- what killed writers leave


def test_leftovers_go_unless_their_writer_lives(store: StateStore) -> None:
    (piece,) = keep(store, tokens_of(8), 8)
    folder = piece.path.parent
    dead, living = "a" * 64, "b" * 64
    (folder / f"{dead}.x_1.partial").write_bytes(b"half")
    (folder / f"{dead}.lock").touch()
    (folder / f"{living}.x_2.partial").write_bytes(b"half")
    with only_writer(folder, living):
        keep(store, tokens_of(9), 9)
        assert names(store.folder) == [".lock", ".partial", ".safetensors", ".safetensors"]
        assert verify_pieces(store.folder) == []
    keep(store, tokens_of(10), 10)
    assert names(store.folder) == [".safetensors"] * 3


CHILD = """
import os, sys, time
from pathlib import Path
import numpy as np, torch
from pacellm_rag.models import state_store
store = state_store.StateStore(Path(sys.argv[1]), "model/bf16", limit_bytes=10**9)
def hang(*_):
    print("writing", flush=True)
    time.sleep(60)
setattr(os, sys.argv[2], hang)
store.save(np.arange(8), 0, {"a": torch.ones(100_000)}, model="tiny")
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_that_is_killed_leaves_nothing_that_counts(store: StateStore, call: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store.folder), call], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        assert not store.save(np.arange(8), 0, {}, model="tiny")  # it lives
        child.send_signal(signal.SIGKILL)
    assert ".partial" in names(store.folder)
    assert store.chain(np.arange(8), 8) == []
    assert verify_pieces(store.folder) == []
    assert store.save(np.arange(8), 0, {"a": torch.ones(3)}, model="tiny")
    assert names(store.folder) == [".safetensors"]
