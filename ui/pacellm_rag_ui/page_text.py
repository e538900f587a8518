"""The text of a page as HTML, for documents that have no page images.

Knows HTML escaping and `find_places`; nothing of files or of the page around it.
"""

from __future__ import annotations

import html

from pacellm_rag.documents import Document
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.quote_places import find_places

__all__ = ["page_text_html"]


def page_text_html(document: Document, number: int, quote: str = "") -> str:
    """A page's text with the quotation in `<mark>`; the first mark has the id `quote`.

    The lines are kept as they are: the element wants `white-space: pre-wrap`. Everything from
    the document is escaped, so it is fit for `gr.HTML`, which does not sanitise.

    Args:
        document: the document.
        number: physical page number, from 1.
        quote: what to mark, "" for nothing.

    Raises:
        PageImageError: there is no such page (`trouble` "no_page").
    """
    page = next((page for page in document.pages if page.number == number), None)
    if page is None:
        raise PageImageError(
            f"There is no page {number}: the document has {len(document.pages)} pages.", "no_page"
        )
    if not page.text.strip():
        return '<div class="page-text empty">This page has no text.</div>'
    pieces, done = [], 0
    for start, end in find_places(quote, page.text):
        name = "" if done else ' id="quote"'
        pieces.append(html.escape(page.text[done:start]))
        pieces.append(f"<mark{name}>{html.escape(page.text[start:end])}</mark>")
        done = end
    pieces.append(html.escape(page.text[done:]))
    return f'<div class="page-text" dir="auto">{"".join(pieces)}</div>'
