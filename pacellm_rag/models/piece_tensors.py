"""The tensors of a piece, to and from its safetensors file, with the checksums of their bytes.

The file is written here instead of by safetensors: in one pass, with one tensor at a time in main
memory and its checksum taken while it is written, and with the system's own errors, which tell a
full disk from others. It is read by safetensors, mapped. Knows nothing of where files lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from pacellm_rag.errors import PaceLLMError
from pacellm_rag.models.stored_piece import DamagedPieceError, Manifest, PieceFile

__all__ = ["UnsupportedTensorError", "read_tensors", "tensor_bytes", "write_tensors"]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_WORTH_TWO_THREADS = 4 * 2**20  # bytes


class UnsupportedTensorError(PaceLLMError):
    """A tensor can not be kept in a file."""


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(
    stream: BinaryIO, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]
) -> str:
    """Writes a safetensors file.

    Args:
        stream: an empty file, open for writing and seeking.
        tensors: on any device, of any shape and stride.
        manifest: what to keep beside them; `sha256`, the tensors' checksums by name, is added.

    Returns:
        Hex sha256 of the header, its length field included.

    Raises:
        UnsupportedTensorError: a tensor's type or layout has no place in such files.
        OSError: the file can not be written.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or name == "__metadata__":
            known = ", ".join(str(dtype) for dtype in _DTYPES)
            raise UnsupportedTensorError(
                f"Tensor {name} ({tensor.dtype}, {tensor.layout}) can not be kept in a file; "
                f"dense ones of these types can: {known}."
            )
    # wide elements first, so that all are aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    stream.write(_header(order, tensors, manifest, dict.fromkeys(order, "0" * 64)))
    digests = {}
    with ThreadPoolExecutor(1) as beside:
        for name in order:
            content = _content(tensors[name].detach().cpu().contiguous())
            digest = beside.submit(_sha256, content)
            stream.write(content.data)
            digests[name] = digest.result()
    header = _header(order, tensors, manifest, digests)
    stream.seek(0)
    stream.write(header)
    return hashlib.sha256(header).hexdigest()


def _header(
    order: list[str],
    tensors: Mapping[str, torch.Tensor],
    manifest: Mapping[str, Any],
    digests: Mapping[str, str],
) -> bytes:
    said = json.dumps({**manifest, "sha256": digests}, sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "manifest": said}}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_tensors(file: PieceFile, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Maps a piece's tensors into memory and checks every byte of them.

    The tensors are views of the mapping, not copies: their pages are the file cache's, and stay
    valid when the file is removed. Writing to a tensor changes neither the file nor others' views.

    Raises:
        DamagedPieceError: the tensors are not those that were saved.
        OSError: the file can not be read.
    """
    with safe_open(file.path, framework="pt", device="cpu") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if tensors.keys() != manifest.digests.keys():
        raise DamagedPieceError("has a manifest of other tensors")
    contents = [_content(tensor) for tensor in tensors.values()]
    if sum(content.nbytes for content in contents) < _WORTH_TWO_THREADS:
        digests = [_sha256(content) for content in contents]
    else:
        with ThreadPoolExecutor(2) as pool:  # hashlib lets go of Python's lock
            digests = list(pool.map(_sha256, contents))
    for name, digest in zip(tensors, digests, strict=True):
        if digest != manifest.digests[name]:
            raise DamagedPieceError(f"has a wrong checksum in tensor {name}")
    return tensors


def _content(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a contiguous tensor in main memory, not copied."""
    content: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return content


def _sha256(content: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(content.data).hexdigest()
