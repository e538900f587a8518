"""Questions over documents as samples: how a group of them is asked, and how answers are scored.

An answerable question is scored by its accepted answers and by the page it is cited to; one that
the documents do not answer only by whether the model says so. Knows no benchmark and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import plan_question
from pacellm_rag.documents.types import Document
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.document_answers import DocumentAnswer, answer_questions, declines
from pacellm_rag.evaluation.metrics import contains_answer, exact_match, token_f1
from pacellm_rag.evaluation.retrieval import parse_reading
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

__all__ = [
    "ANSWER_TOKENS",
    "METRIC",
    "DocumentQuestion",
    "ask_group",
    "check_fits",
    "checked_readings",
    "score_answer",
]

METRIC = "f1"
ANSWER_TOKENS = 64
"""Most tokens of an answer: about 45 words, where the prompt asks for a few."""


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about documents.

    Attributes:
        id: unique within the suite.
        task: the suite's name.
        question: what to ask.
        answers: accepted ones; none where the documents do not hold one.
        documents: what it is about; the same object for all questions of a group.
        evidence: (document index, page number) of the pages that hold the answer; empty where
            that is not known.
        facts: kept with the outcome.
    """

    id: str
    task: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = field(repr=False)
    evidence: tuple[tuple[int, int], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def checked_readings(names: Sequence[str]) -> tuple[str, ...]:
    """The ways of reading that a suite is to know, the whole one first, each once.

    Raises:
        ConfigurationError: there is none of such a name.
    """
    return tuple(dict.fromkeys([WHOLE, *(parse_reading(name).name for name in names)]))


def check_fits(
    groups: Sequence[Group[DocumentQuestion]],
    tokenizer: PromptTokenizer,
    answer_tokens: int,
    advice: str,
) -> None:
    """Refuses documents that do not fit the window with the longest question about them.

    Args:
        groups: what is to be asked.
        tokenizer: the model's.
        answer_tokens: most tokens of an answer.
        advice: what to do about it, besides another window.

    Raises:
        ConfigurationError: some do not.
    """
    for group in groups:
        longest = max(group.samples, key=lambda s: tokenizer.count_tokens(s.question))
        plan = plan_question(
            pack_context(longest.documents),
            tokenizer,
            longest.question,
            answer_tokens=answer_tokens,
        )
        if not plan.fits:
            raise ConfigurationError(
                f"The group {group.id} needs {plan.needed_tokens:,} tokens, its answers included; "
                f"{tokenizer.name} takes {tokenizer.context_window:,}. {advice}, or stretch the "
                "window with --context-window."
            )


def ask_group(
    model: TextModel,
    group: Group[DocumentQuestion],
    *,
    reading: str,
    answer_tokens: int,
    cancel: CancelSignal | None,
) -> Iterator[Outcome]:
    """Puts a group's questions to a model; arguments and errors as `answer_questions`."""
    answers = answer_questions(
        model,
        group.samples[0].documents,
        [sample.question for sample in group.samples],
        reading=reading,
        max_new_tokens=answer_tokens,
        cancel=cancel,
    )
    for sample, answer in zip(group.samples, answers, strict=True):
        yield _outcome(sample, answer)


def score_answer(
    answers: Sequence[str],
    evidence: Sequence[tuple[int, int]],
    text: str,
    cited: Sequence[tuple[int, int]],
) -> dict[str, float]:
    """The scores of one answer; which these are depends on whether there is an accepted one.

    `f1`, `em` and `contains` compare the words (`metrics`). `citation` is 1 where the first page
    cited holds the answer, over all answerable questions; `citation_if_right` the same over those
    whose answer is in the words. `declined` is 1 where the model says that the documents do not
    say, though they do; `answered_when_unanswerable` where it does not, though they do not. Of
    these two less is better.

    Args:
        answers: accepted ones.
        evidence: (document, page) of the pages that hold the answer; empty where not known.
        text: the model's words, without markers.
        cited: (document, page) of its citations, the most important first.
    """
    refused = float(declines(text))
    if not answers:
        return {"answered_when_unanswerable": 1 - refused}
    scores = {
        "f1": token_f1(text, answers),
        "em": exact_match(text, answers),
        "contains": contains_answer(text, answers),
        "declined": refused,
    }
    if evidence:
        scores["citation"] = float(bool(cited) and cited[0] in evidence)
        if scores["contains"]:
            scores["citation_if_right"] = scores["citation"]
    return scores


def _outcome(sample: DocumentQuestion, answer: DocumentAnswer) -> Outcome:
    cited = [(c.document, c.page) for c in answer.citations]
    facts = {
        "kind": "answerable" if sample.answers else "unanswerable",
        **sample.facts,
        "position": answer.position,
        "question": sample.question,
        "answers": list(sample.answers),
        "evidence": [list(place) for place in sample.evidence],
        "citations": [
            {"document": c.document, "title": c.title, "page": c.page, "verified": c.verified}
            for c in answer.citations
        ],
        "finish_reason": answer.finish_reason,
    }
    return Outcome(
        sample=sample.id,
        task=sample.task,
        text=answer.text,
        scores=score_answer(sample.answers, sample.evidence, answer.text, cited),
        prompt_tokens=answer.prompt_tokens,
        tokens_left_out=answer.tokens_left_out,
        tokens_reused=answer.tokens_reused,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds,
        facts=facts,
    )
