"""How the left side is drawn: the documents, what is being taken in, the meter, the conversations.

Values in, HTML out; knows no Gradio.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pacellm_rag_ui.library import StoredConversation, StoredDocument
from pacellm_rag_ui.markup import action, escape, icon, notice, plural
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.views import FileReport, Meter

__all__ = ["conversations_html", "documents_html", "meter_html", "models_html", "reports_html"]


def documents_html(documents: Sequence[StoredDocument], meter: Meter | None) -> str:
    """The list of documents; each with a tick, its size, its warnings and what can be done."""
    if not documents:
        return '<p class="hint">Nothing here yet. Up to a handful of long documents work best.</p>'
    tokens = {d.id: d.tokens for d in meter.documents} if meter is not None else {}
    rows = "".join(
        _document(document, tokens.get(document.id, document.tokens), place, len(documents))
        for place, document in enumerate(documents)
    )
    return f'<ul class="documents" aria-label="Documents">{rows}</ul>'


def _document(document: StoredDocument, tokens: int | None, place: int, number: int) -> str:
    name = escape(display_name(document.name))
    facts = [plural(document.pages, "page")]
    if document.page_range is not None:
        first, last = document.page_range
        facts = [f"pages {first}-{last} of {document.pages:,}"]
    if tokens is not None:
        facts.append(plural(tokens, "token"))
    warnings = "".join(f"<li dir='auto'>{escape(text)}</li>" for text in document.warnings)
    if warnings:
        shown = plural(len(document.warnings), "warning")
        warnings = (
            f'<details class="warnings"><summary>{icon("warn")}{shown}</summary>'
            f"<ul>{warnings}</ul></details>"
        )
    ticked = "checked" if document.chosen else ""
    box = (
        f'<input type="checkbox" class="tick" data-act="document" data-kind="choose" '
        f'data-id="{escape(document.id)}" {ticked} aria-label="Read {name}">'
    )
    title = (
        f'<button type="button" class="name" data-act="local" data-kind="open" '
        f'data-id="{escape(document.id)}" title="{escape(display_name(document.name, 400))}" '
        f'dir="auto">{name}</button>'
    )
    return (
        f'<li class="document{"" if document.chosen else " off"}" data-id="{escape(document.id)}">'
        f'{box}<div class="what">{title}<p class="facts">{" · ".join(facts)}</p>{warnings}</div>'
        f"{_menu(document, place, number)}</li>"
    )


def _menu(document: StoredDocument, place: int, number: int) -> str:
    one = document.id
    items = [
        action("about", "Summarise", kind="summary", id=one),
        action("about", "Suggest questions", kind="questions", id=one),
        action(
            "local",
            "Choose pages…",
            kind="pages",
            id=one,
            last=str(document.pages),
            range="-".join(map(str, document.page_range or ())),
        ),
        f'<a href="original/{escape(one)}" target="_blank" rel="noopener">Open the original</a>',
    ]
    if place:
        items.append(action("document", "Move up", kind="up", id=one))
    if place < number - 1:
        items.append(action("document", "Move down", kind="down", id=one))
    items.append(
        action(
            "document",
            "Remove",
            kind="remove",
            classes="danger",
            id=one,
            confirm=f"Remove {display_name(document.name)} and its file from this server?",
        )
    )
    name = escape(display_name(document.name))
    return (
        f'<details class="menu"><summary aria-label="More for {name}" title="More">{icon("more")}'
        f'</summary><div class="items">{"".join(items)}</div></details>'
    )


def reports_html(reports: Mapping[str, FileReport]) -> str:
    """Files that are being taken in, those that were refused, and those that need a password.

    Of the latter the page's script makes rows of its own, with a field to write into.

    Args:
        reports: by the token of the file's upload.
    """
    rows = "".join(_report(*each) for each in reports.items() if each[1].state != "ready")
    return f'<ul class="reports" aria-live="polite">{rows}</ul>' if rows else ""


def _report(token: str, report: FileReport) -> str:
    if report.state == "locked":
        return (
            f'<li hidden class="locked" data-token="{escape(token)}">{escape(report.message)}</li>'
        )
    refused = report.state == "refused"
    sign = icon("warn") if refused else '<span class="spinner" aria-hidden="true"></span>'
    close = (
        action("local", "Dismiss", kind="dismiss", shows=icon("close"), classes="small")
        if refused
        else ""
    )
    return (
        f'<li class="report {report.state}">{sign}<div class="what"><p class="name" dir="auto">'
        f'{escape(display_name(report.name))}</p><p class="facts" dir="auto">'
        f"{escape(report.message)}</p></div>{close}</li>"
    )


def meter_html(meter: Meter) -> str:
    """How full the model's window is: a bar of the documents, the rest and the answer."""
    chosen = [d for d in meter.documents if d.chosen]
    if not meter.documents:
        return ""
    if meter.message and not meter.window:
        return notice(meter.message, "warning")
    scale = max(meter.window, meter.total, 1)
    parts = [(d.title, d.tokens or 0, f"doc{n % 2}") for n, d in enumerate(chosen)]
    parts.append(("Instructions, conversation and question", meter.other_tokens, "other"))
    parts.append(("Kept for the answer", meter.answer_tokens, "answer"))
    bars = "".join(
        f'<i class="{kind}" style="width:{100 * tokens / scale:.2f}%" '
        f'title="{escape(f"{name}: {tokens:,} tokens")}"></i>'
        for name, tokens, kind in parts
    )
    if meter.fits:
        left = f"{meter.room:,} free"
    elif meter.room < 0:
        left = f"{-meter.room:,} too many"
    else:
        left = "can not be sent"
    said = f"{meter.total:,} of {meter.window:,} tokens"
    return (
        f'<div class="meter {"" if meter.fits else "over"}"><p class="line"><span>{said}</span>'
        f'<strong>{left}</strong></p><div class="fill" role="meter" aria-valuemin="0" '
        f'aria-valuemax="{meter.window}" aria-valuenow="{meter.total}" '
        f'aria-label="Tokens of the model&#39;s window">{bars}</div>{_advice(meter)}</div>'
    )


