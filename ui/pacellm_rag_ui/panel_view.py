"""How the other panels are drawn: every document side by side, PaceLLM on and off.

Values in, HTML out; knows no Gradio.
"""

from __future__ import annotations

from pacellm_rag_ui.chat_view import status_html
from pacellm_rag_ui.markup import answered_by, chips, escape, notice, safe_body
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.views import AskView, CompareView, EveryRow, EveryView

__all__ = ["compare_html", "every_html"]

_STATES = {
    "queued": "waiting",
    "reading": "reading",
    "answering": "answering",
    "done": "",
    "stopped": "stopped",
    "failed": "failed",
}


def every_html(view: EveryView | None) -> str:
    """The table of answers, a row for each document."""
    if view is None:
        return (
            '<div class="empty small"><h2>One question, every document</h2><p>Each ticked document '
            "is asked on its own, and the answers stand side by side.</p></div>"
        )
    if view.error:
        return notice(view.error, "error")
    rows = "".join(map(_every_row, view.rows))
    status = f'<p class="working" role="status">{escape(view.status)}</p>' if view.status else ""
    by = f'<span class="facts">{escape(answered_by(view.model))}</span>' if view.model else ""
    return (
        f'{status}<div class="table"><table><caption dir="auto">{escape(view.question)}{by}'
        "</caption>"
        '<thead><tr><th scope="col">Document</th><th scope="col">Answer</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _every_row(row: EveryRow) -> str:
    answer = row.answer
    body = safe_body(answer.text) if answer.text else ""
    state = _STATES[answer.state]
    if answer.error:
        body += notice(answer.error, "error")
    elif state:
        body += f'<p class="facts">{escape(answer.status or state)}</p>'
    return (
        f'<tr class="{answer.state}"><th scope="row" dir="auto">{escape(display_name(row.title))}'
        f"</th><td>{body}{chips(answer.citations)}</td></tr>"
    )


def compare_html(view: CompareView | None) -> str:
    """The answers with the memory banks and without."""
    if view is None:
        return ""
    if not view.available:
        return notice(view.message)
    on, off = _side("PaceLLM on", view.on), _side("PaceLLM off", view.off)
    return f'<div class="sides">{on}{off}</div>'


def _side(title: str, view: AskView) -> str:
    body = safe_body(view.text) if view.text else ""
    rest = f"{chips(view.citations)}{status_html(view)}"
    return f'<section class="side"><h4>{title}</h4>{body}{rest}</section>'
