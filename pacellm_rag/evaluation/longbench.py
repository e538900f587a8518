"""LongBench v1 as a suite: its prompts put to a model, and the answers scored.

Bai et al., "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding", ACL 2024;
rules from THUDM/LongBench, `LongBench/pred.py` (MIT). Where this differs from that script:

* Prompts may be as long as the window allows. The script has a number for each model, about 500
  tokens less than its window; `max_length` gives it.
* An answer to samsum that begins with a line break is empty. The script does not let a model
  begin with one, nor end at once; nor does Activation Beacon's harness where it stops at them.
* The text is cut where tokens end, not decoded from them (`truncation`).

Knows the model's protocol and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.longbench_data import TaskRow, group_rows, read_task
from pacellm_rag.evaluation.longbench_prompts import (
    EVEN_TASKS,
    GROUPS,
    MAX_NEW_TOKENS,
    PROMPTS,
    TASKS,
    WITHOUT_CHAT_TEMPLATE,
)
from pacellm_rag.evaluation.longbench_scores import METRICS, score_answer
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, Message, PromptTokenizer, TextModel

__all__ = ["LongBench", "choose_tasks"]

_ALL = "all"
_NEWLINE_STOPS = frozenset({"samsum"})
_MORE_NEWLINE_STOPS = _NEWLINE_STOPS | set(GROUPS["single-doc"] + GROUPS["multi-doc"])
_CATEGORIES = {task: name for name, tasks in GROUPS.items() for task in tasks}


def choose_tasks(names: Sequence[str], *, even: bool = False) -> tuple[str, ...]:
    """The tasks that some names stand for, each once, in the benchmark's order.

    Args:
        names: tasks, categories ("multi-doc"), or "all".
        even: of LongBench-E, which has no narrativeqa, musique and qmsum: categories go without.

    Raises:
        ConfigurationError: there is no such task.
    """
    chosen: set[str] = set()
    for name in names:
        if name in TASKS:
            if even and name not in EVEN_TASKS:
                raise ConfigurationError(
                    f"LongBench-E has no task {name!r}; it has {', '.join(EVEN_TASKS)}."
                )
            chosen.add(name)
        elif name in GROUPS or name == _ALL:
            chosen |= set(TASKS if name == _ALL else GROUPS[name])
        else:
            raise ConfigurationError(
                f"LongBench has no task {name!r} here. Choose from all, {', '.join(GROUPS)}, "
                f"{', '.join(TASKS)}."
            )
    tasks = tuple(task for task in TASKS if task in chosen and (not even or task in EVEN_TASKS))
    if not tasks:
        raise ConfigurationError("No task is chosen; name one, or all.")
    return tasks


@dataclass(frozen=True)
class LongBench:
    """Tasks of LongBench v1 (a `Suite`).

    Args:
        folder: holds the data, as `longbench_data` has it.
        tasks: names of tasks, as `choose_tasks` gives them.
        even: LongBench-E, with as many short as long texts.
        max_length: most tokens of a prompt, chat template aside; None for what the window takes.
        newline_stop: answers to questions about documents end at the first line break, as in
            Activation Beacon's harness. Its numbers can not be compared with others.
        bare: no chat template in any task, as for models that have none.

    Raises:
        ConfigurationError: `max_length` is too small.
    """

    folder: Path
    tasks: tuple[str, ...]
    even: bool = False
    max_length: int | None = None
    newline_stop: bool = False
    bare: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigurationError(f"max_length is {self.max_length}; it must be 2 or more.")

    @property
    def name(self) -> str:
        """What the command calls it."""
        return "longbench-e" if self.even else "longbench"

    @property
    def metric(self) -> str:
        """Each task's own metric; which one that is, is a fact of each outcome."""
        return "score"

    @property
    def readings(self) -> Sequence[str]:
        """The prompt as it is."""
        return (WHOLE,)

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that samples, prompts and scores depend on."""
        return {
            "tasks": list(self.tasks),
            "metrics": {task: METRICS[task] for task in self.tasks},
            "answer_tokens": {task: MAX_NEW_TOKENS[task] for task in self.tasks},
            "max_length": self.max_length or "the window, less chat template and answer",
            "truncation": "the middle of the prompt",
            "chat_template": "never" if self.bare else "but for few-shot and code",
            "stopped_at_newline": [task for task in self.tasks if self._stop(task)],
            "decoding": "greedy",
            "code_similarity": "difflib, as LongBench's requirements install it",
            "data": {task: digest for task, (_, digest) in self._data.items()},
        }

    @cached_property
    def _data(self) -> dict[str, tuple[list[TaskRow], str]]:
        return {task: read_task(self.folder, task, even=self.even) for task in self.tasks}

    def check(self) -> None:
        """Reads the data, so that what is wrong with them is said before a model is loaded.

        Raises:
            ConfigurationError: the data are missing or not as needed, with what to do.
        """
        _ = self._data

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[TaskRow]]:
        """Rows about the same text; the tasks take turns.

        Raises:
            ConfigurationError: the data are missing or not as needed, with what to do.
        """
        return group_rows(rows for rows, _ in self._data.values())

    def prompt(self, row: TaskRow) -> PromptedSample:
        """What a model is asked, and how."""
        text = PROMPTS[row.task].format(context=row.context, input=row.input)
        bare = self.bare or row.task in WITHOUT_CHAT_TEMPLATE
        return PromptedSample(
            row.id,
            row.task,
            messages=None if bare else (Message("user", text),),
            text=text if bare else None,
            max_new_tokens=MAX_NEW_TOKENS[row.task],
            stop=self._stop(row.task),
            max_length=self.max_length,
        )

    def _stop(self, task: str) -> tuple[str, ...]:
        stopped = _MORE_NEWLINE_STOPS if self.newline_stop else _NEWLINE_STOPS
        return ("\n",) if task in stopped else ()

    def answer(
        self,
        model: TextModel,
        group: Group[TaskRow],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Puts a group's rows to a model.

        Args:
            model: any.
            group: one of `groups`.
            reading: there is one way only.
            cancel: set to stop within a window or token.

        Raises:
            ContextOverflowError: not even the ends of a prompt fit the window.
            CancelledError: `cancel` was set.
        """
        for row in group.samples:
            sample = self.prompt(row)
            answer = answer_prompt(model, sample, cancel=cancel)
            score = score_answer(row.task, answer.text, row.answers, row.classes)
            facts: dict[str, Any] = {
                "kind": _CATEGORIES[row.task],
                "metric": METRICS[row.task],
                "words": row.words,
                "question": row.input,
                "answers": list(row.answers),
            }
            if self.even:
                facts["length"] = _length_bin(row.words)
            yield answer.outcome(sample, {self.metric: score}, facts=facts)


def _length_bin(words: int) -> str:
    """The range of lengths that LongBench-E counts a row to."""
    if words < 4000:
        return "0-4k"
    return "4-8k" if words < 8000 else "8k+"
