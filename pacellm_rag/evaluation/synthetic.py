"""Passkey, number string and key-value retrieval as InfiniteBench has them, of any length.

Made here from a seed, so that a model with a small window can be asked too; prompts and scores are
those of the three tasks of `infinitebench`. Knows the model's protocol and no model; the texts are
`synthetic_texts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench import METRIC, answer_row
from pacellm_rag.evaluation.infinitebench_prompts import CHAT, PROMPTS
from pacellm_rag.evaluation.infinitebench_tasks import (
    TASKS,
    Row,
    fill_prompt,
    parse_tasks,
    prompt_turns,
)
from pacellm_rag.evaluation.synthetic_texts import RECIPES, make_row
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = ["CHAT_ANSWER_TOKENS", "SyntheticBench", "SyntheticSample", "parse_kinds"]

CHAT_ANSWER_TOKENS: Final = 96
"""Room for an answer in chat turns: a sentence that repeats key and value, a token a character. The
benchmark's own six tokens for a passkey are meant for base models, which go on behind "The pass key
is"; GPT-4, whose prompts chat models get, had no limit."""


@dataclass(frozen=True)
class SyntheticSample:
    """What one text is made from.

    Attributes:
        id: unique within the suite.
        task: full name of the task.
        length: most tokens of prompt and answer together.
        depth: where the wanted line or pair stands, in percent of the text.
        seed: of its digits, keys and values.
        fillers: other lines or pairs in the text.
    """

    id: str
    task: str
    length: int
    depth: float
    seed: str
    fillers: int


