"""How the other panels are drawn: every document side by side, PaceLLM on and off, the memory.

Values in, HTML out; knows no Gradio.
"""

from __future__ import annotations

from pacellm_rag_ui.chat_view import status_html
from pacellm_rag_ui.markup import chips, escape, notice, safe_body
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.views import AskView, CompareView, EveryRow, EveryView, MemoryView, PageBands

__all__ = ["compare_html", "every_html", "memory_html"]

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
    return (
        f'{status}<div class="table"><table><caption dir="auto">{escape(view.question)}</caption>'
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


def memory_html(view: MemoryView | None) -> str:
    """What the memory banks hold and did."""
    if view is None:
        return ""
    settings = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in view.settings
    )
    parts = [f'<dl class="settings">{settings}</dl>' if settings else ""]
    parts.append(_layers(view))
    parts.append(_bands(view))
    parts.append(notice(view.experts_note))
    return "".join(parts)


def _layers(view: MemoryView) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{layer.layer}</th><td>{layer.slots_filled:,} of {layer.slots:,}</td>"
        f"<td>{layer.tokens:,}</td><td>{layer.high:.1%}</td><td>{layer.middle:.1%}</td>"
        f"<td>{layer.untouched:.1%}</td></tr>"
        for layer in view.layers
    )
    if not rows:
        return notice(view.layers_note)
    names = ("Layer", "Slots", "Tokens", "Replaced", "Mixed", "Left alone")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="table numbers"><table><caption>Memory banks</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{notice(view.layers_note)}"
    )


def _bands(view: MemoryView) -> str:
    if not view.bands:
        return notice(view.bands_note)
    cells = "".join(map(_band, view.bands))
    legend = (
        '<p class="legend"><i class="high"></i>replaced <i class="middle"></i>mixed '
        '<i class="untouched"></i>left alone</p>'
    )
    return (
        '<h4>By page</h4><div class="strip" role="img" aria-label="Share of tokens by page">'
        f"{cells}</div>{legend}{notice(view.bands_note)}"
    )


def _band(band: PageBands) -> str:
    pages = f"p. {band.first_page}"
    if band.last_page != band.first_page:
        pages += f"-{band.last_page}"
    tip = (
        f"{display_name(band.title)}, {pages}: {band.high:.1%} replaced, {band.middle:.1%} mixed, "
        f"{band.untouched:.1%} left alone"
    )
    heights = (("untouched", band.untouched), ("middle", band.middle), ("high", band.high))
    inner = "".join(f'<i class="{kind}" style="height:{share:.1%}"></i>' for kind, share in heights)
    return f'<span title="{escape(tip)}">{inner}</span>'
