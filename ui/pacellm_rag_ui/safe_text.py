"""SIGNATURES FIRST; bodies follow (H2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pacellm_rag.context.citations import Citation


def safe_markdown(text: str, *, complete: bool = True) -> str:
    """A model's answer as markdown for gr.Chatbot: no images, links, HTML; page markers gone.

    complete=False while it streams: a half-written marker at the end is held back.
    """
    raise NotImplementedError


def plain_markdown(text: str) -> str:
    """Text (a user's question, an error) as markdown that shows it literally."""
    raise NotImplementedError


def chip(citation: Citation | Mapping[str, Any], document_id: str, number: int) -> str:
    """`<a class="cite verified" href="#cite/<document id>/<page>/<number>" title="quote">Report p. 12</a>`

    Inert in gr.HTML and within a Chatbot's markdown. Mapping: the keys of dataclasses.asdict(Citation)
    (title, page, label, quote, verified). class is "cite verified" or "cite unverified".
    """
    raise NotImplementedError


def display_name(name: str, longest: int = 48) -> str:
    """A file's name for people, as plain text: still to be escaped for HTML.

    Bidi and control characters are shown as <U+202E>, long names are shortened in the middle.
    """
    raise NotImplementedError
