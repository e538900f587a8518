"""InfiniteBench as a suite: its files, its samples, and how a model's answers to them count.

Zhang et al., "∞Bench: Extending Long Context Evaluation Beyond 100K Tokens", 2024. The data, up to
a million characters a row, stay on disk: a sample is a place in a file, read when it is asked.
Questions about the same text make a group. Knows the model's protocol and no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench_prompts import CHAT, PROMPTS
from pacellm_rag.evaluation.infinitebench_scores import score_answer
from pacellm_rag.evaluation.infinitebench_tasks import (
    TASKS,
    Label,
    Row,
    fill_prompt,
    prompt_turns,
    read_row,
)
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = ["METRIC", "BenchSample", "InfiniteBench", "answer_row"]

METRIC = "score"
_SHOWN_VALUES = 20
_WHERE = (
    "InfiniteBench is the data set xinrongzhang2022/InfiniteBench of the Hugging Face hub (some "
    "gigabytes); get it with: hf download xinrongzhang2022/InfiniteBench --repo-type dataset "
    "--local-dir {folder}"
)


@dataclass(frozen=True)
class BenchSample:
    """A row of a task's file.

    Attributes:
        id: unique within the suite.
        task: full name of the task.
        line: the row's line, from 1.
        start: the byte with which the line begins.
    """

    id: str
    task: str
    line: int
    start: int


@dataclass(frozen=True)
class InfiniteBench:
    """Tasks of InfiniteBench (a `Suite`).

    Args:
        folder: holds a file `<task>.jsonl` for every task.
        tasks: full names, in the order in which they are run.
        prompts: "gpt4" for chat turns, "yarn_mistral" for bare text.
        max_length: most tokens of a prompt, chat template aside; None for what the window takes.
        answer_tokens: most tokens of an answer, where that is more than the task's own number.

    Raises:
        ConfigurationError: there is no such prompt set.
    """

    folder: Path
    tasks: tuple[str, ...]
    prompts: str = CHAT
    max_length: int | None = None
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        if self.prompts not in PROMPTS:
            raise ConfigurationError(
                f"There is no prompt set {self.prompts!r}; there are {', '.join(PROMPTS)}."
            )

    @property
    def name(self) -> str:
        """As the command is called."""
        return "infinitebench"

    @property
    def metric(self) -> str:
        """Every task has one score, by its own rule."""
        return METRIC

    @property
    def readings(self) -> Sequence[str]:
        """The text is given whole, as far as the window takes it."""
        return (WHOLE,)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on; the files by their checksums.

        Raises:
            ConfigurationError: files are missing.
        """
        return {
            "tasks": list(self.tasks),
            "metrics": {task: TASKS[task].metric for task in self.tasks},
            "prompts": self.prompts,
            "answer_tokens": {task: self.max_new_tokens(task) for task in self.tasks},
            "max_length": self.max_length or "the window, less chat template and answer",
            "truncation": "the middle of the prompt",
            "decoding": "greedy",
            "data": {path.name: _checksum(path) for path in self._paths.values()},
        }

    def check(self) -> None:
        """Looks whether the files are there, before anything is loaded.

        Raises:
            ConfigurationError: one is missing, with what to do.
        """
        _ = self._paths

    def max_new_tokens(self, task: str) -> int:
        """Most tokens of an answer, as far as half of the model's window has room for them."""
        return max(TASKS[task].max_new_tokens, self.answer_tokens)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The file of every task; refuses when one is missing."""
        paths = {task: self.folder / f"{task}.jsonl" for task in self.tasks}
        where = _WHERE.format(folder=self.folder)
        if not self.folder.is_dir():
            raise ConfigurationError(f"There is no folder {self.folder}. {where}")
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            there = [task.short for name, task in TASKS.items() if self._has(name)]
            instead = f" Or name only tasks whose files are there: {','.join(there)}."
            raise ConfigurationError(
                f"{self.folder} has no {', '.join(missing)}. {where}.{instead if there else ''}"
            )
        return paths

    def _has(self, task: str) -> bool:
        return (self.folder / f"{task}.jsonl").is_file()

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[BenchSample]]:
        """Rows about the same text together; the tasks take turns.

        Raises:
            ConfigurationError: a file is missing, empty, or not as needed.
        """
        queues = [self._groups_of(task) for task in self.tasks]
        turns = range(max(map(len, queues), default=0))
        return [queue[turn] for turn in turns for queue in queues if turn < len(queue)]

    def _groups_of(self, task: str) -> list[Group[BenchSample]]:
        by_text: dict[bytes, list[BenchSample]] = {}
        for line, start, row in _rows(task, self._paths[task]):
            digest = hashlib.blake2b(row.context.encode("utf-8", "surrogatepass")).digest()
            sample = BenchSample(f"{task}-{line}", task, line, start)
            by_text.setdefault(digest, []).append(sample)
        if not by_text:
            raise ConfigurationError(f"{self._paths[task]} holds no row.")
        return [Group(samples[0].id, tuple(samples)) for samples in by_text.values()]

    def answer(
        self,
        model: TextModel,
        group: Group[BenchSample],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Asks the rows of a group one after the other.

        Raises:
            ConfigurationError: the file is gone or has changed, or there is no such way of reading.
        """
        if reading != WHOLE:
            raise ConfigurationError(f"{self.name} can not be read as {reading!r}, only {WHOLE}.")
        for sample in group.samples:
            yield answer_row(
                model,
                sample.id,
                sample.task,
                _row_at(sample, self._paths[sample.task]),
                prompts=self.prompts,
                max_length=self.max_length,
                max_new_tokens=self.max_new_tokens(sample.task),
                facts={"line": sample.line},
                cancel=cancel,
            )


