"""SIGNATURES FIRST (H2)."""

from pacellm_rag.documents import Document


def page_text_html(document: Document, number: int, quote: str = "") -> str:
    """A page's text as HTML for gr.HTML: `<div class="page-text" dir="auto">` escaped, `<mark>`.

    Raises PageImageError (trouble "no_page").
    """
    raise NotImplementedError
