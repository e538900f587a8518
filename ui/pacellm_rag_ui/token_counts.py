"""How many tokens single documents take, counted once. Knows nothing of sessions."""

from __future__ import annotations

import threading

from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents import Document
from pacellm_rag.protocols import PromptTokenizer

__all__ = ["TokenCounts", "count_document"]

_MOST = 10_000  # numbers kept


def count_document(document: Document, tokenizer: PromptTokenizer) -> int:
    """Tokens of a document as a prompt holds it: heading, page markers, pages."""
    return tokenizer.count_tokens(pack_context([document]).text.rstrip())


class TokenCounts:
    """Counts by content, page range and tokenizer. Safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, tuple[int, int] | None], int] = {}
        self._lock = threading.Lock()

    def known(
        self, tokenizer: PromptTokenizer, content_id: str, page_range: tuple[int, int] | None
    ) -> int | None:
        """The tokens of a document; None where they have not been counted."""
        with self._lock:
            return self._counts.get((tokenizer.name, content_id, page_range))

    def count(
        self,
        tokenizer: PromptTokenizer,
        document: Document,
        page_range: tuple[int, int] | None,
    ) -> int:
        """Counts a document, cut to its page range already."""
        tokens = count_document(document, tokenizer)
        with self._lock:
            if len(self._counts) >= _MOST:
                self._counts.clear()
            self._counts[tokenizer.name, document.id, page_range] = tokens
        return tokens
