from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kept_pieces import ROOM, keep, names, same, spans, tensors_of, tokens_of
from safetensors import safe_open

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models import piece_tensors
from pacellm_rag.models.piece_lock import only_writer
from pacellm_rag.models.readings import list_pieces, remove_pieces, verify_pieces
from pacellm_rag.models.state_store import StateStore, StoredPiece


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "readings", "model/bf16", limit_bytes=ROOM)


# --- what is saved is what is loaded


def test_another_process_would_load_the_same_bytes_types_and_shapes(store: StateStore) -> None:
    tokens = tokens_of(40)
    assert store.chain(tokens, 40) == []
    pieces = keep(store, tokens, 16, 40)
    again = StateStore(store.folder, "model/bf16", limit_bytes=ROOM)
    assert spans(again.chain(tokens, 40)) == [(0, 16), (16, 40)]
    assert pieces[1].parent == pieces[0].key
    assert pieces[0].parent is None
    assert pieces[0].nbytes == pieces[0].path.stat().st_size
    for piece in pieces:
        assert same(again.load(piece), tensors_of(tokens[: piece.end], piece.start))
    assert verify_pieces(store.folder) == []


def test_the_files_are_safetensors_and_nothing_else_is_left(store: StateStore) -> None:
    (piece,) = keep(store, tokens_of(9), 9)
    assert names(store.folder) == [".safetensors"]
    with safe_open(piece.path, framework="pt") as stored:
        assert set(stored.keys()) == set(tensors_of(tokens_of(9), 0))
        assert set(stored.metadata()) == {"format", "manifest"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensors_are_views_of_the_mapped_file_and_outlive_it(store: StateStore) -> None:
    tokens = tokens_of(30)
    (piece,) = keep(store, tokens, 30)
    tensors = store.load(piece)
    assert tensors is not None
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(n, 16) for n in m[0].split("-")] for m in maps if str(piece.path) in m]
    for tensor in tensors.values():
        if tensor.numel():
            assert any(low <= tensor.data_ptr() < high for low, high in ranges)
    tensors["snapshot"][0] = 7.0  # our view only
    assert verify_pieces(store.folder) == []
    remove_pieces(store.folder, {piece.key})
    assert same({"keys": tensors["keys"]}, {"keys": tensors_of(tokens, 0)["keys"]})


def test_large_pieces_are_hashed_the_same_in_two_threads(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(20)
    (piece,) = keep(store, tokens, 20)
    monkeypatch.setattr(piece_tensors, "_WORTH_TWO_THREADS", 1)
    assert same(store.load(piece), tensors_of(tokens, 0))


def test_names_and_notes_may_hold_any_text(store: StateStore) -> None:
    odd = 'a "b"\\ \n\udcff ü 中'
    assert store.save(tokens_of(4), 0, {"a": torch.ones(2)}, model=odd, note=odd)
    (piece,) = store.chain(tokens_of(4), 4)
    assert (piece.model, piece.note) == (odd, odd)
    assert store.load(piece) is not None
    odd_key = StateStore(store.folder, odd, limit_bytes=ROOM)
    assert len(keep(odd_key, tokens_of(4), 4)) == 1


def test_a_piece_without_tensors_can_be_kept(store: StateStore) -> None:
    assert store.save(tokens_of(4), 0, {}, model="tiny")
    assert store.load(store.chain(tokens_of(4), 4)[0]) == {}


def test_what_is_there_is_not_written_again(store: StateStore) -> None:
    tokens = tokens_of(8)
    (piece,) = keep(store, tokens, 8)
    before = piece.path.stat().st_ino
    assert store.save(tokens, 0, {"other": torch.ones(1)}, model="tiny")
    assert piece.path.stat().st_ino == before


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        (np.zeros(4, np.int64), 4),
        (np.zeros(4, np.int64), -1),
        (np.zeros(4, np.int32), 0),
        (np.zeros((2, 2), np.int64), 0),
        (np.zeros(0, np.int64), 0),
    ],
)
def test_tokens_that_can_not_be_meant_are_refused(
    store: StateStore, tokens: np.ndarray, start: int
) -> None:
    with pytest.raises(ConfigurationError, match="int64"):
        store.save(tokens, start, {}, model="tiny")
    with pytest.raises(ConfigurationError, match="at least 1"):
        StateStore(store.folder, "m", limit_bytes=0)


# --- which chain is found


def test_the_chain_that_reaches_furthest_within_the_limit_is_found(store: StateStore) -> None:
    tokens = tokens_of(60)
    other = np.concatenate([tokens[:20], tokens_of(40, seed=1)])
    keep(store, tokens, 10, 20, 40, 60)
    keep(store, tokens, 30)
    keep(store, other, 20, 50)
    assert spans(store.chain(tokens, 60))[-1] == (40, 60)
    assert spans(store.chain(tokens, 59)) == [(0, 10), (10, 20), (20, 40)]
    assert spans(store.chain(tokens, 39)) == [(0, 30)]
    assert spans(store.chain(tokens[:25], 60)) == [(0, 10), (10, 20)]
    assert spans(store.chain(other, 60)) == [(0, 10), (10, 20), (20, 50)]
    assert store.chain(tokens, 9) == []
    assert store.chain(tokens_of(60, seed=2), 60) == []
    assert store.chain(tokens, 0) == store.chain(tokens, -5) == []


def test_another_model_finds_nothing(store: StateStore) -> None:
    keep(store, tokens_of(8), 8)
    other = StateStore(store.folder, "model/fp16", limit_bytes=ROOM)
    assert other.chain(tokens_of(8), 8) == []


