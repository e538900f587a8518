"""The twelve tasks of InfiniteBench: names, lengths of answers, rows of data, and their prompts.

What a row's prompt and label are is as in OpenBMB/InfiniteBench, `src/eval_utils.py` (create_prompt
and get_answer), MIT licence. Knows rows as mappings; knows nothing of files, models or scores.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench_prompts import (
    CALCULATOR_TURNS,
    CHAT,
    PROMPTS,
    SYSTEM_TURN,
)
from pacellm_rag.messages import Message

__all__ = [
    "TASKS",
    "Label",
    "Row",
    "Task",
    "fill_prompt",
    "parse_tasks",
    "prompt_turns",
    "read_row",
]

Label: TypeAlias = "str | int | float | tuple[str, ...] | tuple[int, ...]"
"""What a task accepts: a string (passkey, number_string, kv_retrieval), an integer (code_run), a
number (math_find), integers (math_calc), text and letter of an option (longbook_choice_eng,
code_debug), or texts (the others)."""


@dataclass(frozen=True)
class Task:
    """One of the tasks.

    Attributes:
        name: as its file is called.
        short: as the paper calls it, in lower case.
        max_new_tokens: most tokens of an answer in the official script for open models.
        metric: what its score is, in words.
    """

    name: str
    short: str
    max_new_tokens: int
    metric: str


TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        Task("passkey", "passkey", 6, "first integer"),
        Task("number_string", "number", 12, "first integer"),
        Task("kv_retrieval", "kv", 50, "value among the words"),
        Task("longbook_sum_eng", "en.sum", 1200, "ROUGE-Lsum"),
        Task("longbook_choice_eng", "en.mc", 40, "option"),
        Task("longbook_qa_eng", "en.qa", 40, "F1 of words"),
        Task("longdialogue_qa_eng", "en.dia", 40, "name among the words"),
        Task("longbook_qa_chn", "zh.qa", 40, "F1 of characters"),
        Task("math_find", "math.find", 3, "first number"),
        Task("math_calc", "math.calc", 30000, "values right from the start"),
        Task("code_run", "code.run", 5, "last word"),
        Task("code_debug", "code.debug", 5, "option"),
    )
}
_NAMES = {alias: task.name for task in TASKS.values() for alias in (task.name, task.short)} | {
    "retrieve.passkey": "passkey",
    "retrieve.number": "number_string",
    "retrieve.kv": "kv_retrieval",
}
_WITH_OPTIONS = ("longbook_choice_eng", "code_debug")
_ONE_STRING = ("passkey", "number_string", "kv_retrieval")
_LETTERS = "ABCD"
_CALL = re.compile(r"func_[0-9]+\(-?[0-9]+\)")
_WANTED_NUMBER = re.compile(r"The .+ of")


@dataclass(frozen=True)
class Row:
    """A line of a task's file.

    Attributes:
        context: the long text.
        input: the question.
        options: four texts where the task has options, else none.
        label: what is accepted.
    """

    context: str
    input: str
    options: tuple[str, ...]
    label: Label


def parse_tasks(text: str) -> tuple[str, ...]:
    """Full names of tasks.

    Args:
        text: "all", or names, short or full and in any case, with commas between them.

    Raises:
        ConfigurationError: a name is unknown, or given twice.
    """
    if text.strip().lower() == "all":
        return tuple(TASKS)
    names: list[str] = []
    for part in text.lower().split(","):
        name = _NAMES.get(part.strip())
        if name is None:
            known = ", ".join(task.short for task in TASKS.values())
            raise ConfigurationError(
                f"InfiniteBench has no task {part.strip()!r}; its tasks are {known}, or all."
            )
        if name in names:
            raise ConfigurationError(f"The task {TASKS[name].short} is named twice in {text!r}.")
        names.append(name)
    return tuple(names)


def read_row(task: str, values: Any) -> Row:
    """A row from the value of a line of JSON.

    Args:
        task: full name of the task.
        values: what the line holds.

    Raises:
        ConfigurationError: it is not as the task needs it; the message names no place.
    """
    if not isinstance(values, dict):
        raise ConfigurationError(f"it is {_kind(values)}, not an object")
    old = "content" in values and "context" not in values
    context = _text(values, "content" if old else "context", needed=True)
    options = _options(values) if task in _WITH_OPTIONS else ()
    row = Row(context, _text(values, "input"), options, _label(task, values, options))
    _fields(task, row)  # a question without what its prompt needs is found before a long run
    return row


def fill_prompt(task: str, row: Row, prompts: str) -> str:
    """The prompt of a row.

    Args:
        task: full name of the task.
        row: the data.
        prompts: "gpt4" or "yarn_mistral".
    """
    return PROMPTS[prompts][task].format(**_fields(task, row))


def prompt_turns(task: str, prompt: str, prompts: str) -> tuple[Message, ...] | None:
    """The conversation in which a prompt is asked; None for a set that is bare text."""
    if prompts != CHAT:
        return None
    before = CALCULATOR_TURNS if task == "math_calc" else (SYSTEM_TURN,)
    return (*before, Message("user", prompt))


def _fields(task: str, row: Row) -> dict[str, str]:
    """What the braces of the prompts stand for."""
    fields = {"context": row.context, "input": row.input}
    fields |= {f"option_{letter.lower()}": o for letter, o in zip(_LETTERS, row.options)}  # noqa: B905
    if task == "code_run":
        call = _CALL.search(row.input)
        if call is None:
            raise ConfigurationError(
                f"'input' is {row.input!r}; a call such as func_7(-3) must stand in it"
            )
        fields |= {"func_call": call[0], "func": call[0].partition("(")[0]}
    if task == "math_find":
        wanted = _WANTED_NUMBER.search(row.input)
        if wanted is None:
            raise ConfigurationError(
                f"'input' is {row.input!r}; words such as 'The largest number of' must stand in it"
            )
        number = wanted[0].lower().removesuffix(" of")
        fields["prefix"] = f"What is {number} in the following list?"
    return fields


def _options(values: Mapping[str, Any]) -> tuple[str, ...]:
    options: Any = values.get("options")
    if not _is_list_of(options, str) or len(options) != len(_LETTERS):
        raise ConfigurationError(f"'options' is {_kind(options)}; four strings are needed")
    return tuple(options)


def _label(task: str, values: Mapping[str, Any], options: Sequence[str]) -> Label:
    """What is accepted, brought to the task's one form."""
    if "answer" not in values:
        raise ConfigurationError("'answer' is missing")
    answer = values["answer"]
    answers = answer if isinstance(answer, list) else [answer]
    if not answers:
        raise ConfigurationError("'answer' is an empty list")
    if task == "math_calc":
        return _integers(answers[0] if isinstance(answers[0], list) else answers)
    if task in ("code_run", "math_find"):
        return _number(answers[0], integer=task == "code_run")
    if not _is_list_of(answers, str):
        raise ConfigurationError(f"'answer' is {_kind(answer)}; a string or strings are needed")
    if task in _WITH_OPTIONS:
        return _option_and_letter(answers, options)
    return answers[0] if task in _ONE_STRING else tuple(answers)


def _option_and_letter(answers: Sequence[str], options: Sequence[str]) -> tuple[str, str]:
    if len(answers) == 2 and answers[1] in tuple(_LETTERS):
        return answers[0], answers[1]
    if len(answers) != 1 or answers[0] not in options:
        raise ConfigurationError(f"'answer' is {answers!r}, which is none of the options {options}")
    return answers[0], _LETTERS[options.index(answers[0])]


def _integers(values: Sequence[Any]) -> tuple[int, ...]:
    if not values:
        raise ConfigurationError("'answer' is an empty list")
    return tuple(int(_number(value, integer=True)) for value in values)


def _number(value: Any, *, integer: bool) -> int | float:
    """A number, also where an export has made it a string."""
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = json.loads(value)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    if isinstance(number, float) and not integer:
        return number
    raise ConfigurationError(
        f"'answer' holds {value!r}; {'an integer' if integer else 'a number'} is needed"
    )


def _text(values: Mapping[str, Any], key: str, *, needed: bool = False) -> str:
    value = values.get(key, None if needed else "")
    if not isinstance(value, str):
        raise ConfigurationError(
            f"{key!r} is missing" if key not in values else f"{key!r} is {_kind(value)}, no string"
        )
    return value


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), repr(value))
