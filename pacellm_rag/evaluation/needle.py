"""The suite `niah`: needles in a haystack, at every depth of texts of every length.

After G. Kamradt, "LLMTest_NeedleInAHaystack" (https://github.com/gkamradt/LLMTest_NeedleInAHaystack,
MIT), with three changes: needles are made up anew for every cell, so that neither training nor an
earlier cell tells them; they are put at the borders of sentences; and answers are scored by the
words they name and by ROUGE-L, not by another model. The text goes the way of a user's document,
with pages and citations; `bare` has the original's prompt instead. Knows no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import plan_question
from pacellm_rag.context.prompts import INSTRUCTIONS, REMINDER
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.document_answers import answer_questions
from pacellm_rag.evaluation.document_questions import checked_readings
from pacellm_rag.evaluation.haystack import Haystack, HaystackText
from pacellm_rag.evaluation.needle_cells import NeedleSample, most_sentences
from pacellm_rag.evaluation.needles import NeedleMaker, keyword_recall
from pacellm_rag.evaluation.prompted import PromptedSample, answer_prompt
from pacellm_rag.evaluation.rouge import rouge_l
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, Message, PromptTokenizer, TextModel

__all__ = ["NeedleSuite"]

_NAME = "niah"
_ANSWER_TOKENS = 96
_SLACK = 4  # tokens for each needle, which may merge otherwise where it stands

# Kamradt's `needlehaystack/providers/openai.py`, word for word. Its two user turns are one here,
# since most chat templates want the turns to alternate.
_BARE_SYSTEM = (
    "You are a helpful AI bot that answers questions for a user. Keep your response short and "
    "direct"
)
_BARE_ASKED = "Don't give information outside the document or repeat your findings"


@dataclass(frozen=True)
class NeedleSuite:
    """Cells of every length and depth.

    A prompt has, with the room for its answer, no more tokens than its length. It has fewer by less
    than the next sentence of the haystack, four for each needle, and what its needles are shorter
    than those of the other cells of its length. All of these have the same text.

    Attributes:
        lengths: tokens of prompt and answer together.
        depths: percent of the text before the needle.
        needles: "single", "multikey" or "multivalue"; see `needles`.
        haystack: a file or folder of text; None for the built-in one.
        trials: cells of each length and depth, with needles of their own.
        bare: Kamradt's prompt in place of a document with pages.
        extra_readings: further ways of reading, besides the whole; none where `bare`.
        seed: of the needles.

    Raises:
        ConfigurationError: a value can not work.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    needles: str = "single"
    haystack: Path | None = None
    trials: int = 1
    bare: bool = False
    extra_readings: tuple[str, ...] = ()
    seed: int = 0
    name = _NAME
    metric = "recall"

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths or self.trials < 1:
            raise ConfigurationError(
                f"There are {len(self.lengths)} lengths, {len(self.depths)} depths and "
                f"{self.trials} trials; there must be one or more of each."
            )
        NeedleMaker(self.needles)
        checked_readings(self.extra_readings)
        if self.bare and self.extra_readings:
            raise ConfigurationError(
                "The bare prompt has no documents to choose from; leave out --bare or the other "
                f"readings ({', '.join(self.extra_readings)})."
            )

    @property
    def readings(self) -> Sequence[str]:
        """See `Suite.readings`."""
        return checked_readings(self.extra_readings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Suite.settings`."""
        haystack = Haystack(self.haystack)
        prompt = [_BARE_SYSTEM, _BARE_ASKED] if self.bare else [INSTRUCTIONS, REMINDER]
        return {
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "needles": self.needles,
            "haystack": haystack.name,
            "haystack_sha256": haystack.digest(),
            "trials": self.trials,
            "prompt": prompt,
            "answer_tokens": _ANSWER_TOKENS,
            "seed": self.seed,
        }

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[NeedleSample]]:
        """See `Suite.groups`: one cell each, the short ones first."""
        longest = max(self.lengths)
        if longest > tokenizer.context_window:
            raise ConfigurationError(
                f"The length {longest:,} is beyond the window of {tokenizer.name}, "
                f"{tokenizer.context_window:,} tokens. Lower --lengths, or stretch the window with "
                "--context-window."
            )
        text = Haystack(self.haystack).text(tokenizer, longest)
        words = {word for sentence in text.sentences for word in re.findall(r"\w+", sentence)}
        maker = NeedleMaker(self.needles, sorted(words))
        cells: list[NeedleSample] = []
        for length in sorted(self.lengths):
            cells += self._cells(length, text, maker, tokenizer)
        return [Group(cell.id, (cell,)) for cell in cells]

    def answer(
        self,
        model: TextModel,
        group: Group[NeedleSample],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """See `Suite.answer`."""
        for sample in group.samples:
            if self.bare:
                yield self._answer_bare(model, sample, cancel)
            else:
                yield self._answer_document(model, sample, reading, cancel)

    def _answer_document(
        self, model: TextModel, sample: NeedleSample, reading: str, cancel: CancelSignal | None
    ) -> Outcome:
        (answer,) = answer_questions(
            model,
            [sample.document],
            [sample.needles.question],
            reading=reading,
            max_new_tokens=_ANSWER_TOKENS,
            cancel=cancel,
        )
        cited = [citation.page for citation in answer.citations]
        found = {"citation": float(bool(cited) and cited[0] in sample.evidence)}
        return Outcome(
            sample=sample.id,
            task=self.needles,
            text=answer.text,
            scores=_scores(sample, answer.text) | found,
            prompt_tokens=answer.prompt_tokens,
            tokens_left_out=answer.tokens_left_out,
            tokens_reused=answer.tokens_reused,
            completion_tokens=answer.completion_tokens,
            seconds=answer.seconds,
            facts=_facts(sample) | {"pages": list(sample.evidence), "cited": cited},
        )

    def _answer_bare(
        self, model: TextModel, sample: NeedleSample, cancel: CancelSignal | None
    ) -> Outcome:
        prompt = PromptedSample(sample.id, self.needles, _bare(sample), None, _ANSWER_TOKENS)
        answer = answer_prompt(model, prompt, cancel=cancel)
        return answer.outcome(prompt, _scores(sample, answer.text), facts=_facts(sample))

    def _cells(
        self, length: int, text: HaystackText, maker: NeedleMaker, tokenizer: PromptTokenizer
    ) -> Iterator[NeedleSample]:
        """The cells of one length."""
        places = [(depth, trial) for depth in self.depths for trial in range(self.trials)]
        made = [
            maker.make(random.Random(f"{self.seed}/{self.needles}/{length}/{depth:g}/{trial}"))
            for depth, trial in places
        ]

        def cell(index: int, sentences: int) -> NeedleSample:
            (depth, trial), needles = places[index], made[index]
            apart = 100 / len(needles.sentences)
            depths = [depth, *((depth + apart * i) % 100 for i in range(1, len(needles.sentences)))]
            name = f"{length}-{depth:g}" + (f"-{trial}" if self.trials > 1 else "")
            borders = tuple(text.border(sentences, each) for each in depths)
            return NeedleSample(name, length, depth, trial, needles, borders, text, sentences)

        sizes = [sum(map(tokenizer.count_tokens, (*n.sentences, n.question))) for n in made]
        largest = max(range(len(made)), key=sizes.__getitem__)
        room = length - _ANSWER_TOKENS - _SLACK * len(made[largest].sentences)
        sentences = most_sentences(
            text, room, lambda count: self._prompt_tokens(cell(largest, count), tokenizer)
        )
        if not sentences:
            needed = self._prompt_tokens(cell(largest, 1), tokenizer) + length - room
            raise ConfigurationError(
                f"The length {length:,} has no room for a text: instructions, needles, question "
                f"and answer take {needed:,} tokens with one sentence. Raise --lengths."
            )
        return (cell(index, sentences) for index in range(len(made)))

    def _prompt_tokens(self, sample: NeedleSample, tokenizer: PromptTokenizer) -> int:
        if self.bare:
            return len(tokenizer.encode_messages(_bare(sample)).token_ids)
        packed = pack_context([sample.document])
        plan = plan_question(
            packed, tokenizer, sample.needles.question, answer_tokens=_ANSWER_TOKENS
        )
        return plan.prompt_tokens


def _bare(sample: NeedleSample) -> tuple[Message, ...]:
    text = "\n\n".join(sample.pages)
    return (
        Message("system", _BARE_SYSTEM),
        Message("user", f"{text}\n\n{sample.needles.question} {_BARE_ASKED}"),
    )


def _scores(sample: NeedleSample, text: str) -> dict[str, float]:
    hidden = " ".join(sample.needles.sentences[index] for index in sample.needles.wanted)
    return {
        "recall": keyword_recall(text, sample.needles.keywords),
        "rouge_l": rouge_l(text, hidden),
    }


def _facts(sample: NeedleSample) -> dict[str, Any]:
    placed = [round(sample.text.depth_of(b, sample.sentences), 2) for b in sample.borders]
    return {
        "length": sample.length,
        "depth": sample.depth,
        "trial": sample.trial,
        "placed": placed,
        "question": sample.needles.question,
        "answers": list(sample.needles.keywords),
        "haystack_repeats": sample.text.repeats(sample.sentences),
    }
