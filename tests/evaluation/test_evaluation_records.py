from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.records import RunFolder, UnitRecord, read_run
from pacellm_rag.evaluation.types import Outcome

IDENTITY: dict[str, Any] = {
    "suite": "small",
    "arms": [{"name": "plain", "pace": None}, {"name": "pace", "pace": {"window": 32}}],
    "settings": {"lengths": [1, 2]},
    "seed": 0,
}
GROUPS = ("a", "b")


def outcome(sample: str, text: str = "é\u2028\n") -> Outcome:
    return Outcome(sample, "task", text, {"f1": 0.5}, 10, 0, 2, 3, 0.25, {"gold": ["x", "y"]})


def unit(arm: str, group: str, *outcomes: Outcome) -> UnitRecord:
    banks = {"0": {"high": 0.25, "slots": 8}}
    return UnitRecord(arm, group, 1.5, 11, 7.3, 1000, 10, banks, True, "abc", outcomes)


def write(folder: Path, *units: UnitRecord, **more: Any) -> None:
    with RunFolder.opened(folder, more.pop("identity", IDENTITY), GROUPS, **more) as written:
        for one in units:
            for each in one.outcomes:
                written.add(one.arm, one.group, each)
            written.close_unit(one)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "run"
    write(folder, unit("plain", "a", outcome("1"), outcome("2")), unit("pace", "a", outcome("1")))
    return folder


def test_what_was_written_is_read_again(folder: Path) -> None:
    record = read_run(folder)
    assert record.units == (
        unit("plain", "a", outcome("1"), outcome("2")),
        unit("pace", "a", outcome("1")),
    )
    assert (record.groups, record.identity) == (GROUPS, IDENTITY)
    assert [(arm, each.sample) for arm, each in record.outcomes()] == [
        ("plain", "1"),
        ("plain", "2"),
        ("pace", "1"),
    ]


@pytest.mark.parametrize(
    "tail",
    [
        b'{"arm": "plain", "group": "b", "sam',
        b'{"arm": "plain", "group": "b", "sample": 3}\n',
        b"\0\0\0\n",
        b'\0\0\n{"unit": {"arm": "pla',
        b"7\n[]\n",
    ],
)
def test_what_stands_behind_the_last_closed_unit_is_cut_off(folder: Path, tail: bytes) -> None:
    path = folder / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(read_run(folder).units) == 2
    assert path.read_bytes() == whole + tail, "reading changes nothing"
    write(folder, unit("plain", "b", outcome("3")))
    assert len(read_run(folder).units) == 3
    assert path.read_bytes().startswith(whole + b'{"arm": "plain", "group": "b", "sample": "3"')


def test_a_closing_line_without_its_end_closes_nothing(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert [each.arm for each in read_run(folder).units] == ["plain"]
    write(folder, unit("pace", "a", outcome("1")))
    assert [each.arm for each in read_run(folder).units] == ["plain", "pace"]


def test_samples_of_a_unit_that_was_not_closed_are_not_results(folder: Path) -> None:
    with RunFolder.opened(folder, IDENTITY, GROUPS) as written:
        written.add("plain", "b", outcome("3"))
        assert written.done == {("plain", "a"), ("pace", "a")}
    assert len(read_run(folder).units) == 2
    with RunFolder.opened(folder, IDENTITY, GROUPS) as written:
        pass
    assert b'"b"' not in (folder / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_line_before_the_end_is_refused_and_named(folder: Path, line: int) -> None:
    path = folder / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line][:9] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigurationError, match=rf"line {line + 1} of .*--fresh"):
        read_run(folder)
    write(folder, fresh=True)
    assert read_run(folder).units == ()


def test_a_lost_line_is_found(folder: Path) -> None:
    path = folder / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(ConfigurationError, match="2 samples were written and 1 are there"):
        read_run(folder)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(ConfigurationError, match="damaged"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"settings": {"lengths": [1, 2, 3]}}, r"settings.lengths was \[1, 2\] and is now"),
        ({"settings": {}}, "is now null"),
        (
            {"arms": [IDENTITY["arms"][0], {"name": "pace", "pace": {"window": 64}}]},
            "arms.pace.pace.window was 32 and is now 64",
        ),
        ({"arms": IDENTITY["arms"][::-1]}, "order of arms"),
        ({"model": "x" * 100}, r"model was null and is now x{57}\.\.\."),
    ],
)
def test_another_run_is_not_gone_on_with_and_the_difference_is_named(
    folder: Path, change: dict[str, Any], match: str
) -> None:
    before = (folder / "samples.jsonl").read_bytes()
    with pytest.raises(ConfigurationError, match=match) as caught:
        write(folder, identity=IDENTITY | change)
    assert "--fresh" in str(caught.value)
    assert (folder / "samples.jsonl").read_bytes() == before
    write(folder, identity=IDENTITY | change, fresh=True)
    assert read_run(folder).units == ()


def test_other_groups_may_be_asked_for_and_only_they_count(folder: Path) -> None:
    with RunFolder.opened(folder, IDENTITY, ("b",)) as written:
        assert ("plain", "a") in written.done
    assert read_run(folder).units == ()
    write(folder)
    assert len(read_run(folder).units) == 2


def test_notes_tell_of_every_time_that_something_was_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, unit("plain", "a"), unit("pace", "a"), notes={"time": 1})
    write(folder, unit("plain", "b"), notes={"time": 2})
    write(folder, unit("pace", "b"), notes={"time": 3})
    write(folder, notes={"time": 4})
    assert read_run(folder).notes == {"time": 3, "earlier": [{"time": 1}, {"time": 2}]}


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 1, "identity": 3}', b"\xff"])
def test_a_damaged_run_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "run.json").write_bytes(content)
    for work in (lambda: read_run(folder), lambda: write(folder)):
        with pytest.raises(ConfigurationError, match=r"run.json is damaged.*--fresh"):
            work()


def test_runs_of_other_formats_and_samples_of_nobody_are_refused(folder: Path) -> None:
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(ConfigurationError, match="another version"):
        read_run(folder)
    (folder / "run.json").unlink()
    with pytest.raises(ConfigurationError, match="holds no run"):
        read_run(folder)
    with pytest.raises(ConfigurationError, match=r"no run\.json"):
        write(folder)


def test_two_processes_do_not_write_to_one_folder(folder: Path) -> None:
    with (
        FileLock(folder / ".lock"),
        pytest.raises(ConfigurationError, match="Another process is evaluating"),
    ):
        write(folder)


def test_a_folder_that_can_not_be_made_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Results can not be written"):
        write(tmp_path / "file" / "run")


def test_figures_that_json_has_no_word_for_are_not_written(tmp_path: Path) -> None:
    bad = Outcome("1", "t", "", {"f1": float("nan")}, 1, 0, 0, 0, 0.0)
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, unit("plain", "a", bad))
