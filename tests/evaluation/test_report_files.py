from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from invented_runs import PACE, PLAIN, needles, outcome, run_of

from pacellm_rag.evaluation.interval_plot import PlottedDifference, plot_differences
from pacellm_rag.evaluation.report import markdown_report, write_report
from pacellm_rag.evaluation.report_tables import as_words, fact_sheet, tables
from pacellm_rag.evaluation.summary import Interval


def rows_of(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, its head first."""
    part = re.split(r"^## ", markdown, flags=re.MULTILINE)
    lines = next(p for p in part if p.startswith(f"{heading}\n")).splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for i, row in enumerate(rows) if i != 1]


def test_a_run_with_places_gets_page_summary_and_heat_maps(tmp_path: Path) -> None:
    summary, outcomes = run_of(needles(0.1, lengths=2))
    written = write_report(summary, outcomes, tmp_path)
    assert [path.name for path in written] == [
        "summary.md",
        "report.html",
        "heat-map-plain.svg",
        "heat-map-pace.svg",
        "heat-map-placebo.svg",
        "heat-map-pace-minus-plain.svg",
        "heat-map-placebo-minus-plain.svg",
    ]
    assert sorted(written) == sorted(tmp_path.iterdir())
    for path in written[2:]:
        ET.fromstring(path.read_bytes())
        assert f"]({path.name})" in written[0].read_text("utf-8")


def test_a_run_without_places_gets_no_heat_map(tmp_path: Path) -> None:
    answers = {"plain": [outcome("a", length="0-4k", depth=1)]}
    written = write_report(*run_of(answers, arms=(PLAIN,)), tmp_path)
    assert [path.name for path in written] == ["summary.md", "report.html"]


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(*run_of(needles(0.1, lengths=2)), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_arms_whose_names_look_alike_get_files_of_their_own(tmp_path: Path) -> None:
    names = ["plain", "pace 1", "pace-1", "../../étoile", "漢字"]
    arms = [{**PACE, "name": name} for name in names]
    found = [outcome("a", length=1, depth=1)]
    written = write_report(*run_of(dict.fromkeys(names, found), arms=arms), tmp_path)
    assert len(set(written)) == len(written) == 2 + 5 + 4
    assert all(path.parent == tmp_path and path.is_file() for path in written)
    page = (tmp_path / "report.html").read_text("utf-8")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_all_differences_are_coloured_on_one_scale(tmp_path: Path) -> None:
    def found(score: float) -> list[object]:
        return [outcome("a", score=score, length=1, depth=1)]

    answers = {"plain": found(0.5), "pace": found(0.52), "placebo": found(0.68)}
    write_report(*run_of(answers), tmp_path)  # type: ignore[arg-type]
    for name in ("pace", "placebo"):
        svg = (tmp_path / f"heat-map-{name}-minus-plain.svg").read_text("utf-8")
        assert "+25, better" in svg


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    answers = {"plain": [outcome("a", "\ud83d", task="\ud83d", length=1, depth=1)]}
    for path in write_report(*run_of(answers, arms=(PLAIN,), model="\ud83d"), tmp_path):
        path.read_text("utf-8")


def test_the_summary_holds_scores_differences_and_costs() -> None:
    summary, _ = run_of(needles(1.0, noise=0.0, lengths=1, seed=3))
    text = markdown_report(summary, ())
    scores = {row[0]: row for row in rows_of(text, "Scores")}
    plain, pace = (arm.scores[0] for arm in summary.arms[:2])
    assert pace.difference is not None
    assert scores["plain"][1] == f"{plain.value.mean * 100:.2f}"
    assert scores["plain"][3:6] == ["\u2013"] * 3
    assert scores["pace"][3] == f"{pace.difference.mean * 100:+.2f}".replace("-", "\u2212")
    assert scores["pace"][5] == f"0 / {pace.losses} / {pace.ties}"
    assert pace.losses > 0
    cost = {row[0]: row for row in rows_of(text, "Cost")}
    assert cost["pace"][1:6] == ["1,900.0", "0.950", "44.0 s", "3.00 GiB", "200.00 MiB"]
    banks = rows_of(text, "Memory banks")
    assert banks[1] == ["pace", "13", "25 %", "50 %", "25 %", "90.0 of 100", "22"]
    assert banks[2][2] == "under 0.1 %"
    by_depth = rows_of(text, "By depth")
    assert [row[0] for row in by_depth[1:]] == [str(d) for d in range(0, 101, 10)]
    assert {row[1] for row in by_depth[1:]} == {"2"}


def test_several_tasks_get_a_table_and_one_task_none() -> None:
    def answered(tasks: list[str]) -> dict[str, list[object]]:
        found = [outcome(f"{t}{i}", task=t, score=i / 4) for t in tasks for i in range(4)]
        return {"plain": list(found), "pace": list(found)}

    one = markdown_report(run_of(answered(["x"]), arms=(PLAIN, PACE))[0], ())  # type: ignore[arg-type]
    assert "## By task" not in one
    two = markdown_report(run_of(answered(["x", "y"]), arms=(PLAIN, PACE))[0], ())  # type: ignore[arg-type]
    assert [row[:4] for row in rows_of(two, "By task")[1:]] == [
        ["x", "4", "37.50", "37.50"],
        ["y", "4", "37.50", "37.50"],
    ]


def test_markup_in_names_stays_text_in_markdown() -> None:
    evil = "a|b\n# `x` <img src=x> [l](http://e) *b* _i_ snake_case &lt;"
    answers = {evil: [outcome("a")], "pace": [outcome("a", score=0.5)]}
    arms = ({**PLAIN, "name": evil}, PACE)
    text = markdown_report(run_of(answers, arms=arms, model=evil)[0], ())
    assert rows_of(text, "Scores")[1][0] == (
        r"a\|b # \`x\` \<img src=x> \[l\](http://e) \*b\* \_i\_ snake_case \&lt;"
    )
    assert len({len(row) for row in rows_of(text, "Scores")}) == 1
    assert not re.search(r"(?<!\\)[<\[`]", text)


def test_every_table_has_as_many_cells_in_each_row_as_in_its_head() -> None:
    summary, _ = run_of(needles(0.1, lengths=2))
    for table in (*tables(summary), *fact_sheet(summary)):
        assert {len(row) for row in table.rows} == {len(table.head)}, table.title


def test_settings_and_surroundings_are_told_once_and_readably() -> None:
    notes = {"hardware": {"memory_bytes": 16 * 1024**3, "gpus": []}, "commit": None}
    summary, _ = run_of(needles(lengths=1), notes=notes)
    rows = [row for table in fact_sheet(summary) for row in table.rows]
    assert ("hardware.memory_bytes", "16.00 GiB") in rows
    assert ("hardware.gpus", "none") in rows
    assert ("commit", "none") in rows
    assert ("seed", "0") in rows
    assert [name for name, _ in rows].count("haystack") == 1
    assert not any(name.startswith("arms") for name, _ in rows)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        (True, "yes"),
        (4096, "4,096"),
        (0.2, "0.2"),
        ("text", "text"),
        ([1, "two", 0.5], "1, two, 0.5"),
        ([], "none"),
        ([{"a": 1}], '[{"a": 1}]'),
        ({"b": 1, "a": "é"}, '{"a": "é", "b": 1}'),
    ],
)
def test_values_are_written_as_people_read_them(value: object, words: str) -> None:
    assert as_words(value) == words


def test_the_plot_places_intervals_on_one_round_scale() -> None:
    rows = [
        PlottedDifference("pace", Interval(0.03, 0.01, 0.05)),
        PlottedDifference("placebo", Interval(-0.01, -0.025, 0.005), placebo=True),
    ]
    html = plot_differences(rows, noise=rows[1].difference)
    assert '<div class="line beyond"><span class="who">pace' in html
    assert '<div class="line placebo"><span class="who">placebo' in html
    assert '<i class="whisker" style="left:60.00%;width:40.00%"></i>' in html
    assert html.count('<i class="band" style="left:25.00%;width:30.00%"></i>') == 2
    assert '<i class="dot" style="left:80.00%"></i>' in html
    assert "<small>+5</small>" in html


def test_a_difference_without_interval_has_a_dot_and_no_whisker() -> None:
    html = plot_differences([PlottedDifference("pace", Interval(1.0, None, None))])
    assert "whisker" not in html
    assert 'style="left:100.00%"' in html
    assert "no interval" in html


def test_without_differences_there_is_no_plot() -> None:
    assert plot_differences([]) == ""
