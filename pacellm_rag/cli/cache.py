"""`pacellm-rag cache`: the readings of documents that are kept on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from pacellm_rag.cli.options import debug_option
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.files import readings_folder
from pacellm_rag.models.readings import list_pieces, remove_leftovers, remove_pieces, verify_pieces
from pacellm_rag.models.stored_piece import StoredPiece, all_piece_files, remove_file

__all__ = ["cache"]

_ID = 12  # hex digits of a key that people see
_SHORTEST_ID = 4
_LONGEST_NOTE = 60


@click.group(short_help="List, check and remove kept readings.")
def cache() -> None:
    """Manages the readings of documents that are kept on this machine.

    Documents that were read once are not read again by the same model: what it knew after them lies
    in your cache folder, in pieces that continue one another. The least recently used ones are
    removed by themselves; removing any by hand only costs the time to read again.
    """


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_obj
def ls(terminal: Terminal, as_json: bool) -> None:
    """Lists the kept readings, the last used first.

    Tokens are those of the piece and, in brackets, where it ends in its text.
    """
    folder = _folder()
    pieces = list_pieces(folder)
    total = sum(piece.nbytes for piece in pieces)
    if as_json:
        facts = [_facts(piece) for piece in pieces]
        terminal.line(json.dumps({"folder": str(folder), "bytes": total, "pieces": facts}))
        return
    if pieces:
        for line in _table(pieces, time.time()):
            terminal.line(line)
    terminal.line(f"{_pieces(len(pieces))}, {_size(total)}, in {folder}")


@cache.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Remove all readings.")
@click.option("--model", metavar="NAME", help="Remove the readings by this model, named as in ls.")
@debug_option
@click.pass_obj
def rm(terminal: Terminal, ids: Sequence[str], everything: bool, model: str | None) -> None:
    """Removes readings, and says how much room that made. Asks nothing.

    An ID is what ls shows, or the first 4 digits and more of it. Pieces that continue a removed one
    go with it, because they are of no use without it.
    """
    if sum((bool(ids), everything, model is not None)) != 1:
        raise click.UsageError("Give IDs of readings, or --all, or --model NAME.")
    folder = _folder()
    if everything:
        keys: Collection[str] = {file.key for file in all_piece_files(folder)}
    elif model is not None:
        keys = _keys_of_model(folder, model)
    else:
        keys = _keys_of_ids(folder, ids)
    removed = remove_pieces(folder, keys)
    freed = sum(file.nbytes for file in removed)
    if everything:
        freed += remove_leftovers(folder)
    terminal.line(f"Removed {_pieces(len(removed))}, {_size(freed)}")
    left = set(keys) - {file.key for file in removed}
    if left:
        terminal.warning(f"{_pieces(len(left))} could not be removed: in use, or not yours.")


@cache.command()
@click.option("--remove", is_flag=True, help="Remove what is damaged.")
@debug_option
@click.pass_context
def verify(ctx: click.Context, remove: bool) -> None:
    """Checks every byte of the kept readings against its checksum.

    Ends with exit code 1 when something is damaged. A damaged reading is never used, with or
    without this command: its documents are read again.
    """
    terminal: Terminal = ctx.obj
    folder = _folder()
    checked = 0

    with terminal.steps() as say:

        def progress(done: int, files: int) -> None:
            nonlocal checked
            checked = files
            if terminal.shows_progress:
                say(f"Checking {done:,} of {files:,} files")

        problems = verify_pieces(folder, progress)
    for path, problem in problems:
        terminal.line(f"{path} {problem}")
    terminal.line(f"{checked:,} files checked, {len(problems):,} damaged")
    if problems and remove:
        removed = sum(remove_file(path) for path, _ in problems)
        terminal.line(f"{removed:,} damaged files removed")
    elif problems:
        terminal.note("pacellm-rag cache verify --remove removes what is damaged.")
    if problems:
        ctx.exit(1)


def _folder() -> Path:
    return readings_folder()


def _keys_of_model(folder: Path, model: str) -> set[str]:
    pieces = list_pieces(folder)
    keys = {piece.key for piece in pieces if piece.model == model}
    if not keys:
        names = ", ".join(sorted({piece.model for piece in pieces})) or "none"
        raise ConfigurationError(
            f"No readings by a model {model} are kept. There are readings by: {names}."
        )
    return keys


def _keys_of_ids(folder: Path, ids: Sequence[str]) -> set[str]:
    present = {file.key for file in all_piece_files(folder)}
    chosen: set[str] = set()
    for each in ids:
        meant = {key for key in present if key.startswith(each.lower())}
        if len(each) < _SHORTEST_ID:
            fault = f"is too short to be sure; give {_SHORTEST_ID} digits or more"
        elif len(meant) != 1:
            fault = f"stands for {_pieces(len(meant))}"
        else:
            chosen |= meant
            continue
        raise ConfigurationError(
            f"The ID {each} {fault}. Nothing was removed; pacellm-rag cache ls shows the IDs."
        )
    return chosen


def _facts(piece: StoredPiece) -> dict[str, object]:
    return {
        "id": piece.key[:_ID],
        "key": piece.key,
        "parent": piece.parent,
        "model": piece.model,
        "start": piece.start,
        "end": piece.end,
        "bytes": piece.nbytes,
        "used": piece.used,
        "note": piece.note,
        "path": str(piece.path),
    }


def _table(pieces: Sequence[StoredPiece], now: float) -> list[str]:
    rows = [("id", "model", "tokens", "size", "last used", "note")]
    for piece in pieces:
        note = " ".join(piece.note.split())
        rows.append(
            (
                piece.key[:_ID],
                piece.model,
                f"{piece.end - piece.start:,} ({piece.end:,})",
                _size(piece.nbytes),
                _ago(now - piece.used),
                note if len(note) <= _LONGEST_NOTE else f"{note[:_LONGEST_NOTE]}…",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = (2, 3)
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _pieces(count: int) -> str:
    return f"{count:,} {'piece' if count == 1 else 'pieces'}"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count:,} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
