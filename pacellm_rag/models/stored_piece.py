"""A piece of a reading as a file: its name, its header, and whether these agree.

A piece holds what a decoder knows after the tokens [start, end) of a sequence. It is one
safetensors file, `<key>.<parent>.<start>-<end>.<header>.safetensors`, in a folder per model:

    key      sha256 over the model's key and the tokens [0, end), 64 hex digits
    parent   the first 16 digits of the key of the piece that ends at `start`; zeros at start 0
    header   the first 16 digits of the sha256 of the file's header, its length field included

The header carries a manifest with the sha256 of each tensor's bytes, and the name carries the
header's, so no byte of a file can change unnoticed. Knows bytes and names only, and neither torch
nor models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacellm_rag.errors import PaceLLMError

__all__ = [
    "FORMAT",
    "DamagedPieceError",
    "Manifest",
    "PieceFile",
    "StoredPiece",
    "all_piece_files",
    "describe",
    "entries",
    "model_folder",
    "piece_files",
    "read_manifest",
    "remove_file",
]

FORMAT = 1  # raise it when files of before can not be used any more
NO_PARENT = "0" * 16
_NAME = re.compile(
    r"([0-9a-f]{64})\.([0-9a-f]{16})\.(\d{1,15})-(\d{1,15})\.([0-9a-f]{16})\.safetensors"
)
_LONGEST_HEADER = 64 * 2**20  # bytes; ours are some kilobytes


class DamagedPieceError(PaceLLMError):
    """A file is not the piece that its name promises; the message completes "the file ..."."""


@dataclass(frozen=True)
class PieceFile:
    """A piece as far as its file's name tells.

    Attributes:
        path: the file.
        key: 64 hex digits.
        parent: first 16 hex digits of the key of the piece before it; zeros where start is 0.
        start: first token of the piece.
        end: token behind its last.
        header: first 16 hex digits of the header's sha256.
        nbytes: size of the file in bytes.
        used: last use in seconds since the epoch.
    """

    path: Path
    key: str
    parent: str
    start: int
    end: int
    header: str
    nbytes: int
    used: float

    @classmethod
    def at(cls, path: Path) -> PieceFile:
        """Reads a name.

        Raises:
            DamagedPieceError: it is no name of a piece.
            OSError: there is no such file.
        """
        named = _NAME.fullmatch(path.name)
        if named is None:
            raise DamagedPieceError("has no name of a piece: it is foreign, or was renamed")
        key, parent, start, end, header = named.groups()
        stat = path.stat()
        return cls(
            path, key, parent, int(start), int(end), header, stat.st_size, stat.st_mtime_ns / 1e9
        )

    @property
    def node(self) -> tuple[Path, str, int]:
        """What pieces that continue this one have as `before`."""
        return self.path.parent, self.key[:16], self.end

    @property
    def before(self) -> tuple[Path, str, int] | None:
        """The `node` of the piece that this one continues; None at the start of a sequence."""
        return (self.path.parent, self.parent, self.start) if self.start else None


@dataclass(frozen=True)
class StoredPiece:
    """What is known of a piece without reading its tensors.

    Attributes:
        key: hex sha256 over the model's key and the tokens [0, end).
        parent: key of the piece that ends at `start`; None where start is 0.
        start: first token of the piece.
        end: token behind its last.
        nbytes: size of the file in bytes.
        model: the model's name, for people.
        note: for people, such as titles of documents.
        used: last use in seconds since the epoch.
        path: the file.
    """

    key: str
    parent: str | None
    start: int
    end: int
    nbytes: int
    model: str
    note: str
    used: float
    path: Path


@dataclass(frozen=True)
class Manifest:
    """What a piece's header says.

    Attributes:
        model_key: what the tensors depend on besides the tokens.
        parent: key of the piece before it, or None.
        model: the model's name, for people.
        note: for people.
        digests: hex sha256 of each tensor's bytes, by name.
        ranges: where each tensor lies in the file: first byte, and the one behind its last.
    """

    model_key: str
    parent: str | None
    model: str
    note: str
    digests: dict[str, str]
    ranges: dict[str, tuple[int, int]]


def model_folder(folder: Path, model_key: str) -> Path:
    """Where the pieces of a model lie."""
    name = hashlib.sha256(model_key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return folder / name


def piece_files(folder: Path) -> list[PieceFile]:
    """The pieces in the folder of one model, by their names; whatever else lies there is left out.

    Raises:
        OSError: the folder can not be listed; one that does not exist is empty.
    """
    found = []
    for path in entries(folder):
        with contextlib.suppress(DamagedPieceError, FileNotFoundError):  # removed by others
            found.append(PieceFile.at(path))
    return found


def all_piece_files(folder: Path) -> list[PieceFile]:
    """The pieces of all models below `folder`, by their names.

    Raises:
        OSError: a folder can not be listed.
    """
    return [
        file for inner in entries(folder) if inner.is_dir() for file in piece_files(inner)
    ]  # fmt: skip


def read_manifest(file: PieceFile) -> Manifest:
    """Reads a piece's header and checks it, its name, and the file's length.

    Raises:
        DamagedPieceError: something does not agree.
        OSError: the file can not be read.
    """
    with file.path.open("rb") as stream:
        header = stream.read(8)
        length = int.from_bytes(header, "little")
        if len(header) < 8 or length > min(_LONGEST_HEADER, file.nbytes - 8):
            raise DamagedPieceError("ends within its header")
        header += stream.read(length)
        stream.seek(0, 2)
        size = stream.tell()
    if hashlib.sha256(header).hexdigest()[:16] != file.header:
        raise DamagedPieceError("has a header with a wrong checksum")
    try:
        return _checked(file, json.loads(header[8:]), len(header), size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedPieceError(f"has a manifest that can not be read ({error!r})") from error


def _checked(file: PieceFile, header: dict[str, Any], offset: int, size: int) -> Manifest:
    said = json.loads(header.pop("__metadata__")["manifest"])
    if said["format"] != FORMAT:
        raise DamagedPieceError(f"has format {said['format']}; this version reads {FORMAT}")
    parent = said["parent"] or NO_PARENT
    if (said["key"], said["start"], said["end"], parent[:16]) != (
        file.key, file.start, file.end, file.parent,
    ) or (said["parent"] is None) != (said["start"] == 0):  # fmt: skip
        raise DamagedPieceError("is another piece than its name says")
    if model_folder(Path(), said["model_key"]).name != file.path.parent.name:
        raise DamagedPieceError("belongs to another model")
    spans = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
    ranges = {name: (offset + begin, offset + end) for name, (begin, end) in spans.items()}
    reached = offset
    for begin, end in sorted(ranges.values()):
        if begin != reached or end < begin:
            raise DamagedPieceError("has tensors that overlap or leave gaps")
        reached = end
    if reached != size:
        raise DamagedPieceError(f"has {size:,} bytes instead of {reached:,}")
    if ranges.keys() != said["sha256"].keys():
        raise DamagedPieceError("has a manifest of other tensors")
    return Manifest(
        said["model_key"], said["parent"], said["model"], said["note"], said["sha256"], ranges
    )


def describe(file: PieceFile, manifest: Manifest) -> StoredPiece:
    """A piece from its name and its header."""
    return StoredPiece(
        key=file.key,
        parent=manifest.parent,
        start=file.start,
        end=file.end,
        nbytes=file.nbytes,
        model=manifest.model,
        note=manifest.note,
        used=file.used,
        path=file.path,
    )


def remove_file(path: Path) -> bool:
    """Removes a file; False where the system refuses, as Windows does while it is mapped."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing in one that does not exist.

    Raises:
        OSError: it can not be listed.
    """
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
