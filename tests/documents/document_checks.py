"""What several tests of documents share: tight limits, and reading that may be refused."""

from __future__ import annotations

from pacellm_rag.documents import Document, DocumentLimits, load_document_bytes
from pacellm_rag.errors import DocumentError

TIGHT_LIMITS = DocumentLimits(
    pages=50,
    characters_per_page=20_000,
    characters=200_000,
    unpacked_bytes=20_000_000,
    memory_bytes=400 * 1024**2,
    cpu_seconds=4,
    wall_seconds=6,
    page_seconds=3,
)
"""Under these a bomb goes off in seconds and an ordinary file is read."""


def read_or_refuse(
    data: bytes, name: str, limits: DocumentLimits = TIGHT_LIMITS
) -> Document | None:
    """Reads a file, or gives None where it is refused with an error that names it."""
    try:
        return load_document_bytes(data, name, limits=limits)
    except DocumentError as error:
        if name not in str(error):
            raise
        return None