@dataclass(frozen=True)
class SyntheticBench:
    """Retrieval from texts made here (a `Suite`), one sample a group.

    Args:
        tasks: full names, of passkey, number_string and kv_retrieval.
        lengths: most tokens of prompt and answer together, as the model's tokenizer counts; less
            than one filler stays unused.
        depths: in percent of the text.
        samples: texts for each task, length and depth.
        seed: of all that is drawn.
        prompts: "gpt4" for chat turns, "yarn_mistral" for bare text.
        answer_tokens: most tokens of an answer, where that is more than `max_new_tokens` says.

    Raises:
        ConfigurationError: a value is out of range.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 1
    seed: int = 0
    prompts: str = CHAT
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in RECIPES]
        if unknown or not self.tasks:
            raise ConfigurationError(
                f"Of {', '.join(unknown) or 'no task'} no text can be made; of {_kinds()} it can."
            )
        if self.prompts not in PROMPTS:
            raise ConfigurationError(
                f"There is no prompt set {self.prompts!r}; there are {', '.join(PROMPTS)}."
            )
        if self.samples < 1 or not self.lengths or not self.depths:
            raise ConfigurationError(
                f"There are {len(self.lengths)} lengths, {len(self.depths)} depths and "
                f"{self.samples} samples of each to make; one at least is needed of all three."
            )

    @property
    def name(self) -> str:
        """As the command is called, with its option."""
        return "infinitebench-synthetic"

    @property
    def metric(self) -> str:
        """Every task has one score, by its own rule."""
        return METRIC

    @property
    def readings(self) -> Sequence[str]:
        """The text is given whole."""
        return (WHOLE,)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on."""
        return {
            "tasks": list(self.tasks),
            "metrics": {task: TASKS[task].metric for task in self.tasks},
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "samples": self.samples,
            "seed": self.seed,
            "prompts": self.prompts,
            "answer_tokens": {task: self.max_new_tokens(task) for task in self.tasks},
            "decoding": "greedy",
        }

    def max_new_tokens(self, task: str) -> int:
        """Most tokens of an answer."""
        own = TASKS[task].max_new_tokens
        return max(own, self.answer_tokens, CHAT_ANSWER_TOKENS if self.prompts == CHAT else 0)

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[SyntheticSample]]:
        """The samples; the tasks take turns, then the lengths, then the depths.

        Raises:
            ConfigurationError: a length is more than the window, or too short for any text.
        """
        window = tokenizer.context_window
        if max(self.lengths) > window:
            raise ConfigurationError(
                f"A length of {max(self.lengths):,} tokens is more than {tokenizer.name} takes "
                f"({window:,}). Lower --lengths, or stretch the window with --context-window."
            )
        groups: list[Group[SyntheticSample]] = []
        guesses: dict[tuple[str, int], int] = {}
        cells = itertools.product(range(self.samples), self.depths, self.lengths, self.tasks)
        for index, depth, length, task in cells:
            name = f"{task}-{length}-{depth:g}-{index}"
            seed = f"{self.seed}/{name}"
            guess = guesses.get((task, length), 0)
            fillers = self._fit(tokenizer, task, length, depth, seed, guess)
            guesses[task, length] = fillers
            groups.append(Group(name, (SyntheticSample(name, task, length, depth, seed, fillers),)))
        return groups

    def _fit(
        self,
        tokenizer: PromptTokenizer,
        task: str,
        length: int,
        depth: float,
        seed: str,
        guess: int,
    ) -> int:
        """Most fillers with which prompt and answer come to no more than the length.

        Tokens grow with fillers, so the most is found between a number that fits and one that does
        not; the slope between them tells where to look next, and `guess`, the number that did for
        the sample before, where to begin.
        """
        room = length - self.max_new_tokens(task)

        def tokens(fillers: int) -> int:
            return self._prompt_tokens(tokenizer, task, make_row(task, fillers, depth, seed))

        fits, few = 0, tokens(0)
        if few > room:
            needed = few + self.max_new_tokens(task)
            raise ConfigurationError(
                f"A length of {length:,} tokens is too short for {TASKS[task].short}: its prompt "
                f"and answer take {needed:,} without any other text. Raise --lengths."
            )
        over, many = 1, tokens(1)
        while many <= room:
            fits, few, each = over, many, (many - few) / (over - fits)
            over = max(over + 1, guess if over < guess else over + int((room - many) / each))
            many = tokens(over)
        while over - fits > 1:
            step = int((room - few) * (over - fits) / (many - few))
            middle = fits + min(max(step, 1), over - fits - 1)
            if (count := tokens(middle)) <= room:
                fits, few = middle, count
            else:
                over, many = middle, count
        return fits

    def _prompt_tokens(self, tokenizer: PromptTokenizer, task: str, row: Row) -> int:
        prompt = fill_prompt(task, row, self.prompts)
        turns = prompt_turns(task, prompt, self.prompts)
        encoded = (
            tokenizer.encode_text(prompt) if turns is None else tokenizer.encode_messages(turns)
        )
        return len(encoded.token_ids)

    def answer(
        self,
        model: TextModel,
        group: Group[SyntheticSample],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Makes the text of each sample and asks for what is hidden in it.

        Raises:
            ConfigurationError: there is no such way of reading.
        """
        if reading != WHOLE:
            raise ConfigurationError(f"{self.name} can not be read as {reading!r}, only {WHOLE}.")
        for sample in group.samples:
            yield answer_row(
                model,
                sample.id,
                sample.task,
                make_row(sample.task, sample.fillers, sample.depth, sample.seed),
                prompts=self.prompts,
                max_new_tokens=self.max_new_tokens(sample.task),
                facts={"length": sample.length, "depth": sample.depth},
                cancel=cancel,
            )


def parse_kinds(text: str) -> tuple[str, ...]:
    """Full names of tasks of which texts can be made.

    Args:
        text: "all", or names with commas between them.

    Raises:
        ConfigurationError: a name is unknown, or of another task of InfiniteBench.
    """
    if text.strip().lower() == "all":
        return tuple(RECIPES)
    tasks = parse_tasks(text)
    other = [TASKS[task].short for task in tasks if task not in RECIPES]
    if other:
        raise ConfigurationError(
            f"Of {', '.join(other)} no text can be made, of {_kinds()} it can. Other tasks need "
            "--data."
        )
    return tasks


def _kinds() -> str:
    return ", ".join(TASKS[task].short for task in RECIPES)