def test_one_changed_token_ends_the_match(store: StateStore) -> None:
    tokens = tokens_of(24)
    keep(store, tokens, 8, 16, 24)
    for at, found in ((7, 0), (8, 1), (23, 2)):
        changed = tokens.copy()
        changed[at] += 1
        assert len(store.chain(changed, 24)) == found


def test_a_piece_without_those_before_it_is_neither_kept_nor_found(store: StateStore) -> None:
    tokens = tokens_of(30)
    assert not store.save(tokens, 10, tensors_of(tokens, 10), model="tiny")
    first, *_ = keep(store, tokens, 10, 20, 30)
    first.path.unlink()
    assert store.chain(tokens, 30) == []
    assert len(keep(store, tokens, 10)) == 1
    assert len(store.chain(tokens, 30)) == 3  # the others are of use again


# --- the limit


def age(piece: StoredPiece, seconds: float) -> None:
    os.utime(piece.path, (time.time() - seconds,) * 2)


def present(store: StateStore) -> set[tuple[int, int]]:
    return set(spans(list_pieces(store.folder)))


def test_a_piece_larger_than_the_limit_is_not_written(store: StateStore) -> None:
    store.limit_bytes = 1000
    assert not store.save(tokens_of(4), 0, {"a": torch.ones(1000)}, model="tiny")
    assert names(store.folder) == []


def test_the_least_recently_used_go_first_and_leaves_before_what_they_continue(
    store: StateStore,
) -> None:
    old, new = tokens_of(60), tokens_of(61, seed=1)
    size = sum(piece.nbytes for piece in keep(store, old, 20, 40, 60))
    for piece in store.chain(old, 60):
        age(piece, 1000 - piece.end)  # the first is the oldest, and yet goes last
    other = StateStore(store.folder, "another model", limit_bytes=size)
    keep(other, new, 11)
    assert present(store) == {(0, 20), (20, 40), (0, 11)}
    other.limit_bytes = size // 2
    keep(other, new, 11)  # there already: nothing is written, nothing removed
    assert (20, 40) in present(store)
    keep(other, new, 11, 31)
    assert (20, 40) not in present(store)
    keep(other, new, 11, 31, 61)
    assert present(store) == {(0, 11), (11, 31), (31, 61)}


def test_the_saved_chain_is_kept_even_where_it_alone_is_too_large(store: StateStore) -> None:
    tokens, some = tokens_of(90), {"a": torch.ones(1000)}
    store.limit_bytes = 7000
    for start in (0, 30, 60):
        assert store.save(tokens[: start + 30], start, some, model="tiny")
    assert spans(store.chain(tokens, 90)) == [(0, 30), (30, 60), (60, 90)]
    assert store.save(tokens_of(31, seed=1), 0, some, model="tiny")
    assert present(store) == {(0, 31)}


@pytest.mark.parametrize("use", ["chain", "load", "save"])
def test_what_is_used_stays(store: StateStore, use: str) -> None:
    used, unused = tokens_of(40), tokens_of(40, seed=1)
    first, last = keep(store, used, 20, 40)
    pieces = [first, last, *keep(store, unused, 20, 40)]
    for number, piece in enumerate(pieces):
        age(piece, 1000 - number)
    if use == "chain":
        store.chain(used, 40)
    elif use == "load":
        assert store.load(last) is not None
    else:
        assert store.save(used, 20, {}, model="tiny")
    assert last.path.stat().st_mtime_ns <= first.path.stat().st_mtime_ns
    assert time.time() - first.path.stat().st_mtime < 100
    store.limit_bytes = sum(piece.nbytes for piece in pieces)
    assert store.save(tokens_of(40, seed=2), 0, {}, model="tiny")
    assert len(store.chain(used, 40)) == 2
    assert len(store.chain(unused, 40)) == 1


# --- several at once


def test_a_second_writer_of_a_piece_does_not_wait(store: StateStore) -> None:
    (piece,) = keep(store, tokens_of(8), 8)
    piece.path.unlink()
    with only_writer(piece.path.parent, piece.key) as alone:
        assert alone
        assert not store.save(tokens_of(8), 0, {}, model="tiny")
    assert store.save(tokens_of(8), 0, {}, model="tiny")


def test_threads_that_race_leave_one_whole_file(store: StateStore) -> None:
    for seed in range(15):
        tokens = tokens_of(200, seed)
        barrier, done = threading.Barrier(2), list[bool]()

        def race(tokens: np.ndarray = tokens, barrier: threading.Barrier = barrier,
                 done: list[bool] = done) -> None:  # fmt: skip
            barrier.wait()
            done.append(store.save(tokens, 0, tensors_of(tokens, 0), model="tiny"))

        threads = [threading.Thread(target=race) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert True in done
        assert names(store.folder) == [".safetensors"] * (seed + 1)
        assert same(store.load(store.chain(tokens, 200)[0]), tensors_of(tokens, 0))


# --- over all models


def test_removing_a_piece_removes_what_continues_it(store: StateStore) -> None:
    tokens = tokens_of(40)
    pieces = keep(store, tokens, 10, 20, 40)
    fork = np.concatenate([tokens[:20], tokens_of(10, seed=3)])
    keep(store, fork, 10, 20, 30)
    removed = remove_pieces(store.folder, {pieces[1].key})
    assert {(file.start, file.end) for file in removed} == {(10, 20), (20, 40), (20, 30)}
    assert spans(list_pieces(store.folder)) == [(0, 10)]


def test_a_folder_that_does_not_exist_has_no_pieces(tmp_path: Path) -> None:
    assert list_pieces(tmp_path / "none") == verify_pieces(tmp_path / "none") == []
    assert remove_pieces(tmp_path / "none", {"a" * 64}) == []
