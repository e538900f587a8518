"""The option `--reading`: further arms that get less than the whole of the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click

from pacellm_rag.cli.evaluating import EvaluationOptions
from pacellm_rag.evaluation.arms import PLAIN
from pacellm_rag.evaluation.retrieval import parse_reading
from pacellm_rag.evaluation.types import WHOLE

__all__ = ["reading_option", "with_readings"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

reading_option = click.option(
    "--reading",
    "readings",
    multiple=True,
    metavar="NAME",
    help="A further arm, plain@NAME, which is given less than the whole: bm25:4 the four chunks of "
    "about 200 words that fit the question best, window:1024 the last 1,024 tokens. Can be given "
    "several times.",
)


def with_readings(
    evaluation: EvaluationOptions, names: Sequence[str]
) -> tuple[EvaluationOptions, tuple[str, ...]]:
    """The arms with those that `--reading` adds, and all ways of reading that arms name.

    Raises:
        ConfigurationError: there is no such way of reading.
    """
    wanted = [parse_reading(name).name for name in names]
    arms = [name.strip() for name in evaluation.arms.split(",") if name.strip()]
    added = [f"{PLAIN}@{name}" for name in wanted if name != WHOLE]
    arms += [arm for arm in dict.fromkeys(added) if arm not in arms]
    parts = [arm.partition("@")[2] for arm in arms]
    readings = tuple(dict.fromkeys(part for part in parts if part and part != WHOLE))
    for reading in readings:
        parse_reading(reading)
    return replace(evaluation, arms=",".join(arms)), readings
