"""Cutting the middle out of a prompt that is too long, as LongBench and InfiniteBench do.

Both keep the first and the last half of the tokens that there is room for, since instructions
stand at the beginning and the question at the end:

    half = int(max_length / 2);  prompt = decode(ids[:half]) + decode(ids[-half:])

(THUDM/LongBench, `LongBench/pred.py`; OpenBMB/InfiniteBench, `src/eval_utils.py`; both MIT). Here
the text itself is cut where these tokens end and begin, which is the same wherever a tokenizer
gives back what it was given. Where it does not, nothing is lost at the seam: no blank, and no
character of which the cut would go through the bytes. Knows nothing of models or benchmarks.
"""

from __future__ import annotations

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import PromptTokenizer

__all__ = ["cut_middle"]


def cut_middle(tokenizer: PromptTokenizer, text: str, max_length: int) -> str:
    """The text, without its middle where it has more than some number of tokens.

    Args:
        tokenizer: the model's.
        text: a prompt, before any chat template.
        max_length: most tokens, a BOS that the tokenizer adds included as the benchmarks have it.
            Of an odd number one is left unused. The parts, tokenized again where they meet, may
            come to a token more or less.

    Raises:
        ConfigurationError: `max_length` is below 2.
    """
    if max_length < 2:
        raise ConfigurationError(
            f"A prompt can not be cut to {max_length} tokens; half of 2 or more is kept of both "
            "ends. Allow more tokens."
        )
    offsets = tokenizer.encode_text(text).offsets
    if len(offsets) <= max_length:
        return text
    half = max_length // 2
    end = max((stop for _, stop in offsets[:half]), default=0)
    start = next((begin for begin, stop in offsets[-half:] if stop > begin), len(text))
    return text[:end] + text[max(start, end) :]
