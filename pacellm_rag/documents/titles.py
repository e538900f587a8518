"""What a document is called: its own title where that means something, else its file's name.

Knows the titles that word processors and printer drivers leave behind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from pacellm_rag.documents.cleaning import clean_line
from pacellm_rag.documents.types import Document

__all__ = ["base_name", "choose_title", "with_distinct_titles"]

_MEANINGLESS = re.compile(
    r"""(?ix)
    \W* (?: untitled(?:\W+\w+)? | no\ title | unspecified | unknown | anonymous | title | document
          | presentation | powerpoint\ presentation | slide | layout | full\ page | print )
    \W* \d* \W*
    | microsoft\ (?:word|powerpoint|excel|office\ \w+)\ -\ .*
    | .* \.(?:docx?|dotx?|odt|rtf|pdf|tex|dvi|ps|eps|indd|qxp|qxd|pptx?|xlsx?|html?|txt|md|tmp)
    | (?:[a-z]:)?[\\/].* | file:.* | https?:.*
    | .*\ufffd.*
    """
)


def choose_title(own_title: str | None, name: str) -> str:
    """The title of a file.

    Args:
        own_title: what its metadata or first heading says.
        name: its name, with or without folders.
    """
    title = clean_line(own_title or "")
    letters = sum(character.isalpha() for character in title)
    if letters >= 2 and not _MEANINGLESS.fullmatch(title):
        return title
    return clean_line(PurePath(base_name(name)).stem) or "Untitled"


def base_name(name: str) -> str:
    """A path's last part, whichever system's path it is."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def with_distinct_titles(documents: Sequence[Document]) -> list[Document]:
    """Adds to equal titles what tells the documents apart: the file's name, else a number."""
    titles = [document.title for document in documents]
    repeated = _repeated(titles)
    for position, document in enumerate(documents):
        if titles[position].casefold() in repeated and document.source:
            titles[position] = f"{titles[position]} ({clean_line(base_name(document.source))})"
    taken: set[str] = set()
    for position, title in enumerate(titles):
        distinct, number = title, 2
        while distinct.casefold() in taken:
            distinct, number = f"{title} ({number})", number + 1
        taken.add(distinct.casefold())
        titles[position] = distinct
    return [
        replace(document, title=title) for document, title in zip(documents, titles, strict=True)
    ]


def _repeated(titles: Sequence[str]) -> set[str]:
    counts = Counter(title.casefold() for title in titles)
    return {title for title, count in counts.items() if count > 1}