def _advice(meter: Meter) -> str:
    if meter.fits:
        known = meter.known_tokens
        return f'<p class="facts">{known:,} of them read already</p>' if known else ""
    buttons = ""
    if meter.untick:
        several = len(meter.untick) > 1
        label = f"Untick {len(meter.untick)} documents" if several else "Untick it"
        buttons += action(
            "document", label, kind="untick", id=" ".join(meter.untick), classes="soft"
        )
    if meter.keep_pages is not None:
        one, first, last = meter.keep_pages
        label = f"Keep pages {first}-{last}"
        buttons += action(
            "document", label, kind="pages", id=one, range=f"{first}-{last}", classes="soft"
        )
    said = meter.advice or meter.message
    return f'{notice(said, "error")}<div class="buttons">{buttons}</div>'


def conversations_html(
    conversations: Sequence[StoredConversation], current: str | None, now: float | None = None
) -> str:
    """Earlier conversations, the newest first."""
    if not conversations:
        return '<p class="hint">Conversations are kept here until you delete them.</p>'
    now = time.time() if now is None else now
    rows = "".join(_conversation(c, c.id == current, now) for c in conversations)
    return f'<ul class="conversations" aria-label="Conversations">{rows}</ul>'


def _conversation(conversation: StoredConversation, current: bool, now: float) -> str:
    title = conversation.title or "Untitled"
    mark = ' aria-current="true"' if current else ""
    rename = action(
        "local",
        "Rename",
        kind="rename",
        shows=icon("pen"),
        classes="small",
        id=conversation.id,
        title=title,
    )
    delete = action(
        "conversation",
        "Delete",
        kind="delete",
        shows=icon("bin"),
        classes="small danger",
        id=conversation.id,
        confirm=f"Delete the conversation “{title[:80]}”?",
    )
    return (
        f'<li{mark}><button type="button" class="name" data-act="conversation" data-kind="open" '
        f'data-id="{escape(conversation.id)}" title="{escape(title)}" dir="auto">{escape(title)}'
        f'</button><span class="facts">{_ago(now - conversation.updated)}</span>{rename}{delete}'
        "</li>"
    )


def models_html(name: str, loaded: Sequence[str], *, loading: bool, failure: str) -> str:
    """Which models are in memory, below the choice of one.

    Args:
        name: of the model that is chosen.
        loaded: names of those in memory.
        loading: whether the chosen one is being loaded.
        failure: why it could not be loaded.
    """
    if failure:
        return notice(failure, "error")
    if loading:
        return notice(f"{name} is being loaded. Questions can be asked already; they wait for it.")
    there = ", ".join(loaded) or "none yet"
    return notice(
        f"In memory: {there}. A model is loaded when it is chosen first, which takes a while, and "
        "one that no open page has chosen makes room for it."
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"
