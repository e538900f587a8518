"""A suite of made-up samples for the tests of runs: some texts, two questions on each.

As a program it runs itself into a folder with a tiny model, slowly, until it is killed:
`small_suite.py FOLDER GROUPS SECONDS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacellm_rag.evaluation.arms import Arm
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.messages import Message
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

ACTING = PaceConfig(layers=(0, 2), window=32, slots=8, positives=2, negatives=1, blend=0.9, low=-1)
"""Banks that change what a tiny model computes."""

ARMS = (Arm("plain", None), Arm("pace", ACTING), Arm("placebo", None, placebo=True))


@dataclass
class SmallSuite:
    """Counts the kinds of letters in a model's answer."""

    texts: int = 4
    words: int = 100
    tokens: int = 6
    seed: int = 0
    pause: float = 0.0
    fails_at: tuple[str, BaseException] | None = None
    asked: list[str] = field(default_factory=list)

    name = "small"
    metric = "letters"
    readings = (WHOLE, "half")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"texts": self.texts, "words": self.words, "tokens": self.tokens, "seed": self.seed}

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[PromptedSample]]:
        return [self._group(index) for index in range(self.texts)]

    def _group(self, index: int) -> Group[PromptedSample]:
        words = [f"w{(index * 7 + word * word + self.seed) % 97}" for word in range(self.words)]
        samples = []
        for question in ("first", "last"):
            messages = (Message("system", " ".join(words)), Message("user", f"The {question}?"))
            facts = {"position": question, "length": self.words, "depth": index / self.texts}
            task = "odd" if index % 2 else "even"
            one = PromptedSample(
                f"t{index}-{question}", task, messages, None, self.tokens, facts=facts
            )
            samples.append(one)
        return Group(f"t{index}", tuple(samples))

    def answer(
        self,
        model: TextModel,
        group: Group[PromptedSample],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        for sample in group.samples:
            if self.fails_at is not None and self.fails_at[0] == sample.id:
                raise self.fails_at[1]
            self.asked.append(sample.id)
            time.sleep(self.pause)
            if reading == "half":
                assert sample.messages is not None
                text = sample.messages[0].content
                turns = (Message("system", text[: len(text) // 2]), sample.messages[1])
                sample = PromptedSample(sample.id, sample.task, turns, None, sample.max_new_tokens)
            answer = answer_prompt(model, sample, cancel=cancel)
            scores = {"letters": len(set(answer.text)) / 10}
            if sample.task == "odd":
                scores["blanks"] = float(" " in answer.text)
            yield answer.outcome(sample, scores, facts=sample.facts)


def main() -> None:
    import torch

    from pacellm_rag.evaluation.runner import run
    from pacellm_rag.testing import tiny_model

    torch.set_num_threads(1)
    folder, groups, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    loaded: PaceModel = tiny_model("llama")
    suite = SmallSuite(texts=groups, pause=pause)
    run(suite, suite.groups(loaded.tokenizer), ARMS, loaded, folder)


if __name__ == "__main__":
    main()
