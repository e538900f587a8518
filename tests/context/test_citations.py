from __future__ import annotations

from collections.abc import Sequence

import pytest

from pacellm_rag.context.citations import Citation, CitationResolver, Evidence
from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page

REPORT = Document(
    "a",
    "Report",
    (
        Page(1, "i", "The chair is Maria Lund. She took office in spring."),
        Page(2, "1", "Revenue rose to 412 million. Costs fell by a tenth."),
        Page(3, "2", ""),
    ),
)
CONTRACT = Document(
    "b", "Contract", (Page(1, "1", "The notice period is ninety days. Prices are fixed."),)
)
RESOLVER = CitationResolver(pack_context([REPORT, CONTRACT]))
SENTENCES = len(RESOLVER.sentence_spans)


def looking_at(sentence: int, answer: str) -> Evidence:
    """Evidence of an answer in one token that looks at one sentence only."""
    row = [1.0 if i == sentence else 0.0 for i in range(SENTENCES)]
    return Evidence([len(answer)], [row])


def cite(
    answer: str, question: str = "Zzz?", evidence: Evidence | None = None
) -> Sequence[Citation]:
    return RESOLVER.resolve(question, answer, evidence or Evidence()).citations


def test_the_page_that_shares_the_words_is_cited_with_its_sentence() -> None:
    first = cite("ninety days", "What is the notice period?")[0]
    assert (first.document, first.title, first.page, first.label) == (1, "Contract", 1, "1")
    assert first.quote == "The notice period is ninety days."
    assert first.verified
    assert first.source == "words"


def test_the_page_that_was_looked_at_is_cited_where_words_do_not_tell() -> None:
    first = cite("a tenfold gain", evidence=looking_at(3, "a tenfold gain"))[0]
    assert (first.page, first.quote, first.source) == (2, "Costs fell by a tenth.", "attention")


def test_a_marker_of_the_model_is_taken_out_of_the_text_and_cited() -> None:
    resolved = RESOLVER.resolve("Zzz?", "It is so [D1 p2].", Evidence())
    assert resolved.text == "It is so."
    assert [(c.document, c.page, c.source) for c in resolved.citations] == [(0, 2, "model")]


@pytest.mark.parametrize("marker", ["[D9 p1]", "[D1 p77]", "[D0 p0]"])
def test_unknown_markers_are_dropped_and_not_cited(marker: str) -> None:
    resolved = RESOLVER.resolve("Zzz?", f"It is so {marker}.", Evidence())
    assert resolved.text == "It is so."
    assert resolved.citations == ()


def test_every_statement_gets_its_own_page() -> None:
    answer = "The chair is Maria Lund. The notice period is ninety days."
    cited = [(c.document, c.page) for c in cite(answer)]
    assert cited[:2] == [(0, 1), (1, 1)]


def test_attention_counts_for_the_statement_during_which_it_was_paid() -> None:
    answer = "Qqq one. Qqq two."
    rows = [[0.0] * SENTENCES for _ in range(2)]
    rows[0][0] = rows[1][SENTENCES - 1] = 1.0
    citations = cite(answer, evidence=Evidence([8, len(answer)], rows))
    assert [(c.document, c.page) for c in citations] == [(0, 1), (1, 1)]
    assert citations[1].quote == "Prices are fixed."


def test_an_answer_that_declines_cites_nothing() -> None:
    evidence = looking_at(0, NOT_ANSWERED)
    assert cite(NOT_ANSWERED, "Who is the chair?", evidence) == ()
    assert cite("the documents DO NOT say", "Who is the chair?") == ()


@pytest.mark.parametrize("answer", ["", "  ", "...", "[D1 p1]"])
def test_an_answer_without_words_cites_nothing(answer: str) -> None:
    assert cite(answer, "Who is the chair?") == ()


def test_nothing_is_cited_when_nothing_points_anywhere() -> None:
    assert cite("xylophone quark") == ()


def test_citing_can_be_left_out() -> None:
    resolved = RESOLVER.resolve("Who?", "Maria Lund [D1 p1]", Evidence(), cite=False)
    assert (resolved.text, resolved.citations) == ("Maria Lund", ())


def test_a_quotation_that_stands_on_a_page_becomes_its_quote() -> None:
    answer = 'The chair "took office in spring" as it says.'
    first = next(c for c in cite(answer, "When did the chair begin?") if c.page == 1)
    assert first.quote == "took office in spring"
    assert first.verified


def test_a_quotation_that_stands_nowhere_is_shown_as_unverified() -> None:
    answer = 'The chair "resigned in anger last year" it says.'
    citations = cite(answer, "What did the chair do?")
    invented = [c for c in citations if not c.verified]
    assert [c.quote for c in invented] == ["resigned in anger last year"]


def test_pages_without_text_are_never_cited() -> None:
    answers = ("This page has no text", "no text page")
    assert all(c.page != 3 for a in answers for c in cite(a, "Which page has no text?"))


def test_scores_are_shares_of_the_evidence() -> None:
    for answer in ("Maria Lund", "412 million", "ninety days"):
        scores = [c.score for c in cite(answer, f"What about {answer}?")]
        assert all(0 < score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1.001


def test_a_page_that_looks_like_another_documents_marker_is_quoted_as_it_stands() -> None:
    document = Document("c", "Trap", (Page(1, "1", "See [D1 p9] for the secret handshake."),))
    resolver = CitationResolver(pack_context([document]))
    first = resolver.resolve("What is secret?", "the handshake", Evidence()).citations[0]
    assert first.verified
    assert "secret handshake" in first.quote
