"""How the memory panel is drawn: settings, banks, and the strips of pages.

What a strip shows by colour it also says: each cell in its tip, the whole in its label, the shares
in a table beside it. Values in, HTML out; knows no Gradio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from pacellm_rag_ui.chat_view import status_html
from pacellm_rag_ui.markup import escape, notice
from pacellm_rag_ui.safe_text import display_name
from pacellm_rag_ui.views import AskView, ExpertRow, MemoryView, PageBands, PageSpan

__all__ = ["memory_html", "watch_html"]

_LEAST = 0.1  # of activity: what deserves the full colour; noise shall not look like much


def memory_html(view: MemoryView | None) -> str:
    """What the memory banks hold and did, and where the experts were at work."""
    if view is None:
        return ""
    settings = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in view.settings
    )
    parts = [f'<dl class="settings">{settings}</dl>' if settings else ""]
    parts += [_layers(view), _bands(view), _experts(view)]
    return "".join(parts)


def watch_html(view: AskView) -> str:
    """How far watching has come."""
    return "" if view.state == "done" else status_html(view)


def _layers(view: MemoryView) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{layer.layer}</th><td>{layer.slots_filled:,} of {layer.slots:,}</td>"
        f"<td>{layer.tokens:,}</td>{_shares(layer.high, layer.middle, layer.untouched)}</tr>"
        for layer in view.layers
    )
    if not rows:
        return notice(view.layers_note)
    names = ("Layer", "Slots", "Tokens", "Replaced", "Mixed", "Left alone")
    table = _table("Memory banks", names, rows)
    return f"{table}{notice(view.layers_note)}"


def _shares(high: float, middle: float, untouched: float) -> str:
    return f"<td>{high:.1%}</td><td>{middle:.1%}</td><td>{untouched:.1%}</td>"


def _table(caption: str, names: Iterable[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="table numbers"><table><caption>{caption}</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _bands(view: MemoryView) -> str:
    if not view.bands:
        return notice(view.bands_note)
    spans = [PageSpan(band.title, band.first_page, band.last_page) for band in view.bands]
    cells = _cells(spans, [_band(band, span) for band, span in zip(view.bands, spans, strict=True)])
    most = max(view.bands, key=lambda band: band.high + band.middle)
    label = (
        f"Shares of tokens by page; the table below has them. Memory changed most on "
        f"{_where(spans[view.bands.index(most)])}: {most.high + most.middle:.1%}."
    )
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{escape(_where(span))}</th>'
        f"{_shares(band.high, band.middle, band.untouched)}</tr>"
        for band, span in zip(view.bands, spans, strict=True)
    )
    table = _table("Share of tokens by page", ("Pages", "Replaced", "Mixed", "Left alone"), rows)
    return (
        f'<h4>Memory by page</h4><div class="strip" role="img" aria-label="{escape(label)}">{cells}'
        f"</div>{_names(spans)}"
        '<p class="legend"><i class="high"></i>replaced <i class="middle"></i>mixed '
        f'<i class="untouched"></i>left alone</p>{notice(view.bands_note)}'
        f'<details class="figures"><summary>As a table</summary>{table}</details>'
    )


def _band(band: PageBands, span: PageSpan) -> tuple[str, str]:
    """A cell's inside, and its tip."""
    tip = (
        f"{_where(span)}: {band.high:.1%} replaced, {band.middle:.1%} mixed, "
        f"{band.untouched:.1%} left alone"
    )
    heights = (("untouched", band.untouched), ("middle", band.middle), ("high", band.high))
    inner = "".join(f'<i class="{kind}" style="height:{share:.1%}"></i>' for kind, share in heights)
    return inner, tip


def _experts(view: MemoryView) -> str:
    if not view.experts:
        # what to type is not to be broken at its hyphens
        note = re.sub("`([^`]+)`", r"<code>\1</code>", notice(view.experts_note))
        return f"<h4>Experts by page</h4>{note}" if note else ""
    most = max((abs(each) for row in view.experts for each in row.activity), default=0.0)
    full = max(most, _LEAST)
    rows = "".join(_expert(row, view.expert_pages, full) for row in view.experts)
    return (
        f'<h4>Experts by page</h4><div class="heat" role="list">{rows}'
        f'<div class="heat-row" aria-hidden="true"><span></span>{_names(view.expert_pages)}</div>'
        f"</div>{_scale(full)}{notice(view.experts_note)}"
    )


def _expert(row: ExpertRow, pages: Sequence[PageSpan], full: float) -> str:
    place = f"layer {row.layer}, expert {row.expert}"
    words = " · ".join(display_name(word) for word in row.words[:4]) or "no words"
    inside = []
    for span, activity in zip(pages, row.activity, strict=True):
        kind = "up" if activity >= 0 else "down"
        heat = f'<i class="{kind}" style="--heat:{min(abs(activity) / full, 1):.0%}"></i>'
        inside.append((heat, f"{_where(span)}: {activity:+.0%}"))
    high = max(range(len(pages)), key=lambda place: row.activity[place])
    low = min(range(len(pages)), key=lambda place: row.activity[place])
    label = (
        f"Most active on {_where(pages[high])}, {row.activity[high]:+.0%}; least on "
        f"{_where(pages[low])}, {row.activity[low]:+.0%}"
    )
    return (
        f'<div class="heat-row" role="listitem"><span class="heat-name" title="{escape(place)}">'
        f'<span dir="auto">{escape(words)}</span><small>{place}</small></span>'
        f'<div class="strip thin" role="img" aria-label="{escape(label)}">'
        f"{_cells(pages, inside)}</div></div>"
    )


def _scale(full: float) -> str:
    steps = "".join(
        f'<i class="{kind}" style="--heat:{heat}%"></i>'
        for kind, heat in (("down", 100), ("down", 50), ("up", 0), ("up", 50), ("up", 100))
    )
    return f'<p class="legend scale">less active {-full:+.0%} {steps} {full:+.0%} more active</p>'


def _cells(spans: Sequence[PageSpan], insides: Iterable[tuple[str, str]]) -> str:
    """Cells of a strip, with a gap where another document begins."""
    drawn, before = [], spans[0].title
    for span, (inside, tip) in zip(spans, insides, strict=True):
        gap = ' class="next"' if span.title != before else ""
        drawn.append(f'<span{gap} title="{escape(tip)}">{inside}</span>')
        before = span.title
    return "".join(drawn)


def _names(spans: Sequence[PageSpan]) -> str:
    """The documents below a strip, each as wide as its cells."""
    documents = [(title, len(list(cells))) for title, cells in groupby(spans, lambda s: s.title)]
    names = "".join(
        f'<span style="flex-grow:{cells}" dir="auto">{escape(display_name(title))}</span>'
        for title, cells in documents
    )
    return f'<div class="strip-names" aria-hidden="true">{names}</div>'


def _where(span: PageSpan) -> str:
    """Such as "Report, p. 3-5"."""
    pages = f"p. {span.first_page}"
    if span.last_page != span.first_page:
        pages += f"-{span.last_page}"
    return f"{display_name(span.title)}, {pages}"
