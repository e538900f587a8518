"""A parsed document as bytes and back, so that no file is parsed twice.

Knows the document's types only.
"""

from __future__ import annotations

import json

from pacellm_rag.documents import Document, DocumentWarning, Page

__all__ = ["document_from_bytes", "document_to_bytes"]

_FORMAT = 1


def document_to_bytes(document: Document) -> bytes:
    """The whole document but for its source, which is a place on some machine."""
    content = {
        "format": _FORMAT,
        "id": document.id,
        "title": document.title,
        "media_type": document.media_type,
        "pages": [[page.number, page.label, page.text] for page in document.pages],
        "warnings": [[each.kind, each.message, list(each.pages)] for each in document.warnings],
    }
    # A file may hold half characters (lone surrogates); they come back as they were.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def document_from_bytes(data: bytes, source: str) -> Document:
    """The document that `document_to_bytes` was given.

    Args:
        data: what it returned.
        source: what the document's `source` is to say.

    Raises:
        ValueError: this is something else, or damaged.
    """
    content = json.loads(data.decode("utf-8", "surrogatepass"))
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r} of parsed pages is not known")
        return Document(
            id=content["id"],
            title=content["title"],
            pages=tuple(Page(number, label, text) for number, label, text in content["pages"]),
            source=source,
            media_type=content["media_type"],
            warnings=tuple(
                DocumentWarning(kind, message, tuple(pages))
                for kind, message, pages in content["warnings"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no parsed pages: {error!r}") from error
