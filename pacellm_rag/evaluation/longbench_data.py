"""The files of LongBench v1 and v2, read from a folder or from the archive as it is downloaded.

v1 has a file `<task>.jsonl` for each task, all of them in `data.zip`; those of LongBench-E, with
as many short as long texts, end in `_e`. v2 is one file, `data.json`. Knows what a row has to
hold; knows no prompts, scores or models.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.types import Group

__all__ = ["ChoiceRow", "TaskRow", "group_rows", "read_choices", "read_task"]

ARCHIVE = "data.zip"
CHOICES_FILE = "data.json"
LETTERS = "ABCD"
_WHERE = (
    "LongBench is the data set THUDM/LongBench of the Hugging Face hub (about 110 MB); get "
    f"{ARCHIVE} with: hf download THUDM/LongBench {ARCHIVE} --repo-type dataset --local-dir {{0}}"
)
_WHERE_CHOICES = (
    "LongBench v2 is the data set THUDM/LongBench-v2 of the Hugging Face hub (about half "
    f"a gigabyte); get {CHOICES_FILE} with: hf download THUDM/LongBench-v2 {CHOICES_FILE} "
    "--repo-type dataset --local-dir {0}"
)


@dataclass(frozen=True)
class TaskRow:
    """A row of v1.

    Attributes:
        id: unique within the suite.
        task: its task, without "_e".
        input: the question, or what the prompt ends with.
        context: the long text.
        answers: those that are accepted.
        classes: of trec: the names of all classes.
        words: length of both, in words, as the benchmark counts them.
    """

    id: str
    task: str
    input: str
    context: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    words: int


@dataclass(frozen=True)
class ChoiceRow:
    """A row of v2.

    Attributes:
        id: unique within the suite.
        domain: one of six, such as "Single-Document QA".
        sub_domain: what it is about.
        difficulty: "easy" or "hard".
        length: "short", "medium" or "long".
        question: what is asked.
        choices: four of them.
        answer: the letter of the right one.
        context: the long text.
    """

    id: str
    domain: str
    sub_domain: str
    difficulty: str
    length: str
    question: str
    choices: tuple[str, ...]
    answer: str
    context: str


class _Row(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def context(self) -> str: ...


RowT = TypeVar("RowT", bound=_Row)


def group_rows(tasks: Iterable[Sequence[RowT]]) -> list[Group[RowT]]:
    """Rows about the same text together; the tasks take turns, so that a limit holds some of each.

    A group has the id of its first row.
    """
    queues = []
    for rows in tasks:
        by_text: dict[Hashable, list[RowT]] = {}
        for row in rows:
            by_text.setdefault(row.context, []).append(row)
        queues.append([Group(about[0].id, tuple(about)) for about in by_text.values()])
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def read_task(folder: Path, task: str, *, even: bool = False) -> tuple[list[TaskRow], str]:
    """The rows of one task of v1, and the SHA-256 of its file.

    Args:
        folder: holds the files, or `data.zip`; or that archive itself.
        task: its name.
        even: of LongBench-E.

    Raises:
        ConfigurationError: the file is not there, or a line of it is not as needed.
    """
    name = f"{task}_e.jsonl" if even else f"{task}.jsonl"
    content, place = _content(folder, name)
    rows, ids = [], set()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {place}"
        row = _task_row(_object(line, where), task, where)
        if row.id in ids:
            raise ConfigurationError(f"The id {row.id!r} stands twice in {place}, also in {where}.")
        ids.add(row.id)
        rows.append(row)
    if not rows:
        raise ConfigurationError(f"{place} has no rows. {_WHERE.format(folder)}")
    return rows, hashlib.sha256(content).hexdigest()


def read_choices(folder: Path) -> tuple[list[ChoiceRow], str]:
    """The rows of v2, and the SHA-256 of their file.

    Args:
        folder: holds `data.json`; or that file itself.

    Raises:
        ConfigurationError: the file is not there, or a row of it is not as needed.
    """
    path = folder if folder.is_file() else folder / CHOICES_FILE
    if not path.is_file():
        raise ConfigurationError(f"There is no {path}. {_WHERE_CHOICES.format(folder)}")
    content = _read(path)
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is no JSON ({error}); load it anew. {_WHERE_CHOICES.format(folder)}"
        ) from error
    if not isinstance(values, list) or not values:
        raise ConfigurationError(
            f"{path} is not a list of rows. {_WHERE_CHOICES.format(path.parent)}"
        )
    rows, ids = [], set()
    for number, each in enumerate(values, 1):
        where = f"row {number} of {path}"
        row = _choice_row(each, where)
        if row.id in ids:
            raise ConfigurationError(f"The id {row.id!r} stands twice in {path}, also in {where}.")
        ids.add(row.id)
        rows.append(row)
    return rows, hashlib.sha256(content).hexdigest()


def _content(folder: Path, name: str) -> tuple[bytes, str]:
    """The bytes of a file, and where it was found."""
    for path in (folder / name, folder / "data" / name):
        if path.is_file():
            return _read(path), str(path)
    archive = folder if folder.is_file() else folder / ARCHIVE
    if not archive.is_file():
        raise ConfigurationError(
            f"There is neither {folder / name} nor {archive}. {_WHERE.format(folder)}"
        )
    try:
        with zipfile.ZipFile(archive) as files:
            inside = next((n for n in files.namelist() if n.rsplit("/", 1)[-1] == name), None)
            if inside is None:
                raise ConfigurationError(
                    f"{archive} has no {name}. {_WHERE.format(archive.parent)}"
                )
            return files.read(inside), f"{inside} in {archive}"
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ConfigurationError(
            f"{archive} can not be read ({error}); load it anew. {_WHERE.format(archive.parent)}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} can not be read: {error}.") from error


def _object(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # not UTF-8 likewise
        raise ConfigurationError(f"There is no JSON in {where} ({error}); load it anew.") from error


def _task_row(values: Any, task: str, where: str) -> TaskRow:
    fields = _Fields(values, where)
    answers = fields.texts("answers")
    classes = fields.texts("all_classes") if values.get("all_classes") is not None else ()
    if not answers:
        raise ConfigurationError(f"`answers` is empty in {where}; one is needed to score others.")
    if task == "trec" and not classes:
        raise ConfigurationError(f"`all_classes` is empty in {where}; trec is scored by it.")
    words = values.get("length")
    if not isinstance(words, int):
        raise ConfigurationError(f"`length` is {words!r} in {where}; it must be a whole number.")
    identity = fields.text("_id")
    return TaskRow(
        f"{task}:{identity}",
        task,
        fields.text("input"),
        fields.text("context"),
        answers,
        classes,
        words,
    )


def _choice_row(values: Any, where: str) -> ChoiceRow:
    fields = _Fields(values, where)
    answer = fields.text("answer")
    if answer not in tuple(LETTERS):
        raise ConfigurationError(f"`answer` is {answer!r} in {where}; it must be A, B, C or D.")
    return ChoiceRow(
        id=fields.text("_id"),
        domain=fields.text("domain"),
        sub_domain=fields.text("sub_domain"),
        difficulty=fields.text("difficulty"),
        length=fields.text("length"),
        question=fields.text("question"),
        choices=tuple(fields.text(f"choice_{letter}") for letter in LETTERS),
        answer=answer,
        context=fields.text("context"),
    )


class _Fields:
    """The fields of a row, with errors that name its place."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"There is no JSON object in {where}; load the file anew.")
        self._values, self._where = values, where

    def text(self, name: str) -> str:
        """A field that is a text."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise ConfigurationError(f"`{name}` is {value!r} in {self._where}; it must be a text.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of texts."""
        value = self._values.get(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigurationError(
                f"`{name}` is {value!r} in {self._where}; it must be a list of texts."
            )
        return tuple(value)
