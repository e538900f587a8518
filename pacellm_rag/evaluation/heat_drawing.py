"""A heat map as a picture: one SVG that reads in light and in dark, and to those who hear it.

Every cell holds its number; the colours only repeat it. Knows heat maps; no outcomes and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

from pacellm_rag.evaluation.heat_map import HeatMap
from pacellm_rag.evaluation.heat_palette import LEVELS, Surroundings, colour_of, ink_on, level_of
from pacellm_rag.evaluation.html_text import html_text

__all__ = ["Picture", "draw_heat_map"]

_CELL_WIDTH, _CELL_HEIGHT = 60, 30
_LEFT, _TOP, _RIGHT, _BELOW = 90, 66, 14, 96


@dataclass(frozen=True)
class Picture:
    """A heat map that is drawn.

    Attributes:
        title: what it shows.
        file: a name for its file.
        svg: the drawing.
        signed: whether it shows differences.
    """

    title: str
    file: str
    svg: str
    signed: bool


def draw_heat_map(chart: HeatMap, *, name: str = "heat-map") -> str:
    """The SVG of a heat map.

    Args:
        chart: what to draw.
        name: its id, unique in the page that it is put into; letters, digits, "-" and "_".
    """
    natural = _LEFT + max(5, len(chart.columns)) * _CELL_WIDTH + _RIGHT
    width = max(natural, 32 + 9 * len(chart.title), 240 + 7 * len(chart.measure))
    bottom = _TOP + len(chart.rows) * _CELL_HEIGHT
    height = bottom + _BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" class="heat-map" role="img" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'aria-labelledby="{name}-title {name}-note">',
        f'<title id="{name}-title">{html_text(chart.title)}</title>',
        f'<desc id="{name}-note">{html_text(_spoken(chart))}</desc>',
        f"<style>{_style(name, chart.signed)}</style>",
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>',
        *_axes(chart, bottom),
        *(
            _cell(chart, row, column)
            for row in range(len(chart.rows))
            for column in range(len(chart.columns))
        ),
        *_legend(chart, bottom + 56),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _number(value: float, signed: bool) -> str:
    """A value times 100; a decimal only where there is one, so that 0 means exactly 0."""
    hundred = round(value * 100, 6)
    text = f"{hundred:+.0f}" if hundred == int(hundred) else f"{hundred:+.1f}"
    if not signed or hundred == 0:
        return text.lstrip("+-")
    return text.replace("-", "\u2212")


def _spoken(chart: HeatMap) -> str:
    rows = (
        f"depth {label}: "
        + ", ".join(
            _number(cell.value, chart.signed)
            if (cell := chart.cells.get((row, column)))
            else "none"
            for column in range(len(chart.columns))
        )
        for row, label in enumerate(chart.rows)
    )
    return f"{chart.note} Lengths in tokens: {', '.join(chart.columns)}. {'; '.join(rows)}."


def _axes(chart: HeatMap, bottom: int) -> list[str]:
    middle = (_TOP + bottom) / 2
    across = _LEFT + len(chart.columns) * _CELL_WIDTH / 2
    parts = [f'<text class="head" x="16" y="28">{html_text(chart.title)}</text>']
    counts = sorted({cell.samples for cell in chart.cells.values()})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    noun = "sample" if counts == [1] else "samples"
    parts.append(
        f'<text class="soft" x="16" y="48">{html_text(chart.measure)} \u00d7 100, '
        f"{many} {noun} a cell</text>"
    )
    parts += [
        f'<text class="axis" transform="translate(22 {middle:g}) rotate(-90)" '
        'text-anchor="middle">depth in the text</text>',
        f'<text class="axis" x="{across:g}" y="{bottom + 40}" text-anchor="middle">'
        "length in tokens</text>",
    ]
    parts += [
        f'<text class="soft" x="{_LEFT - 8}" y="{_TOP + (row + 0.5) * _CELL_HEIGHT + 4:g}" '
        f'text-anchor="end">{html_text(label)}</text>'
        for row, label in enumerate(chart.rows)
    ]
    small = " small" if max(map(len, chart.columns)) > 8 else ""
    parts += [
        f'<text class="soft{small}" x="{_LEFT + (column + 0.5) * _CELL_WIDTH:g}" '
        f'y="{bottom + 18}" text-anchor="middle">{html_text(label)}</text>'
        for column, label in enumerate(chart.columns)
    ]
    return parts


def _cell(chart: HeatMap, row: int, column: int) -> str:
    x, y = _LEFT + column * _CELL_WIDTH, _TOP + row * _CELL_HEIGHT
    where = f"length {chart.columns[column]}, depth {chart.rows[row]}"
    cell = chart.cells.get((row, column))
    if cell is None:
        level, number, told = "none", "\u2013", f"{where}: no samples"
    else:
        number = _number(cell.value, chart.signed)
        level = _step(level_of(cell.value / chart.reach if chart.signed else cell.value))
        noun = "sample" if cell.samples == 1 else "samples"
        told = f"{where}: {number} ({cell.samples} {noun})"
    return (
        f'<g class="{level}"><title>{html_text(told)}</title>'
        f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" '
        'rx="3"/>'
        f'<text x="{x + _CELL_WIDTH / 2:g}" y="{y + _CELL_HEIGHT / 2 + 4:g}" '
        f'text-anchor="middle">{number}</text></g>'
    )


def _step(level: int) -> str:
    """The class of a step of the palette."""
    return f"m{-level}" if level < 0 else f"p{level}"


def _legend(chart: HeatMap, y: int) -> list[str]:
    """A bar with the palette's colours, and what its ends and its middle mean."""
    end = f"{chart.reach * 100:g}"
    ticks = [f"\u2212{end}, worse", "0", f"+{end}, better"] if chart.signed else ["0", "50", "100"]
    length, anchors = 5 * _CELL_WIDTH, ("start", "middle", "end")
    steps = range(-LEVELS if chart.signed else 0, LEVELS + 1, 2)
    wide = length / len(steps)
    bar = [
        f'<g class="{_step(step)}"><rect x="{_LEFT + i * wide:.2f}" y="{y}" '
        f'width="{wide + 0.3:.2f}" height="10"/></g>'
        for i, step in enumerate(steps)
    ]
    words = [
        f'<text class="soft" x="{_LEFT + i * length / 2:g}" y="{y + 26}" '
        f'text-anchor="{anchor}">{tick}</text>'
        for i, (tick, anchor) in enumerate(zip(ticks, anchors, strict=True))
    ]
    return bar + words


