"""The folder of a run: what it was, and what came of it, line by line, so that it can go on.

`run.json` says what the results depend on; `samples.jsonl` gets a line for every sample and, behind
those of a unit (one group under one arm), a line that closes the unit. A unit that was not closed
is done again: what stands behind the last closed one is cut off when a run goes on, be it whole
lines or the half of one that a killed process left. Knows outcomes as values; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.types import Outcome
from pacellm_rag.files import write_atomically

__all__ = ["RUN_FILE", "SAMPLES_FILE", "RunFolder", "RunRecord", "UnitRecord", "read_run"]

RUN_FILE, SAMPLES_FILE = "run.json", "samples.jsonl"

_FORMAT = 1
_MOST_NAMED = 5  # differences that a message lists


@dataclass(frozen=True)
class UnitRecord:
    """One group under one arm.

    Attributes:
        arm: the arm's name.
        group: the group's id.
        seconds: from the first request to the last score.
        tokens: tokens read and generated.
        tokens_per_second: of these.
        peak_bytes: most memory in use: allocated on the GPUs, else the process'.
        added_bytes: how much that is beyond what was in use when the unit began.
        banks: by layer, fields of `LayerStats` of the unit's newest sequence; empty without banks.
        acted: whether the banks changed a bit of any activation; None without banks.
        logits: hash of all logits that were computed, in their order; None where they can not be
            seen.
        outcomes: of the group's samples.
    """

    arm: str
    group: str
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_bytes: int
    added_bytes: int
    banks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    acted: bool | None = None
    logits: str | None = None
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """All that a folder holds of a run.

    Attributes:
        identity: what the results depend on.
        groups: ids of the groups that every arm is to answer.
        notes: where and when it ran.
        units: those of these groups that are done.
    """

    identity: Mapping[str, Any]
    groups: tuple[str, ...]
    notes: Mapping[str, Any]
    units: tuple[UnitRecord, ...]

    def of(self, arm: str) -> Iterator[UnitRecord]:
        """The units of an arm, in the order of the groups."""
        own = {unit.group: unit for unit in self.units if unit.arm == arm}
        return (own[group] for group in self.groups if group in own)

    def outcomes(self) -> list[tuple[str, Outcome]]:
        """Every outcome with its arm, arm by arm as the identity lists them."""
        arms = [arm["name"] for arm in self.identity["arms"]]
        return [
            (arm, outcome) for arm in arms for unit in self.of(arm) for outcome in unit.outcomes
        ]


class RunFolder:
    """Where a run writes; made by `RunFolder.opened`.

    Attributes:
        folder: the folder.
        done: the (arm, group) pairs that are closed.
    """

    def __init__(self, folder: Path, samples: IO[bytes], done: set[tuple[str, str]]) -> None:
        self.folder = folder
        self.done = done
        self._samples = samples

    @classmethod
    @contextmanager
    def opened(
        cls,
        folder: Path,
        identity: Mapping[str, Any],
        groups: Sequence[str],
        *,
        notes: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> Iterator[RunFolder]:
        """Begins a run in a folder, or goes on with the one that it holds.

        Args:
            folder: made where it does not exist.
            identity: what the results depend on, as JSON can hold it.
            groups: ids of the groups that every arm is to answer.
            notes: where and when it runs.
            fresh: forget what the folder holds of a run.

        Raises:
            ConfigurationError: it holds another run, or a damaged one, or another process writes
                there, or it can not be written to.
        """
        from filelock import FileLock, Timeout

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock", timeout=0):
                samples = folder / SAMPLES_FILE
                if fresh:
                    samples.unlink(missing_ok=True)
                    (folder / RUN_FILE).unlink(missing_ok=True)
                before = _check_identity(folder, identity)
                units, end = _closed_units(samples)
                done = {(unit.arm, unit.group) for unit in units}
                asked = {(arm["name"], group) for arm in identity["arms"] for group in groups}
                content = {
                    "format": _FORMAT,
                    "identity": identity,
                    "groups": list(groups),
                    "notes": _notes(dict(notes or {}), before, new=bool(asked - done)),
                }
                write_atomically(folder / RUN_FILE, _json(content, indent=1).encode())
                with samples.open("ab") as file:
                    file.truncate(end)
                    yield cls(folder, file, done)
        except Timeout as error:
            raise ConfigurationError(
                f"Another process is evaluating into {folder}; wait for it, or choose another "
                "--out."
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"Results can not be written to {folder}: {error}. Choose another --out."
            ) from error

    def add(self, arm: str, group: str, outcome: Outcome) -> None:
        """Writes a sample's line."""
        values = vars(outcome) | {"scores": dict(outcome.scores), "facts": dict(outcome.facts)}
        self._write({"arm": arm, "group": group, **values})

    def close_unit(self, unit: UnitRecord) -> None:
        """Writes the line that closes a unit, whose samples were added before."""
        values = {k: v for k, v in vars(unit).items() if k not in ("arm", "group", "outcomes")}
        closing = {"unit": {"arm": unit.arm, "group": unit.group}, "samples": len(unit.outcomes)}
        self._write(closing | values)
        self.done.add((unit.arm, unit.group))

    def _write(self, values: Mapping[str, Any]) -> None:
        self._samples.write(_json(values).encode() + b"\n")
        self._samples.flush()  # a killed process loses nothing that was written


