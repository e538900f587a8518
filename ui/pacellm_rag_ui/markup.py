"""Small pieces of HTML that several parts of the page are drawn from.

Everything that comes from files, people or models is escaped here or by `safe_text`; the page puts
these strings into `gr.HTML`, which escapes nothing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from markdown_it import MarkdownIt

from pacellm_rag_ui.safe_text import chip, display_name, safe_markdown
from pacellm_rag_ui.views import CitationView

__all__ = [
    "action",
    "answer_body",
    "answered_by",
    "chips",
    "escape",
    "icon",
    "notice",
    "plural",
    "safe_body",
]

# Answers are made safe by `safe_markdown`; this renderer could not draw a link or HTML either.
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable("table")
    .disable(["image", "link", "autolink", "reference", "html_inline", "html_block"])
)

_ICONS = {
    "up": "M8 12.5v-9M3.8 7.2 8 3l4.2 4.2",
    "down": "M8 3.5v9M3.8 8.8 8 13l4.2-4.2",
    "more": "M3 8h.01M8 8h.01M13 8h.01",
    "close": "m4 4 8 8M12 4l-8 8",
    "warn": "M8 2.5 14.2 13H1.8zM8 6.5v3M8 11.2h.01",
    "copy": "M5.5 5.5h7v7h-7zM10.5 5.5v-2h-7v7h2",
    "retry": "M13 8a5 5 0 1 1-1.6-3.7M13 2.5v3h-3",
    "edit": "M3 13l.7-3L11 2.7a1.1 1.1 0 0 1 1.6 0l.7.7a1.1 1.1 0 0 1 0 1.6L6 12.3z",
    "file": "M4 1.8h5.2L12.5 5v9.2H4zM9 1.8V5.2h3.4",
    "chat": "M2.5 3.5h11v7.5H7.5L4.5 13.5V11h-2z",
    "bin": "M3 4.5h10M6.2 4.5v-2h3.6v2M4.5 4.5l.6 9h5.8l.6-9",
    "pen": "M3 13l.7-3L11 2.7l2.3 2.3L6 12.3z",
}


def escape(text: str) -> str:
    """Text as HTML, in elements and in quoted attributes."""
    return html.escape(text, quote=True)


def icon(name: str) -> str:
    """A line drawing of 16 by 16, hidden from screen readers."""
    return (
        '<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false">'
        f'<path d="{_ICONS[name]}"/></svg>'
    )


def action(
    event: str, label: str, *, kind: str = "", shows: str = "", classes: str = "", **data: str
) -> str:
    """A button that sends an event to the server (or to the page's script: "local").

    Args:
        event: one of the bridge's events.
        label: for screen readers, and as a tip.
        kind: what is to be done.
        shows: HTML within; the label as text without it.
        classes: further CSS classes.
        data: further values of the event.
    """
    values = {"kind": kind, **data}
    attributes = " ".join(f'data-{k}="{escape(v)}"' for k, v in values.items() if v)
    tip = f' title="{escape(label)}" aria-label="{escape(label)}"' if shows else ""
    return (
        f'<button type="button" class="act {classes}" data-act="{event}" {attributes}{tip}>'
        f"{shows or escape(label)}</button>"
    )


def answer_body(text: str) -> str:
    """A model's own words as HTML."""
    return safe_body(safe_markdown(text))


def safe_body(markdown: str) -> str:
    """Markdown that `safe_markdown` has made, as HTML."""
    return f'<div class="prose" dir="auto">{_MARKDOWN.render(markdown)}</div>'


def chips(citations: Iterable[CitationView]) -> str:
    """The sources of an answer, each a link to its page; nothing where there are none."""
    drawn = [
        f'<span data-quote="{escape(c.quote)}">{chip(c.as_dict(), c.document_id, n)}</span>'
        for n, c in enumerate(citations, 1)
    ]
    return f'<div class="sources" aria-label="Sources">{"".join(drawn)}</div>' if drawn else ""


def answered_by(model: str) -> str:
    """Who has written an answer, as text; "" where that is not worth telling."""
    return f"Answered by {display_name(model, 80)}" if model else ""


def notice(text: str, kind: str = "quiet") -> str:
    """A line for people: kind "quiet", "warning" or "error"."""
    if not text:
        return ""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="notice {kind}"{role} dir="auto">{escape(text)}</p>'


def plural(number: int, noun: str) -> str:
    """Such as "1 page" and "1,200 pages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
