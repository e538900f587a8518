"""How many tokens a question over some documents takes, before any model work.

Counted on the prompt itself, as the model's tokenizer and chat template make it, so the figures
are exact. Needs a tokenizer, no weights. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pacellm_rag.context.packing import PackedContext
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.errors import ContextOverflowError, InsufficientMemoryError
from pacellm_rag.protocols import EncodedPrompt, Message, PromptTokenizer, ReadingCost

__all__ = ["DocumentTokens", "Plan", "plan_question"]


@dataclass(frozen=True)
class DocumentTokens:
    """Tokens that one document takes in the prompt, its heading and page markers included."""

    title: str
    pages: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What a question needs.

    Attributes:
        documents: tokens per document, in the order of the prompt.
        other_tokens: instructions, chat template, earlier turns and the question.
        answer_tokens: most tokens kept for the answer (`max_new_tokens`).
        context_window: what the model takes, prompt and answer together.
        model: the model's name.
        cost: memory and time, where a model is loaded.
    """

    documents: tuple[DocumentTokens, ...]
    other_tokens: int
    answer_tokens: int
    context_window: int
    model: str
    cost: ReadingCost | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the whole prompt."""
        return sum(document.tokens for document in self.documents) + self.other_tokens

    @property
    def needed_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def left_tokens(self) -> int:
        """Tokens of the window that stay free; negative when it does not fit."""
        return self.context_window - self.needed_tokens

    @property
    def fits(self) -> bool:
        """Whether prompt and answer fit the window."""
        return self.left_tokens >= 0

    def check(self) -> None:
        """Refuses a question that does not fit.

        Raises:
            ContextOverflowError: with the tokens of each document and what is too much.
            InsufficientMemoryError: with the bytes that it takes and those that are free.
        """
        if self.fits:
            self._check_memory()
            return
        lines = [
            f"{self.model} takes {self.context_window:,} tokens; this question needs "
            f"{self.needed_tokens:,}, {-self.left_tokens:,} too many:"
        ]
        lines += [
            f"  {document.tokens:>9,}  {document.title} ({document.pages} pages)"
            for document in self.documents
        ]
        lines += [
            f"  {self.other_tokens:>9,}  instructions, conversation and question",
            f"  {self.answer_tokens:>9,}  kept for the answer",
            "Leave out documents or pages, keep fewer tokens for the answer, take a model with a "
            "larger window, or stretch this one's (context_window, --context-window).",
        ]
        raise ContextOverflowError(
            "\n".join(lines),
            needed_tokens=self.needed_tokens,
            available_tokens=self.context_window,
            document_tokens={document.title: document.tokens for document in self.documents},
        )

    def _check_memory(self) -> None:
        cost = self.cost
        if cost is None or cost.fits or cost.free_bytes is None:
            return
        raise InsufficientMemoryError(
            f"Reading {cost.tokens_to_read:,} tokens with {self.model} takes "
            f"{_gib(cost.needed_bytes)} for keys and values, and {_gib(cost.free_bytes)} are free. "
            "Leave out documents or pages, keep fewer tokens for the answer, close other readers, "
            'hold them in half the bytes (kv_cache="fp8"), or take a smaller model.',
            needed_bytes=cost.needed_bytes,
            free_bytes=cost.free_bytes,
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def plan_question(
    packed: PackedContext,
    tokenizer: PromptTokenizer,
    question: str,
    *,
    answer_tokens: int,
    history: Sequence[Message] = (),
    cost: Callable[[EncodedPrompt], ReadingCost] | None = None,
) -> Plan:
    """Counts a question over packed documents.

    Args:
        packed: the documents.
        tokenizer: the model's.
        question: the question; "" counts what the documents alone need.
        answer_tokens: tokens to keep for the answer.
        history: earlier turns.
        cost: what a prompt takes of the machine.
    """
    prompt = tokenizer.encode_messages(build_messages(packed, question, history))
    base = locate_context(prompt, packed)
    last = base + len(packed.text.rstrip())
    spans = [(start + base, min(end + base, last)) for start, end in packed.document_spans]
    documents = tuple(
        DocumentTokens(document.title, len(document.pages), end - start)
        for document, (start, end) in zip(
            packed.documents, token_ranges(prompt.offsets, spans), strict=True
        )
    )
    total = sum(document.tokens for document in documents)
    return Plan(
        documents,
        len(prompt.token_ids) - total,
        answer_tokens,
        tokenizer.context_window,
        tokenizer.name,
        None if cost is None else cost(prompt),
    )
