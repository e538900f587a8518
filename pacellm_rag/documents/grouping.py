"""Pages that came through somebody else's hands, put together into whole documents again.

Frameworks pass pages around one by one, each with what it knows of its place. Knows nothing of
any framework.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pacellm_rag.documents.types import Document, Page

__all__ = ["LoosePage", "documents_from_pages"]


@dataclass(frozen=True)
class LoosePage:
    """A page, or a piece of one, and what is known of its place.

    Attributes:
        document: what all pages of one document have in common: an id, a path, a name.
        text: its text.
        title: the document's title; "" takes `document`.
        source: where the document came from.
        number: physical page number, from 1; None where it is not known.
        label: the number printed on the page; None where it is not known.
    """

    document: str
    text: str
    title: str = ""
    source: str = ""
    number: int | None = None
    label: str | None = None


def documents_from_pages(pages: Iterable[LoosePage]) -> tuple[Document, ...]:
    """Whole documents of loose pages.

    Documents come in the order of their first pages, pages in that of their numbers. Pieces of the
    same page become one page, in the order in which they came. Where a document has pages without
    numbers, its pages are numbered as they came, each piece a page.
    """
    groups: dict[str, list[LoosePage]] = {}
    for page in pages:
        groups.setdefault(page.document, []).append(page)
    return tuple(_document(key, group) for key, group in groups.items())


def _document(key: str, group: list[LoosePage]) -> Document:
    if all(page.number is not None for page in group):
        numbered = [(page.number or 0, page) for page in group]
        numbered.sort(key=lambda pair: pair[0])
    else:
        numbered = list(enumerate(group, start=1))
    texts: dict[int, list[str]] = {}
    labels: dict[int, str] = {}
    for number, page in numbered:
        texts.setdefault(number, []).append(page.text)
        labels.setdefault(number, page.label or str(number))
    made = tuple(Page(n, labels[n], "\n".join(said)) for n, said in texts.items())
    digest = hashlib.sha256()
    for page_made in made:
        digest.update(f"{page_made.number}\0{page_made.text}\0".encode("utf-8", "surrogatepass"))
    whole_id = key if key.startswith("sha256:") else f"sha256:{digest.hexdigest()}"
    title = next((page.title for page in group if page.title), key)
    source = next((page.source for page in group if page.source), "")
    return Document(whole_id, title, made, source)
