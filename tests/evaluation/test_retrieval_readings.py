from __future__ import annotations

import pytest

from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.retrieval import ChunkIndex, last_tokens, parse_reading, whole
from pacellm_rag.testing import WordTokenizer, byte_tokenizer

TOKENIZER = WordTokenizer()


def document(title: str, *texts: str) -> Document:
    return Document(title, title, tuple(Page(i, str(i), t) for i, t in enumerate(texts, 1)))


def sentences(topic: str, count: int) -> str:
    return " ".join(f"The {topic} has number {i} here today." for i in range(count))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("whole", ("whole", "whole", 0)),
        ("bm25:4", ("bm25:4", "bm25", 4)),
        (" window:01024 ", ("window:1024", "window", 1024)),
    ],
)
def test_readings_are_known_by_their_names(name: str, read: tuple[str, str, int]) -> None:
    reading = parse_reading(name)
    assert (reading.name, reading.kind, reading.amount) == read


@pytest.mark.parametrize("name", ["", "bm25", "bm25:", "bm25:0", "bm25:-1", "bm25:x", "bm25:²",
                                  "window:1.5", "whole:2", "top:4"])  # fmt: skip
def test_other_names_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ConfigurationError, match="bm25:N"):
        parse_reading(name)


def test_the_chunks_that_fit_the_question_are_given_with_their_page_numbers() -> None:
    documents = (
        document("Trees", sentences("oak", 30), sentences("elm", 30), sentences("ash", 30)),
        document("Birds", sentences("owl", 30), sentences("jay", 30)),
    )
    part = ChunkIndex(documents).best("How many has the jay and the elm?", 2)
    assert part.origins == (0, 1)
    assert [d.title for d in part.documents] == ["Trees", "Birds"]
    assert [[page.number for page in d.pages] for d in part.documents] == [[2], [2]]
    assert part.documents[1].pages[0].text == sentences("jay", 30)
    assert part.tokens_left_out == 0


def test_documents_without_a_chosen_chunk_are_left_out_and_titles_are_searched() -> None:
    documents = (document("Oslo", "It lies at a fjord."), document("Rome", "It lies at a river."))
    part = ChunkIndex(documents).best("Where does Rome lie?", 1)
    assert part.origins == (1,)
    assert [d.title for d in part.documents] == ["Rome"]


def test_chunks_end_with_sentences_and_cross_no_page() -> None:
    text = sentences("oak", 90)  # 630 words: chunks of 203, 203, and a rest of 224
    index = ChunkIndex([document("a", text, "A short page.")])
    chunks = [index._text(chunk) for chunk in index._chunks]
    assert [len(chunk.split()) for chunk in chunks] == [203, 203, 203 + 21, 3]
    assert all(chunk.endswith(".") for chunk in chunks)
    assert " ".join(chunks[:3]) == text


def test_chunks_stay_in_the_order_of_the_text_and_gaps_are_shown() -> None:
    names = ("Anna", "Bert", "Carl")
    parts = [f"{sentences('oak', 28)} {name} is what it is called." for name in names]
    page = " ".join(parts)
    index = ChunkIndex([document("a", page)])
    assert len(index._chunks) == 3
    apart = index.best("Carl Anna", 2).documents[0].pages[0].text
    assert apart == f"{parts[0]}\n\n{parts[2]}"
    together = index.best("Bert Anna", 2).documents[0].pages[0].text
    assert together == f"{parts[0]} {parts[1]}"


def test_of_equal_chunks_the_first_is_taken_and_more_than_there_are_is_everything() -> None:
    documents = (document("x", "Same words."), document("x", "Same words."))
    assert ChunkIndex(documents).best("nothing shared", 1).origins == (0,)
    assert ChunkIndex(documents).best("words", 9).documents == documents


def test_documents_without_text_are_given_as_they_are() -> None:
    documents = (document("empty", ""),)
    assert ChunkIndex(documents).best("What?", 4).documents == documents


def test_a_window_keeps_the_last_tokens() -> None:
    documents = (document("One", "Alpha beta.", "Gamma delta."), document("Two", "Last words."))
    everything = pack_context(documents).text.rstrip()
    total = TOKENIZER.count_tokens(everything)
    part = last_tokens(documents, TOKENIZER, 4)
    assert [d.title for d in part.documents] == ["Two"]
    assert part.documents[0].pages[0].text == "Last words."
    assert part.origins == (1,)
    assert part.tokens_left_out == total - 4
    cut = last_tokens(documents, TOKENIZER, 3)
    assert cut.documents[0].pages[0].text == " words."
    at = TOKENIZER.count_tokens(everything[everything.index("delta") :])
    two = last_tokens(documents, TOKENIZER, at)
    assert [[p.number for p in d.pages] for d in two.documents] == [[2], [1]]
    assert two.documents[0].pages[0].text == "delta."


def test_a_window_with_room_for_all_leaves_nothing_out() -> None:
    documents = (document("One", "Alpha beta."),)
    total = TOKENIZER.count_tokens(pack_context(documents).text.rstrip())
    assert last_tokens(documents, TOKENIZER, total) == whole(documents)
    assert last_tokens(documents, TOKENIZER, total - 1) != whole(documents)


def test_a_window_that_ends_behind_all_text_leaves_the_last_page_empty() -> None:
    documents = (document("One", "Alpha."), document("Two", ""))
    part = last_tokens(documents, TOKENIZER, 1)
    assert part.origins == (1,)
    assert part.documents[0].pages[0].text == ""


def test_markers_within_a_page_stay_disarmed() -> None:
    part = last_tokens((document("One", "See [D9 p9] for it. " * 20),), TOKENIZER, 30)
    assert "[D9" not in pack_context(part.documents).text


@pytest.mark.parametrize("tokens", [1, 2, 7, 50])
def test_a_window_cuts_between_tokens_that_are_bytes(tokens: int) -> None:
    from pacellm_rag.models.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(byte_tokenizer(), name="bytes", context_window=4096)
    text = "Ährenfeld – größe übung. " * 20
    part = last_tokens((document("One", text),), tokenizer, tokens)
    kept = part.documents[0].pages[0].text
    assert pack_context((document("One", text),)).text.rstrip().endswith(kept.rstrip())
    assert (
        abs(len(kept.rstrip().encode()) - tokens) <= 2
    )  # of a character that the cut goes through
