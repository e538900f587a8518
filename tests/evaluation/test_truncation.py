"""The middle goes, as in the official scripts: the first and the last half of the tokens stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.truncation import cut_middle
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.testing import WordTokenizer, byte_tokenizer

BYTES = ChatTokenizer(byte_tokenizer(), name="bytes", context_window=4096)
WORDS = WordTokenizer()


def with_bos() -> ChatTokenizer:
    """Bytes with a BOS in front, as Llama's tokenizer has it."""
    hf = byte_tokenizer()
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return ChatTokenizer(hf, name="bytes", context_window=4096)


BOS_BYTES = with_bos()


@pytest.mark.parametrize(
    ("tokenizer", "text", "max_length", "kept"),
    [
        (BYTES, "0123456789", 10, "0123456789"),
        (BYTES, "0123456789", 9, "01236789"),  # int(9 / 2) = 4 of both ends
        (BYTES, "0123456789", 2, "09"),
        (BYTES, "", 2, ""),
        (BOS_BYTES, "0123456789", 11, "0123456789"),
        (BOS_BYTES, "0123456789", 10, "012356789"),  # the BOS is one of the first five
        (BOS_BYTES, "0123456789", 9, "0126789"),
        (BOS_BYTES, "0123456789", 2, "9"),
        (BOS_BYTES, "", 2, ""),
    ],
)
def test_as_many_tokens_are_kept_as_the_scripts_keep(
    tokenizer: ChatTokenizer, text: str, max_length: int, kept: str
) -> None:
    assert cut_middle(tokenizer, text, max_length) == kept


def test_words_are_cut_as_decoding_the_two_halves_would() -> None:
    assert cut_middle(WORDS, "one two three four five", 4) == "one  five"


@pytest.mark.parametrize("tokenizer", [BYTES, BOS_BYTES])
@given(text=st.text(st.characters(max_codepoint=127), max_size=60), max_length=st.integers(2, 70))
def test_equals_the_official_rule_where_decoding_gives_back_what_was_encoded(
    tokenizer: ChatTokenizer, text: str, max_length: int
) -> None:
    ids = list(tokenizer.hf(text)["input_ids"])
    half = int(max_length / 2)
    official = text
    if len(ids) > max_length:
        official = tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
    assert cut_middle(tokenizer, text, max_length) == official


@given(st.text(max_size=40), st.integers(2, 50))
def test_never_breaks_a_character_and_keeps_both_ends(text: str, max_length: int) -> None:
    kept = cut_middle(BYTES, text, max_length)
    split = next((i for i in range(len(kept) + 1) if text.startswith(kept[:i])
                  and text.endswith(kept[i:])), None)  # fmt: skip
    assert split is not None
    assert kept == text or len(kept) < len(text)


def test_a_character_that_the_cut_goes_through_is_kept_once() -> None:
    # four bytes; both halves touch the one character
    assert cut_middle(BYTES, "\N{GRINNING FACE}", 2) == "\N{GRINNING FACE}"


def test_less_than_one_token_of_both_ends_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cut to 1 tokens"):
        cut_middle(BYTES, "text", 1)
