from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from pacellm_rag.cli.cache import _ago, _size
from pacellm_rag.files import cache_folder
from pacellm_rag.models.state_store import StateStore, StoredPiece

Run = Callable[..., Result]


@pytest.fixture
def folder() -> Path:
    return cache_folder() / "readings"


@pytest.fixture
def pieces(folder: Path) -> list[StoredPiece]:
    """Two pieces of one text by one model, and one by another."""
    tokens = np.arange(3000)
    found = []
    for model, ends in (("org/large", (1000, 3000)), ("tiny", (1500,))):
        store = StateStore(folder, model, limit_bytes=10**9)
        for start, end in zip((0, *ends), ends, strict=False):
            tensors = {"keys": torch.ones(end)}
            assert store.save(
                tokens[:end], start, tensors, model=model, note="Report\n2023 \x1b[1m"
            )
        found += store.chain(tokens, 3000)
    for number, piece in enumerate(found):
        os.utime(piece.path, (time.time() - 7200 * (number + 1),) * 2)
    return found


def test_without_readings_ls_says_so(run: Run, folder: Path) -> None:
    result = run("cache", "ls")
    assert (result.exit_code, result.stdout) == (0, f"0 pieces, 0.0 MB, in {folder}\n")
    assert run("cache", "verify").stdout == "0 files checked, 0 damaged\n"
    assert run("cache", "rm", "--all").stdout == "Removed 0 pieces, 0.0 MB\n"


def test_ls_shows_each_piece_and_the_total(
    run: Run, folder: Path, pieces: list[StoredPiece]
) -> None:
    head, *rows, total = run("cache", "ls").stdout.splitlines()
    assert head.split() == ["id", "model", "tokens", "size", "last", "used", "note"]
    assert [row.split()[0] for row in rows] == [piece.key[:12] for piece in pieces]
    assert "org/large  2,000 (3,000)  0.0 MB  4 hours ago  Report 2023 [1m" in rows[1]
    assert total == f"3 pieces, 0.0 MB, in {folder}"


def test_ls_as_json_has_all_facts(run: Run, folder: Path, pieces: list[StoredPiece]) -> None:
    facts = json.loads(run("cache", "ls", "--json").stdout)
    assert facts["folder"] == str(folder)
    assert facts["bytes"] == sum(piece.nbytes for piece in pieces)
    first, second, third = facts["pieces"]
    assert second["parent"] == first["key"] == pieces[0].key
    assert (third["start"], third["end"], third["model"]) == (0, 1500, "tiny")


def test_rm_removes_what_continues_the_piece_too(run: Run, pieces: list[StoredPiece]) -> None:
    result = run("cache", "rm", pieces[0].key[:12].upper())
    assert (result.exit_code, result.stdout) == (0, "Removed 2 pieces, 0.0 MB\n")
    assert [piece.path.exists() for piece in pieces] == [False, False, True]


def test_rm_of_one_model_leaves_the_others(run: Run, pieces: list[StoredPiece]) -> None:
    assert run("cache", "rm", "--model", "tiny").stdout.startswith("Removed 1 piece,")
    assert [piece.path.exists() for piece in pieces] == [True, True, False]
    result = run("cache", "rm", "--model", "tiny")
    assert result.exit_code == 2
    assert "There are readings by: org/large." in result.stderr


def test_rm_all_removes_leftovers_too(run: Run, folder: Path, pieces: list[StoredPiece]) -> None:
    left = pieces[0].path.parent / f"{'a' * 64}.x.partial"
    left.write_bytes(b"0" * 1_000_000)
    assert run("cache", "rm", "--all").stdout == "Removed 3 pieces, 1.0 MB\n"
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give IDs"),
        (["--all", "--model", "tiny"], "Give IDs"),
        (["0123", "--all"], "Give IDs"),
        (["0123456789ab"], "stands for 0 pieces"),
        (["0"], "too short"),
    ],
)
def test_rm_that_is_not_clear_removes_nothing_and_exits_2(
    run: Run, pieces: list[StoredPiece], arguments: list[str], said: str
) -> None:
    result = run("cache", "rm", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert all(piece.path.exists() for piece in pieces)


def test_verify_finds_damage_and_removes_it_when_told(run: Run, pieces: list[StoredPiece]) -> None:
    assert run("cache", "verify").exit_code == 0
    content = bytearray(pieces[1].path.read_bytes())
    content[-1] ^= 1
    pieces[1].path.write_bytes(content)
    result = run("cache", "verify")
    assert result.exit_code == 1
    assert result.stdout == (
        f"{pieces[1].path} has a wrong checksum in tensor keys\n3 files checked, 1 damaged\n"
    )
    assert "verify --remove" in result.stderr
    assert pieces[1].path.exists()
    result = run("cache", "verify", "--remove")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.endswith("1 damaged files removed\n")
    assert run("cache", "verify").stdout == "2 files checked, 0 damaged\n"


def test_ls_warns_of_a_damaged_header(run: Run, pieces: list[StoredPiece]) -> None:
    pieces[0].path.write_bytes(b"")
    result = run("cache", "ls")
    assert result.exit_code == 0
    assert "ends within its header" in result.stderr
    assert "2 pieces" in result.stdout
    assert run("cache", "rm", pieces[0].key[:4]).exit_code == 0  # by its name alone


def test_times_and_sizes_are_for_people() -> None:
    assert [_ago(s) for s in (-5, 59, 60, 7300, 200_000)] == [
        "just now", "just now", "1 minute ago", "2 hours ago", "2 days ago",
    ]  # fmt: skip
    assert [_size(n) for n in (0, 12_345_678, 2_500_000_000)] == ["0.0 MB", "12.3 MB", "2.50 GB"]


def test_help_and_lists_load_no_torch(pieces: list[StoredPiece]) -> None:
    code = (
        "import sys; from pacellm_rag.cli import shell\n"
        "for arguments in (['cache', 'rm', '--help'], ['cache', 'ls'], ['cache', 'verify']):\n"
        "    shell.main(arguments, standalone_mode=False)\n"
        "sys.exit(f'{heavy}' if (heavy := {'torch', 'numpy'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 pieces" in done.stdout
