"""LongBench v2 as a suite: 503 questions with four choices about texts of up to 2M words.

Bai et al., "LongBench v2: Towards Deeper Understanding and Reasoning on Realistic Long-context
Multitasks", 2024; prompt and rules from THUDM/LongBench, `prompts/0shot.txt` and `pred.py` (MIT).
Where this differs from that script: decoding is greedy, where it draws at temperature 0.1, so that
arms can be compared; an empty answer counts as wrong, where it leaves the question out; prompts may
be as long as the window allows, where it has a number for each model; and of an odd `max_length`
one token is left unused. Knows the model's protocol and no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.longbench_data import LETTERS, ChoiceRow, group_rows, read_choices
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, Message, PromptTokenizer, TextModel

__all__ = ["LongBenchV2", "choice_prompt", "chosen_letter"]

_MAX_NEW_TOKENS = 128
_PROMPT = (
    "Please read the following text and answer the question below.\n\n<text>\n$DOC$\n</text>\n\n"
    "What is the correct answer to this question: $Q$\nChoices:\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n"
    '(D) $C_D$\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)
_CHOSEN = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)


def choice_prompt(row: ChoiceRow) -> str:
    """The official prompt; marks within what was filled in before are filled as well, as there."""
    prompt = _PROMPT.replace("$DOC$", row.context.strip()).replace("$Q$", row.question.strip())
    for letter, choice in zip(LETTERS, row.choices, strict=True):
        prompt = prompt.replace(f"$C_{letter}$", choice.strip())
    return prompt


def chosen_letter(answer: str) -> str | None:
    """The choice that an answer names: in brackets first, else without; None for neither."""
    plain = answer.strip().replace("*", "")
    found = (pattern.search(plain) for pattern in _CHOSEN)
    return next((match.group(1) for match in found if match), None)


@dataclass(frozen=True)
class LongBenchV2:
    """LongBench v2 without chain of thought (a `Suite`).

    Args:
        folder: holds `data.json`; or that file itself.
        max_length: most tokens of a prompt, chat template aside; None for what the window takes.
        bare: no chat template, as for models that have none.

    Raises:
        ConfigurationError: `max_length` is too small.
    """

    folder: Path
    max_length: int | None = None
    bare: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigurationError(f"max_length is {self.max_length}; it must be 2 or more.")

    @property
    def name(self) -> str:
        """What the command calls it."""
        return "longbench-v2"

    @property
    def metric(self) -> str:
        """1 where the right choice is named."""
        return "accuracy"

    @property
    def readings(self) -> Sequence[str]:
        """The prompt as it is."""
        return (WHOLE,)

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that samples, prompts and scores depend on."""
        return {
            "prompt": "0-shot, without chain of thought",
            "answer_tokens": _MAX_NEW_TOKENS,
            "max_length": self.max_length or "the window, less chat template and answer",
            "truncation": "the middle of the prompt",
            "chat_template": "never" if self.bare else "always",
            "decoding": "greedy; the official script draws at temperature 0.1",
            "data": self._data[1],
        }

    @cached_property
    def _data(self) -> tuple[list[ChoiceRow], str]:
        return read_choices(self.folder)

    def check(self) -> None:
        """Reads the data, so that what is wrong with them is said before a model is loaded.

        Raises:
            ConfigurationError: the data are missing or not as needed, with what to do.
        """
        _ = self._data

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[ChoiceRow]]:
        """Questions about the same text together.

        Raises:
            ConfigurationError: the data are missing or not as needed, with what to do.
        """
        return group_rows([self._data[0]])

    def prompt(self, row: ChoiceRow) -> PromptedSample:
        """What a model is asked, and how."""
        text = choice_prompt(row)
        return PromptedSample(
            row.id,
            self.name,
            messages=None if self.bare else (Message("user", text),),
            text=text if self.bare else None,
            max_new_tokens=_MAX_NEW_TOKENS,
            max_length=self.max_length,
        )

    def answer(
        self,
        model: TextModel,
        group: Group[ChoiceRow],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Puts a group's questions to a model.

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
            chosen = chosen_letter(answer.text)
            facts = {
                "length": row.length,
                "kind": row.difficulty,
                "domain": row.domain,
                "sub_domain": row.sub_domain,
                "question": row.question,
                "answers": [row.answer],
                "chosen": chosen,
            }
            yield answer.outcome(sample, {self.metric: float(chosen == row.answer)}, facts=facts)