def _style(name: str, signed: bool) -> str:
    """The rules of one picture; they name its id, as the pictures of a page share all rules."""

    def rules(surroundings: Surroundings, ground: str, ink: str, soft: str, line: str) -> str:
        made = [
            f"#{name} .ground{{fill:{ground}}}#{name} .head,#{name} .axis{{fill:{ink}}}"
            f"#{name} .soft,#{name} .none text{{fill:{soft}}}"
            f"#{name} .none rect{{fill:none;stroke:{line};stroke-dasharray:3 3}}"
        ]
        for level in range(-LEVELS if signed else 0, LEVELS + 1):
            colour, step = colour_of(level, surroundings, signed=signed), f"#{name} .{_step(level)}"
            made.append(
                f"{step} rect{{fill:#{bytes(colour).hex()}}}"
                f"{step} text{{fill:#{bytes(ink_on(colour)).hex()}}}"
            )
        return "".join(made)

    return (
        f"#{name} text{{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}}"
        f"#{name} .head{{font-size:15px;font-weight:650}}#{name} .small{{font-size:9px}}"
        + rules("light", "#ffffff", "#1c2321", "#5d6966", "#c3cbc8")
        + "@media(prefers-color-scheme:dark){"
        + rules("dark", "#151918", "#e6ebe9", "#a3afab", "#46504d")
        + "}"
    )