def answer_row(
    model: TextModel,
    name: str,
    task: str,
    row: Row,
    *,
    prompts: str,
    max_new_tokens: int,
    max_length: int | None = None,
    facts: Mapping[str, Any],
    cancel: CancelSignal | None = None,
) -> Outcome:
    """Asks a model about one row, and scores what it says.

    Args:
        model: whom to ask.
        name: the sample's id.
        task: full name of the task.
        row: the data.
        prompts: the prompt set.
        max_new_tokens: most tokens of the answer; at most half of the model's window is used.
        max_length: as in `InfiniteBench`.
        facts: to keep with the outcome, beside the question and what is accepted.
        cancel: set to stop.
    """
    prompt = fill_prompt(task, row, prompts)
    turns = prompt_turns(task, prompt, prompts)
    sample = PromptedSample(
        id=name,
        task=TASKS[task].short,
        messages=turns,
        text=prompt if turns is None else None,
        max_new_tokens=min(max_new_tokens, max(model.context_window // 2, 1)),
        max_length=max_length,
    )
    answer = answer_prompt(model, sample, cancel=cancel)
    score = score_answer(task, answer.text, row.label, drops_first=prompts == CHAT)
    asked = {
        "question": row.input,
        "accepted": _shown(row.label),
        "max_new_tokens": sample.max_new_tokens,
    }
    return answer.outcome(sample, {METRIC: score}, facts={**asked, **facts})


def _shown(label: Label) -> Any:
    """The label as the report shows it, without the thousands of values of a calculation."""
    return list(label[:_SHOWN_VALUES]) if isinstance(label, tuple) else label


def _rows(task: str, path: Path) -> Iterator[tuple[int, int, Row]]:
    """Each row of a file with its line, from 1, and the byte with which that begins."""
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, start, _parse(task, line, number, path)
                start += len(line)
    except OSError as error:
        raise ConfigurationError(f"{path} can not be read: {error}.") from error


def _row_at(sample: BenchSample, path: Path) -> Row:
    try:
        with path.open("rb") as file:
            file.seek(sample.start)
            line = file.readline()
    except OSError as error:
        raise ConfigurationError(f"{path} can not be read: {error}.") from error
    return _parse(sample.task, line, sample.line, path)


def _parse(task: str, line: bytes, number: int, path: Path) -> Row:
    try:
        return read_row(task, json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:  # ConfigurationError is a ValueError as well
        raise ConfigurationError(
            f"Line {number} of {path} is not as {TASKS[task].short} needs it: {error}. Get the "
            "file anew, or remove the line."
        ) from error


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ConfigurationError(f"{path} can not be read: {error}.") from error
    return digest.hexdigest()
