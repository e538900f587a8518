"""Readings that survive the process: pieces of a decoder's state on disk, found again by tokens.

A reading is what a decoder knows after a prefix of tokens. It is kept in pieces that continue one
another: [0, a), [a, b), and so on, each a file (`stored_piece`) with whatever tensors the caller
gives. Keeping is a convenience and never an obstacle: what can not be written, read or trusted is
logged, and the caller reads the tokens again. Knows token ids, names and tensors; nothing of
models, caches or documents.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.models.piece_chains import Nodes, by_node, chain_to, make_room, mark_used
from pacellm_rag.models.piece_documents import add_reading
from pacellm_rag.models.piece_lock import clear_leftovers, only_writer
from pacellm_rag.models.piece_tensors import (
    UnsupportedTensorError,
    read_tensors,
    tensor_bytes,
    write_tensors,
)
from pacellm_rag.models.stored_piece import (
    FORMAT,
    NO_PARENT,
    DamagedPieceError,
    Manifest,
    PieceFile,
    StoredPiece,
    describe,
    model_folder,
    piece_files,
    read_manifest,
    remove_file,
)

if TYPE_CHECKING:
    import torch

__all__ = ["StateStore", "StoredPiece"]

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]


class StateStore:
    """Pieces of readings by one model, in a folder that any number of processes share.

    Args:
        folder: for the pieces of all models; made when the first is saved.
        model_key: everything that the tensors depend on besides the tokens: weights, number type,
            settings. Readings under another key are never found.
        limit_bytes: most bytes that the pieces of all models may take, counted after each save.
            The chain that was just saved is kept even where it alone takes more.

    Raises:
        ConfigurationError: the limit is below 1 byte.
    """

    def __init__(self, folder: Path, model_key: str, *, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ConfigurationError(
                f"Readings can not be kept in {limit_bytes:,} bytes; give at least 1, or keep none."
            )
        self.folder = folder
        self.model_key = model_key
        self.limit_bytes = limit_bytes
        self._own = model_folder(folder, model_key)
        self._told: set[object] = set()

    def save(
        self,
        tokens: Tokens,
        start: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        model: str,
        note: str = "",
        documents: Collection[str] = (),
    ) -> bool:
        """Keeps the state of the tokens from `start` on, then makes room for it among the others.

        Nothing is written when the piece is there already. A piece whose chain back to token 0 is
        not there is refused: nobody could find it.

        Args:
            tokens: the whole sequence from 0, shape (tokens,), int64; any values.
            start: first token of the piece, which ends with the sequence.
            tensors: by name, on any device; not kept beyond the call.
            model: the model's name, for people.
            note: for people, such as titles of documents.
            documents: ids of those that the sequence holds something of, by which the piece can be
                forgotten (`readings.forget_documents`).

        Returns:
            Whether the piece is on disk now. False: it is larger than the limit, another thread or
            process is writing it, or it could not be written (logged, once for each reason).

        Raises:
            ConfigurationError: tokens or start are not as described.
        """
        if tokens.dtype != np.int64 or tokens.ndim != 1 or not 0 <= start < len(tokens):
            raise ConfigurationError(
                f"A piece has int64 tokens of shape (tokens,) and starts among them, but start is "
                f"{start} and the tokens are {tokens.dtype} of shape {tokens.shape}."
            )
        try:
            keys = _keys(self.model_key, tokens, {start, len(tokens)})
            key, parent = keys[len(tokens)], keys.get(start)
            manifest = {
                "format": FORMAT,
                "key": key,
                "parent": parent,
                "start": start,
                "end": len(tokens),
                "model_key": self.model_key,
                "model": model,
                "note": note,
            }
            self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
            clear_leftovers(self._own)
            with only_writer(self._own, key) as alone:
                if not alone:
                    logger.info("Tokens %d to %d are being kept already.", start, len(tokens))
                    return False
                return self._save(manifest, tensors, documents)
        except UnsupportedTensorError as error:
            self._warn(str(error), "a reading can not be kept. %s", error)
        except FileNotFoundError as error:
            logger.info("%s has been removed meanwhile.", error.filename)
        except OSError as error:
            self._warn(
                error.errno, "a reading could not be kept in %s: %s. %s",
                self.folder, error.strerror or error, _advice(error),
            )  # fmt: skip
        except Exception as error:  # an answer is worth more than the copy of its reading
            self._warn(type(error), "a reading could not be kept: %r. Please report this.", error)
        return False

    def _save(
        self,
        manifest: dict[str, Any],
        tensors: Mapping[str, torch.Tensor],
        documents: Collection[str],
    ) -> bool:
        key, start = manifest["key"], manifest["start"]
        present = by_node(piece_files(self._own))
        same = [file for file in present[self._own, key[:16], manifest["end"]] if file.key == key]
        for file in same:
            if chain_to(file, present) and self._manifest(file) is not None:
                self._add_reading(key, documents, new=False)
                self._touch(file, present)
                return True
        parents = present[self._own, (manifest["parent"] or NO_PARENT)[:16], start]
        if start and not any(chain_to(file, present) for file in parents):
            logger.info(
                "Tokens %d to %d are not kept: those before are not.", start, manifest["end"]
            )
            return False
        if tensor_bytes(tensors) > self.limit_bytes:
            logger.info(
                "A piece of %s bytes is not kept: the limit is %s.",
                f"{tensor_bytes(tensors):,}", f"{self.limit_bytes:,}",
            )  # fmt: skip
            return False
        self._add_reading(key, documents, new=not same)  # first: no piece is nobody's
        written = self._write(manifest, tensors)
        for file in same:
            if file.path != written:
                remove_file(file.path)
        make_room(self.folder, PieceFile.at(written), self.limit_bytes)
        return True

    def _add_reading(self, key: str, documents: Collection[str], *, new: bool) -> None:
        try:
            add_reading(self._own, key, documents, new=new)
        except ValueError:  # damaged; as it stands it goes with whatever is forgotten next
            logger.info("Which documents %s is of can not be read.", key)

    def _write(self, manifest: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
        key, start, end = manifest["key"], manifest["start"], manifest["end"]
        parent = (manifest["parent"] or NO_PARENT)[:16]
        handle, temporary = tempfile.mkstemp(".partial", f"{key}.", self._own)
        try:
            with os.fdopen(handle, "wb") as stream:
                header = write_tensors(stream, tensors, manifest)
                stream.flush()
                os.fsync(stream.fileno())
            path = self._own / f"{key}.{parent}.{start}-{end}.{header[:16]}.safetensors"
            os.replace(temporary, path)
        except BaseException:
            remove_file(Path(temporary))
            raise
        _sync_folder(self._own)
        return path

    def chain(self, tokens: Tokens, limit: int) -> list[StoredPiece]:
        """Finds the kept reading that covers most of a sequence's beginning, and marks it as used.

        Args:
            tokens: the sequence from 0, shape (tokens,), int64.
            limit: most tokens to cover.

        Returns:
            Its pieces in order, from token 0 on without a gap; none if nothing is kept.
        """
        limit = min(limit, len(tokens))
        try:
            files = [file for file in piece_files(self._own) if file.start < file.end <= limit]
        except OSError as error:
            self._warn(error.errno, "kept readings can not be looked up: %s", error)
            return []
        keys = _keys(self.model_key, tokens, {file.end for file in files})
        files = [file for file in files if keys[file.end] == file.key]
        while files:
            present = by_node(files)
            furthest = sorted(files, key=lambda file: (-file.end, -file.used))
            longest = next((c for file in furthest if (c := chain_to(file, present))), None)
            if longest is None:
                break
            manifests = {file.path: self._manifest(file) for file in longest}
            pieces = [describe(file, said) for file in longest if (said := manifests[file.path])]
            if len(pieces) == len(longest):
                mark_used(longest)
                return pieces
            files = [file for file in files if manifests.get(file.path, file) is not None]
        return []

    def load(self, piece: StoredPiece) -> dict[str, torch.Tensor] | None:
        """Reads a piece, checks every byte of it, and marks its chain as used.

        The tensors are views of the mapped file: the check reads it once, and nothing is copied.
        They stay valid when the piece is removed.

        Returns:
            The tensors as they were saved, in main memory. None when they can not be had: read
            the tokens again. What is damaged is logged and removed.
        """
        try:
            file = PieceFile.at(piece.path)
            if file.path.parent != self._own or file.key != piece.key:
                self._warn(piece.path, "%s is no piece of this model's readings.", piece.path)
                return None
            manifest = self._manifest(file)
            if manifest is None:
                return None
            tensors = read_tensors(file, manifest)
            self._touch(file, by_node(piece_files(self._own)))
        except FileNotFoundError:  # another process made room
            logger.info("%s has been removed meanwhile.", piece.path)
        except (DamagedPieceError, SafetensorError) as error:
            self._discard(piece.path, error)
        except Exception as error:  # too little memory or file handles: not the file's fault
            self._warn(type(error), "a kept reading could not be loaded: %r", error)
        else:
            return tensors
        return None

    def _manifest(self, file: PieceFile) -> Manifest | None:
        """What a piece says of itself; None where it can not be read. Damaged ones are removed."""
        try:
            manifest = read_manifest(file)
        except DamagedPieceError as error:
            self._discard(file.path, error)
        except FileNotFoundError:
            logger.info("%s has been removed meanwhile.", file.path)
        except OSError as error:
            self._warn(error.errno, "a kept reading can not be read: %s", error)
        else:
            return manifest
        return None

    def _discard(self, path: Path, error: Exception) -> None:
        remove_file(path)
        self._warn(path, "a kept reading is read again, because its file %s %s.", path, error)

    def _warn(self, reason: object, message: str, *arguments: object) -> None:
        """Logs a warning, once for each reason."""
        level = logging.DEBUG if reason in self._told else logging.WARNING
        self._told.add(reason)
        logger.log(level, message[:1].upper() + message[1:], *arguments)

    def _touch(self, file: PieceFile, present: Nodes) -> None:
        mark_used(chain_to(file, present) or [file])


def _keys(model_key: str, tokens: Tokens, ends: Collection[int]) -> dict[int, str]:
    """The keys of the prefixes with these ends, all in one pass; 0 has none."""
    name = model_key.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"pacellm-rag reading" + len(name).to_bytes(8, "little") + name)
    content = np.ascontiguousarray(tokens, dtype="<i8").data
    found, reached = {}, 0
    for end in sorted(set(ends) - {0}):
        digest.update(content[reached:end])
        found[end], reached = digest.copy().hexdigest(), end
    return found


def _sync_folder(folder: Path) -> None:
    """Makes a new name in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            "Make room on the disk, remove readings with `pacellm-rag cache rm`, or name another "
            "folder with PACELLM_RAG_CACHE."
        )
    return "Give write permission there, or name another folder with PACELLM_RAG_CACHE."
