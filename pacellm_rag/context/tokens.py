"""From characters of the packed documents to tokens of the prompt they stand in.

Knows the offsets that a tokenizer reports; knows nothing of tokenizers themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from pacellm_rag.context.packing import PackedContext
from pacellm_rag.errors import ModelError
from pacellm_rag.protocols import EncodedPrompt

__all__ = ["locate_context", "token_ranges"]


def locate_context(prompt: EncodedPrompt, packed: PackedContext) -> int:
    """Where in the prompt's text the packed text begins (templates may trim its end).

    Raises:
        ModelError: the chat template changed the documents' text.
    """
    at = prompt.text.find(packed.text.strip())
    if at < 0:
        raise ModelError(
            "The model's chat template changes the text it is given, so pages can not be told "
            "apart in its prompt. Use a model whose template keeps the turns as they are."
        )
    return at


def token_ranges(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """For each span of characters the [start, end) tokens that begin in it.

    Every token belongs to the span in which its first character lies, so neighbouring spans share
    no token.

    Args:
        offsets: for each token its [start, end) characters, in order; (0, 0) for tokens without
            characters, which belong to nothing.
        spans: [start, end) characters, in any order.
    """
    # tokens without characters sit at (0, 0), also between others: give them their neighbour's end
    starts: list[int] = []
    last = 0
    for start, end in offsets:
        if end > start:
            last = start
        starts.append(last)
    first_real = next((i for i, (start, end) in enumerate(offsets) if end > start), len(offsets))
    return [
        (
            max(bisect_left(starts, start), first_real if start == 0 else 0),
            bisect_left(starts, end),
        )
        for start, end in spans
    ]
