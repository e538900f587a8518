"""Files within messages: LangChain's and OpenAI's `file` blocks as documents.

Knows the blocks' shapes. Reading a file, in a child process and under limits, is
`pacellm_rag.documents`' business; what was read is remembered for the next question about it.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Mapping
from typing import Any

import pacellm_rag.documents as files
from langchain_pacellm.errors import PaceInvalidRequestError

__all__ = ["document_of_block"]


_remembered = files.RememberedDocuments(8)


def document_of_block(block: Mapping[str, Any]) -> files.Document:
    """Reads the file of a `file` block.

    Args:
        block: `{"type": "file", "base64": ..., "mime_type": ...}`, the older form with
            `source_type` and `data`, or OpenAI's `{"type": "file", "file": {"filename": ...,
            "file_data": "data:...;base64,..."}}`.

    Raises:
        PaceInvalidRequestError: there is no content in the block, or it is not base64.
        DocumentError: the file can not be read.
    """
    own = block.get("file")
    inner: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    content = block.get("base64") or block.get("data") or inner.get("file_data")
    if not isinstance(content, str):
        raise PaceInvalidRequestError(
            f"A file block has no content of its own, only {_keys(block, inner)}; files are not "
            "fetched. Give its bytes as base64 text."
        )
    media_type = str(block.get("mime_type") or "")
    if content.startswith("data:"):
        head, _, content = content.partition(",")
        media_type = head.removeprefix("data:").partition(";")[0] or media_type
    try:
        data = base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PaceInvalidRequestError(
            f"The content of a file block is not base64: {error}. Encode the file's bytes with "
            "base64.b64encode(...).decode()."
        ) from error
    return _remembered.open(data, _name(block, inner, media_type))


def _name(block: Mapping[str, Any], inner: Mapping[str, Any], media_type: str) -> str:
    extras = block.get("extras")
    places = (block, inner, extras if isinstance(extras, Mapping) else {})
    for place in places:
        for key in ("filename", "file_name", "name", "title"):
            if isinstance(place.get(key), str) and place[key].strip():
                return str(place[key])
    return f"file{mimetypes.guess_extension(media_type) or ''}"


def _keys(block: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    found = sorted((set(block) | set(inner)) - {"type", "file"})
    return ", ".join(found) or "nothing"
