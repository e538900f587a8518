from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import plan_question
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ContextOverflowError, ModelError
from pacellm_rag.protocols import EncodedPrompt, Message
from pacellm_rag.testing import WordTokenizer

DOCUMENTS = [
    Document("a", "Report", (Page(1, "i", "One two three."), Page(2, "1", "Four five."))),
    Document("b", "Contract", (Page(1, "1", "Six seven eight nine ten."),)),
]


def test_counts_are_exactly_those_of_the_prompt() -> None:
    packed, tokenizer = pack_context(DOCUMENTS), WordTokenizer()
    plan = plan_question(packed, tokenizer, "How many?", answer_tokens=50)
    prompt = tokenizer.encode_messages(build_messages(packed, "How many?"))
    assert plan.prompt_tokens == len(prompt.token_ids)
    assert plan.needed_tokens == plan.prompt_tokens + 50
    (first, second), text = packed.document_spans, packed.text.rstrip()
    assert [d.tokens for d in plan.documents] == [
        tokenizer.count_tokens(text[slice(*first)]),
        tokenizer.count_tokens(text[slice(*second)]),
    ]
    assert [(d.title, d.pages) for d in plan.documents] == [("Report", 2), ("Contract", 1)]


def test_a_longer_conversation_needs_more() -> None:
    packed, tokenizer = pack_context(DOCUMENTS), WordTokenizer()
    history = [Message("user", "a b c"), Message("assistant", "d e f")]
    short = plan_question(packed, tokenizer, "x", answer_tokens=5)
    long = plan_question(packed, tokenizer, "x", answer_tokens=5, history=history)
    assert long.other_tokens > short.other_tokens
    assert long.documents == short.documents


def test_the_window_is_met_to_the_token() -> None:
    packed = pack_context(DOCUMENTS)
    needed = plan_question(packed, WordTokenizer(), "x", answer_tokens=9).needed_tokens
    plan_question(packed, WordTokenizer(needed), "x", answer_tokens=9).check()
    with pytest.raises(ContextOverflowError):
        plan_question(packed, WordTokenizer(needed - 1), "x", answer_tokens=9).check()


def test_an_overflow_names_every_document_the_window_and_what_to_do() -> None:
    plan = plan_question(pack_context(DOCUMENTS), WordTokenizer(100), "x", answer_tokens=40)
    with pytest.raises(ContextOverflowError) as caught:
        plan.check()
    message = str(caught.value)
    assert "takes 100 tokens" in message
    assert f"{plan.needed_tokens - 100} too many" in message
    assert "Report (2 pages)" in message
    assert "Leave out documents" in message
    assert caught.value.document_tokens == {d.title: d.tokens for d in plan.documents}
    assert caught.value.needed_tokens == plan.needed_tokens
    assert caught.value.available_tokens == 100


def test_a_template_that_changes_the_text_is_an_error() -> None:
    with pytest.raises(ModelError, match="template"):
        locate_context(EncodedPrompt("SHOUTED", (1,), ((0, 7),)), pack_context(DOCUMENTS))


@given(
    widths=st.lists(st.integers(0, 3), max_size=30),
    borders=st.lists(st.integers(0, 60), max_size=6),
)
def test_neighbouring_spans_share_no_token_and_lose_none(
    widths: list[int], borders: list[int]
) -> None:
    offsets, at = [], 0
    for width in widths:  # width 0: a special token, which has no characters
        offsets.append((at, at + width) if width else (0, 0))
        at += width
    places = sorted({0, *(min(b, at) for b in borders), at})
    spans = list(itertools.pairwise(places))
    ranges = token_ranges(offsets, spans)
    owned = [i for start, end in ranges for i in range(start, end)]
    assert len(owned) == len(set(owned))
    real = {i for i, (a, b) in enumerate(offsets) if b > a}
    assert real <= set(owned)
    for (start, end), (first, last) in zip(spans, ranges, strict=True):
        assert all(start <= offsets[i][0] < end for i in range(first, last) if i in real)