def read_run(folder: Path) -> RunRecord:
    """What a folder holds of a run, as far as units are closed.

    Raises:
        ConfigurationError: there is no run, or a damaged one.
    """
    content = _read_run_file(folder)
    if content is None:
        raise ConfigurationError(f"{folder} holds no run: there is no {RUN_FILE}.")
    units, _ = _closed_units(folder / SAMPLES_FILE)
    groups = tuple(content["groups"])
    wanted = frozenset(groups)
    return RunRecord(
        content["identity"],
        groups,
        content["notes"],
        tuple(unit for unit in units if unit.group in wanted),
    )


def _json(values: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(values, indent=indent, allow_nan=False)


def _read_run_file(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ConfigurationError(
                f"{path} was written by another version of pacellm-rag; start again with --fresh, "
                "or choose another --out."
            )
        for needed in (content["identity"]["arms"], content["groups"]):
            if not isinstance(needed, list):
                raise TypeError(f"{needed!r} is no list")
        content["notes"].get("earlier")
    except FileNotFoundError:
        return None
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}: {error}); start again with --fresh, or "
            "choose another --out."
        ) from error
    return content


def _notes(notes: dict[str, Any], before: dict[str, Any] | None, *, new: bool) -> dict[str, Any]:
    """The notes of a run: the newest, and those of the times before when something was done."""
    if before is None:
        return notes
    if not new:
        return before
    earlier = before.pop("earlier", [])
    return notes | {"earlier": [*earlier, before]}


def _check_identity(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Raises where the folder holds another run; the notes of the one that it holds, if any."""
    content = _read_run_file(folder)
    if content is None:
        if (folder / SAMPLES_FILE).exists():
            raise ConfigurationError(
                f"{folder} holds {SAMPLES_FILE}, but no {RUN_FILE} that says what it is of; start "
                "again with --fresh, or choose another --out."
            )
        return None
    here = json.loads(_json(identity))
    differences = list(_differences(_by_arm(content["identity"]), _by_arm(here)))
    if differences:
        more = len(differences) - _MOST_NAMED
        named = "; ".join(differences[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise ConfigurationError(
            f"{folder} holds another run, which can not be gone on with: {named}. Start again with "
            "--fresh, which forgets it, or choose another --out."
        )
    notes: dict[str, Any] = content["notes"]
    return notes


def _by_arm(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with its arms by name, so that a difference names the arm."""
    arms = {arm["name"]: arm for arm in identity["arms"]}
    return identity | {"arms": arms, "order of arms": list(arms)}


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs between two values of JSON, with the dotted name of its place."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(there.get(key), here.get(key), inner)
    elif there != here:
        yield f"{name} was {_short(there)} and is now {_short(here)}"


def _short(value: Any) -> str:
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and "name" in v for v in value)
    ):
        value = ", ".join(str(each["name"]) for each in value)  # arms
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _closed_units(path: Path) -> tuple[list[UnitRecord], int]:
    """The units that are closed, and the bytes up to the end of the last one.

    Raises:
        ConfigurationError: a line before that end is not as it was written.
    """
    units: list[UnitRecord] = []
    pending: list[Outcome] = []
    fault = ""
    position = end = 0
    try:
        lines: IO[bytes] = path.open("rb")
    except FileNotFoundError:
        return [], 0
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break  # torn, even where it looks whole
            position += len(line)
            values: Any = None
            try:
                values = json.loads(line)
                if "unit" not in values:
                    del values["arm"], values["group"]
                    pending.append(Outcome(**values))
                    continue
                unit = _unit_of(dict(values), tuple(pending))
            except (ValueError, TypeError, KeyError) as error:
                fault = fault or f"line {number} of {path} ({type(error).__name__}: {error})"
            if isinstance(values, dict) and "unit" in values:
                if fault:  # behind the last closed unit it would be cut off with the rest
                    raise ConfigurationError(
                        f"The results are damaged at {fault}. Start again with --fresh, or choose "
                        "another --out."
                    )
                units.append(unit)
                pending, end = [], position
    return units, end


def _unit_of(values: dict[str, Any], outcomes: tuple[Outcome, ...]) -> UnitRecord:
    named, samples = values.pop("unit"), values.pop("samples")
    if samples != len(outcomes):
        raise ValueError(f"{samples} samples were written and {len(outcomes)} are there")
    known = {each.name for each in fields(UnitRecord)}
    if not set(values) <= known:
        raise ValueError(f"unknown field {sorted(set(values) - known)[0]}")
    return UnitRecord(**named, **values, outcomes=outcomes)
