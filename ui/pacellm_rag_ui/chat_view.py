"""How a conversation is drawn: what was said, the answer being written, what goes on.

Values in, HTML out; knows no Gradio.
"""

from __future__ import annotations

from collections.abc import Sequence

from pacellm_rag_ui.library import StoredTurn
from pacellm_rag_ui.markup import (
    action,
    answer_body,
    answered_by,
    chips,
    escape,
    icon,
    notice,
    plural,
    safe_body,
)
from pacellm_rag_ui.views import AskView, CitationView

__all__ = ["aside_html", "history_html", "live_html", "status_html", "suggestions_html"]


def history_html(turns: Sequence[StoredTurn], documents: int, chosen: int) -> str:
    """The conversation so far, or what to do first.

    Args:
        turns: all of it.
        documents: how many the owner has.
        chosen: how many of them the next question reads.
    """
    if not turns:
        return _empty(documents, chosen)
    return "".join(_question(turn) if turn.role == "user" else _answer(turn) for turn in turns)


def _empty(documents: int, chosen: int) -> str:
    if not documents:
        title, text = (
            "Ask whole documents",
            "Add a few files to begin. They are read from the first page to the last, on this "
            "machine only, and every answer names the pages it rests on.",
        )
        button = action("local", "Choose files", kind="choose-files", classes="primary")
    elif not chosen:
        title, text = "No document is ticked", "Tick what the next question is to read."
        button = ""
    else:
        title = f"{plural(chosen, 'document')} ready"
        text = "Ask anything. The first answer waits for the reading; after it, they come at once."
        button = action("about", "Suggest questions", kind="questions", classes="soft")
    return f'<div class="empty"><h2>{title}</h2><p>{text}</p>{button}</div>'


def _question(turn: StoredTurn) -> str:
    tools = action("local", "Edit", kind="edit", shows=icon("edit"), classes="small", turn=turn.id)
    return (
        f'<article class="turn you" data-turn="{escape(turn.id)}" aria-label="Your question">'
        f'<div class="said" dir="auto">{escape(turn.text)}</div>'
        f'<div class="tools">{tools}</div></article>'
    )


def _answer(turn: StoredTurn) -> str:
    error = str(turn.details.get("error") or "")
    ended = str(turn.details.get("finish_reason") or "")
    citations = [CitationView.from_dict(values) for values in turn.citations]
    tools = action("local", "Copy", kind="copy", shows=icon("copy"), classes="small")
    tools += action(
        "retry", "Ask again", kind="retry", shows=icon("retry"), classes="small", turn=turn.id
    )
    said = notice(error, "error")
    if ended in ("stopped", "cancelled", "closed"):
        said = notice("Stopped.")
    elif ended == "length":
        said = notice("Cut off at the answer length; Settings allow more.", "warning")
    body = answer_body(turn.text) if turn.text.strip() else ""
    by = answered_by(str(turn.details.get("answered_by") or ""))
    tools += f'<span class="by">{escape(by)}</span>' if by else ""
    return (
        f'<article class="turn model" data-turn="{escape(turn.id)}" aria-label="Answer">'
        f'{body}{chips(citations)}{said}<div class="tools">{tools}</div></article>'
    )


def live_html(view: AskView, question: str = "") -> str:
    """The answer being written, with its question where that is not stored yet."""
    asked = (
        f'<article class="turn you"><div class="said" dir="auto">{escape(question)}</div></article>'
        if question
        else ""
    )
    if view.text:
        body = safe_body(view.text)
    else:
        body = '<div class="waiting" aria-hidden="true"><i></i><i></i><i></i></div>'
    return f'{asked}<article class="turn model live" aria-busy="true">{body}</article>'


def status_html(view: AskView | None) -> str:
    """One line on what goes on, with a bar while documents are read."""
    if view is None:
        return ""
    if view.state == "failed":
        return notice(view.error or "That did not work.", "error")
    text = view.note if view.final else view.status or _state(view)
    if not text:
        return ""
    bar = ""
    if view.state == "reading":
        percent = min(max(view.percent, 0.0), 100.0)
        bar = (
            f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent:.0f}" aria-label="Reading">'
            f'<i style="width:{percent:.1f}%"></i></div>'
        )
    note = f' <span class="dim">{escape(view.note)}</span>' if view.note and not view.final else ""
    return f'<div class="working"><p role="status">{escape(text)}{note}</p>{bar}</div>'


def _state(view: AskView) -> str:
    if view.state == "queued":
        return f"Waiting, {plural(view.position, 'request')} before yours" if view.position else ""
    return {"answering": "Answering"}.get(view.state, "")


def aside_html(title: str, view: AskView) -> str:
    """A card for an answer that is no part of the conversation, such as a summary."""
    body = safe_body(view.text) if view.text else ""
    status = "" if view.state == "done" else _ended_or_working(view)
    return _card(title, f"{body}{chips(view.citations)}{status}")


def suggestions_html(view: AskView, questions: Sequence[str]) -> str:
    """A card of questions; a click puts one into the box."""
    items = "".join(
        action("local", question, kind="use-question", classes="suggestion")
        for question in questions
    )
    status = "" if view.state == "done" and questions else _ended_or_working(view)
    if view.state == "done" and not questions:
        status = notice("Nothing came to mind; ask away.")
    return _card("Questions to begin with", f"{items}{status}")


def _ended_or_working(view: AskView) -> str:
    return notice("Stopped.") if view.state == "stopped" else status_html(view)


def _card(title: str, body: str) -> str:
    close = action("about", "Close", kind="close", shows=icon("close"), classes="small")
    return (
        f'<section class="card" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>'
        f"{close}</header>{body}</section>"
    )
