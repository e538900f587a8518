from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from invented_runs import outcome

from pacellm_rag.evaluation.heat_drawing import draw_heat_map
from pacellm_rag.evaluation.heat_map import Cell, difference_map, place_of, score_map
from pacellm_rag.evaluation.heat_palette import LEVELS, colour_of, ink_on, level_of, luminance

SVG = "{http://www.w3.org/2000/svg}"


def numbers(svg: str) -> list[str]:
    """What stands in the cells, row by row."""
    cells = ET.fromstring(svg).iterfind(f"{SVG}g")
    return [text for cell in cells if (text := cell.findtext(f"{SVG}text")) is not None]


def test_a_cell_is_the_mean_of_its_samples() -> None:
    found = [
        outcome("a", score=1.0, length=1024, depth=0),
        outcome("b", score=0.5, length=1024, depth=0),
        outcome("c", score=0.0, length=2048, depth=100.0),
    ]
    chart = score_map("plain", found, "recall")
    assert chart is not None
    assert (chart.columns, chart.rows) == (("1,024", "2,048"), ("0%", "100%"))
    assert chart.cells == {(0, 0): Cell(0.75, 2), (1, 1): Cell(0.0, 1)}


def test_a_difference_is_over_the_samples_that_both_have() -> None:
    before = [outcome("a", score=0.5, length=1, depth=0), outcome("x", score=0, length=1, depth=0)]
    after = [outcome("a", score=1.0, length=1, depth=0), outcome("y", score=0, length=1, depth=0)]
    chart = difference_map("pace", after, "plain", before, "recall")
    assert chart is not None
    assert chart.cells == {(0, 0): Cell(0.5, 1)}
    assert chart.signed


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"length": 5},
        {"depth": 5},
        {"length": "0-4k", "depth": 5},
        {"length": True, "depth": 5},
        {"length": float("nan"), "depth": 5},
        {"length": None, "depth": None},
    ],
)
def test_samples_without_a_place_are_on_no_map(facts: dict[str, object]) -> None:
    assert place_of(outcome("a", **facts)) is None
    assert score_map("plain", [outcome("a", **facts)], "recall") is None


def test_a_sample_without_the_metric_is_on_no_map() -> None:
    assert score_map("plain", [outcome("a", length=1, depth=2)], "another") is None


def test_many_lengths_become_ranges_that_hold_every_sample() -> None:
    found = [outcome(str(i), length=1000 + i, depth=i % 3) for i in range(101)]
    chart = score_map("plain", found, "recall")
    assert chart is not None
    assert chart.columns[0] == "1,000-1,010"
    assert chart.columns[-1] == "1,090-1,100"
    assert len(chart.columns) == 10
    held = [0] * 10
    for (_, column), cell in chart.cells.items():
        held[column] += cell.samples
    assert held == [10] * 9 + [11]


def test_every_cell_holds_its_number_and_says_where_it_stands() -> None:
    found = [
        outcome("a", score=1.0, length=1, depth=0),
        outcome("b", score=1 / 3, length=2, depth=0),
        outcome("c", score=0.0, length=2, depth=50.5),
    ]
    chart = score_map("plain", found, "recall")
    assert chart is not None
    svg = draw_heat_map(chart)
    assert numbers(svg) == ["100", "33.3", "\u2013", "0"]
    titles = [title.text for title in ET.fromstring(svg).iterfind(f"{SVG}g/{SVG}title")]
    assert titles[0] == "length 1, depth 0%: 100 (1 sample)"
    assert titles[2] == "length 1, depth 50.5%: no samples"


def test_differences_have_signs_and_only_nothing_is_0() -> None:
    pairs = {"a": (0.5, 0.25), "b": (0.25, 0.5), "c": (0.5, 0.5), "d": (0.5, 0.5002)}
    before = [outcome(k, score=v[0], length=i, depth=0) for i, (k, v) in enumerate(pairs.items())]
    after = [outcome(k, score=v[1], length=i, depth=0) for i, (k, v) in enumerate(pairs.items())]
    chart = difference_map("pace", after, "plain", before, "recall")
    assert chart is not None
    svg = draw_heat_map(chart)
    assert numbers(svg) == ["\u221225", "+25", "0", "+0.0"]
    steps = [g.get("class") for g in ET.fromstring(svg).iterfind(f"{SVG}g")][:4]
    assert steps == ["m5", "p5", "p0", "p1"]


def test_the_picture_is_told_to_those_who_hear_it() -> None:
    chart = score_map("a<b>&\x01", [outcome("a", score=0.5, length=7, depth=3)], "recall")
    assert chart is not None
    root = ET.fromstring(draw_heat_map(chart, name="map-1"))
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "map-1-title map-1-note"
    assert root.findtext(f"{SVG}title") == "a<b>&\ufffd"
    assert "depth 3%: 50" in (root.findtext(f"{SVG}desc") or "")


def test_equal_maps_are_drawn_equally() -> None:
    found = [outcome(str(i), score=i / 7, length=i, depth=i) for i in range(7)]
    drawn = []
    for order in (found, found[::-1]):
        chart = score_map("plain", order, "recall")
        assert chart is not None
        drawn.append(draw_heat_map(chart))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("surroundings", ["light", "dark"])
@pytest.mark.parametrize("signed", [False, True])
def test_every_number_stands_out_from_its_colour(surroundings: str, signed: bool) -> None:
    for level in range(-LEVELS if signed else 0, LEVELS + 1):
        colour = colour_of(level, surroundings, signed=signed)  # type: ignore[arg-type]
        light, dark = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("surroundings", ["light", "dark"])
def test_lightness_alone_orders_the_steps_and_hue_tells_worse_from_better(
    surroundings: str,
) -> None:
    def shades(levels: range, signed: bool) -> list[float]:
        return [
            luminance(colour_of(i, surroundings, signed=signed))  # type: ignore[arg-type]
            for i in levels
        ]

    falls = surroundings == "light"
    for found in (
        shades(range(LEVELS + 1), False),
        shades(range(LEVELS + 1), True),
        shades(range(0, -LEVELS - 1, -1), True),
    ):
        assert found == sorted(found, reverse=falls)
        assert len(set(found)) == len(found)
    for level in range(4, LEVELS + 1):
        red, _, blue = colour_of(level, surroundings, signed=True)  # type: ignore[arg-type]
        assert blue > red
        red, _, blue = colour_of(-level, surroundings, signed=True)  # type: ignore[arg-type]
        assert red > blue


@pytest.mark.parametrize(
    ("share", "level"),
    [(0.0, 0), (1e-6, 1), (-1e-6, -1), (0.5, LEVELS // 2), (1.0, LEVELS), (-3.0, -LEVELS)],
)
def test_only_exactly_nothing_looks_like_nothing(share: float, level: int) -> None:
    assert level_of(share) == level
