from __future__ import annotations

from pacellm_rag.context.lexical import BM25, words_of


def test_words_are_folded_and_common_ones_left_out() -> None:
    assert words_of("The Pumps of PLANT No. 7 cost 1,250.50 euros") == [
        "pump", "plant", "7", "cost", "1,250.50", "euro",
    ]  # fmt: skip


def test_the_text_with_the_rarer_word_scores_higher() -> None:
    index = BM25(["water pump", "water valve", "water pipe"])
    scores = index.scores(words_of("water valve"))
    assert scores.index(max(scores)) == 1
    assert scores[0] == scores[2] > 0


def test_no_shared_word_scores_nothing() -> None:
    assert BM25(["a b", ""]).scores(["zebra"]) == [0.0, 0.0]
    assert BM25([]).scores(["zebra"]) == []


def test_a_second_mention_adds_less_than_the_first() -> None:
    once, twice = BM25(["valve x y", "valve valve y"]).scores(["valve"])
    assert once < twice < 2 * once
