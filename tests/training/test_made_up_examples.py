"""Training examples: the same for the same number, and answers that stand in the documents."""

from __future__ import annotations

import random

import pytest

from pacellm_rag.context.prompts import NOT_ANSWERED
from training.contexts import Library, Row, Turn, draw_example
from training.made_up import made_up_facts


@pytest.fixture(scope="module")
def library() -> Library:
    library = Library()
    for article in range(6):
        rows = [
            Row(f"Article_{article}", f"Fact {article}.{n} is word{article}x{n}. " * 5,
                (Turn(f"What is fact {article}.{n}?", f"word{article}x{n}"),))
            for n in range(8)
        ]  # fmt: skip
        library.articles.append(rows)
    for kind in ("table", "report", "contract", "story", "hops"):
        library.rows[kind] = [Row("", f"{kind} | 17", (Turn(f"What is the {kind}?", "17"),))]
    library.haystack = ["Nothing is asked about this page. " * 20] * 5
    return library


@pytest.mark.parametrize("number", range(12))
def test_an_example_depends_on_seed_and_number_only(library: Library, number: int) -> None:
    one, two = (draw_example(library, 3, number, 600, 12) for _ in range(2))
    assert one == two
    assert one != draw_example(library, 4, number, 600, 12)


@pytest.mark.parametrize("number", range(12))
def test_answers_stand_in_the_documents_and_what_does_not_is_declined(
    library: Library, number: int
) -> None:
    example = draw_example(library, 0, number, 600, 12)
    text = "\n".join(page.text for document in example.documents for page in document.pages)
    turns = [turn for conversation in example.conversations for turn in conversation]
    assert 0 < len(turns) <= 12
    assert all(turn.answer == NOT_ANSWERED or turn.answer in text for turn in turns)


@pytest.mark.parametrize("seed", range(20))
def test_made_up_facts_hold_their_answers(seed: int) -> None:
    facts = made_up_facts(random.Random(seed))
    text = "\n".join((*facts.sentences, facts.page))
    assert facts.asked
    assert all(answer in text for _, answer in facts.asked)
    assert not {question for question, _ in facts.asked} & set(facts.absent)
