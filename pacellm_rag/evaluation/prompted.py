"""Samples that are one prompt each, and how a model answers them.

The benchmarks of one prompt and one answer (LongBench, InfiniteBench, needles) differ in prompts
and scores only; what they have in common is here: chat turns or bare text, a prompt too long loses
its middle, decoding is greedy. Knows no benchmark, and of the model the protocol only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.evaluation.truncation import cut_middle
from pacellm_rag.evaluation.types import Outcome
from pacellm_rag.protocols import (
    CancelSignal,
    EncodedPrompt,
    GenerationOptions,
    Message,
    PromptLayout,
    PromptTokenizer,
    TextModel,
)

__all__ = ["FittedPrompt", "PromptedAnswer", "PromptedSample", "answer_prompt", "fit_prompt"]


@dataclass(frozen=True)
class PromptedSample:
    """One prompt, as chat turns or as bare text.

    Attributes:
        id: unique within the suite.
        task: the part of the suite that it belongs to.
        messages: the turns, which get the model's chat template; None where `text` is given.
        text: the prompt as it is, without a template; None where `messages` are given.
        max_new_tokens: most tokens of the answer.
        stop: strings that end the answer.
        facts: whatever the suite needs to score it and tables are broken down by.
        max_length: most tokens of the longest turn, or of the text, before the template; None for
            as many as the model's window has room for.

    Raises:
        ConfigurationError: there is no prompt, or there are two.
    """

    id: str
    task: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise ConfigurationError(
                f"The sample {self.id!r} needs either messages or a text, and not both."
            )


@dataclass(frozen=True)
class FittedPrompt:
    """A sample's prompt as tokens, its middle cut out as far as needed.

    Attributes:
        encoded: what the model gets.
        tokens_left_out: tokens by which it is shorter than the whole prompt.
    """

    encoded: EncodedPrompt
    tokens_left_out: int


@dataclass(frozen=True)
class PromptedAnswer:
    """What a model said to a prompt.

    Attributes:
        text: its words, untouched.
        prompt_tokens: tokens of the prompt that it got.
        tokens_left_out: tokens cut out of it beforehand; 0 where nothing was.
        tokens_reused: of the prompt's tokens, those that had been read before.
        completion_tokens: tokens generated.
        seconds: from the request to the end of the answer.
    """

    text: str
    prompt_tokens: int
    tokens_left_out: int
    tokens_reused: int
    completion_tokens: int
    seconds: float

    def outcome(
        self,
        sample: PromptedSample,
        scores: Mapping[str, float],
        *,
        facts: Mapping[str, Any],
        text: str | None = None,
    ) -> Outcome:
        """The outcome of a sample, once it is scored.

        Args:
            sample: what was asked.
            scores: by metric.
            facts: to keep with it.
            text: the words as scored, where they are not the whole answer.
        """
        return Outcome(
            sample=sample.id,
            task=sample.task,
            text=self.text if text is None else text,
            scores=scores,
            prompt_tokens=self.prompt_tokens,
            tokens_left_out=self.tokens_left_out,
            tokens_reused=self.tokens_reused,
            completion_tokens=self.completion_tokens,
            seconds=self.seconds,
            facts=facts,
        )


def answer_prompt(
    model: TextModel, sample: PromptedSample, *, cancel: CancelSignal | None = None
) -> PromptedAnswer:
    """Puts a sample to a model, decoded greedily.

    Raises:
        ContextOverflowError: not even the ends of the prompt fit.
        CancelledError: `cancel` was set.
    """
    prompt = fit_prompt(model.tokenizer, sample, model.context_window)
    options = GenerationOptions(max_new_tokens=sample.max_new_tokens, stop=sample.stop)
    started = time.perf_counter()
    generation = model.stream(
        prompt.encoded.token_ids,
        options,
        layout=PromptLayout(prompt.encoded.message_starts),
        cancel=cancel,
    )
    try:
        text = "".join(generation)
    finally:
        generation.close()
    return PromptedAnswer(
        text=text,
        prompt_tokens=len(prompt.encoded.token_ids),
        tokens_left_out=prompt.tokens_left_out,
        tokens_reused=generation.tokens_reused,
        completion_tokens=generation.completion_tokens,
        seconds=time.perf_counter() - started,
    )


def fit_prompt(
    tokenizer: PromptTokenizer, sample: PromptedSample, context_window: int
) -> FittedPrompt:
    """A sample's prompt, cut so that it keeps to its `max_length` and fits the window.

    The middle of its longest turn goes. Where the rest, with the template and the room for the
    answer, is still too much for the window, more of it goes.

    Args:
        tokenizer: the model's.
        sample: what to ask.
        context_window: most tokens, prompt and answer together.

    Raises:
        ContextOverflowError: not even the ends of the prompt fit.
    """
    room = context_window - sample.max_new_tokens
    body = _body(sample)
    whole = _encode(tokenizer, sample, body)
    encoded, cut = whole, body
    if sample.max_length is not None:
        cut = cut_middle(tokenizer, body, sample.max_length)
        if cut != body:
            encoded = _encode(tokenizer, sample, cut)
    keep = len(tokenizer.encode_text(cut).token_ids) if len(encoded.token_ids) > room else 0
    while (excess := len(encoded.token_ids) - room) > 0:  # tokens merge anew where the parts meet
        keep -= excess
        if keep < 2:
            raise ContextOverflowError(
                f"The sample {sample.id!r} needs {sample.max_new_tokens:,} tokens for its answer "
                f"beside the prompt's ends and the chat template; {tokenizer.name} takes "
                f"{context_window:,} in all. Choose a model or a --context-window with more room.",
                needed_tokens=len(encoded.token_ids) + sample.max_new_tokens,
                available_tokens=context_window,
            )
        cut = cut_middle(tokenizer, body, keep)
        encoded = _encode(tokenizer, sample, cut)
    return FittedPrompt(encoded, max(len(whole.token_ids) - len(encoded.token_ids), 0))


def _longest(messages: tuple[Message, ...]) -> int:
    """Index of the turn with most to say."""
    return max(range(len(messages)), key=lambda index: len(messages[index].content))


def _body(sample: PromptedSample) -> str:
    """The text of which the middle may go."""
    if sample.messages:
        return sample.messages[_longest(sample.messages)].content
    return sample.text or ""


def _encode(tokenizer: PromptTokenizer, sample: PromptedSample, body: str) -> EncodedPrompt:
    """The prompt with `body` for its longest turn or its text."""
    if not sample.messages:
        return tokenizer.encode_text(body)
    turns = list(sample.messages)
    longest = _longest(sample.messages)
    turns[longest] = replace(turns[longest], content=body)
    return tokenizer.encode_messages(turns)
