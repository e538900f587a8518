from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.needle import NeedleSuite
from pacellm_rag.evaluation.needle_cells import NeedleSample, most_sentences
from pacellm_rag.evaluation.needles import KINDS
from pacellm_rag.evaluation.types import Group, Suite
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import PromptTokenizer
from pacellm_rag.testing import ScriptedModel, WordTokenizer, byte_tokenizer

TOKENIZER = WordTokenizer()
BYTES = ChatTokenizer(byte_tokenizer(), name="bytes", context_window=8192)


def cells(
    tokenizer: PromptTokenizer = TOKENIZER,
    lengths: tuple[int, ...] = (1024, 2048),
    depths: tuple[float, ...] = (0, 50, 100),
    **options: Any,
) -> list[NeedleSample]:
    groups = NeedleSuite(lengths, depths, **options).groups(tokenizer)
    assert all(len(group.samples) == 1 for group in groups)
    return [group.samples[0] for group in groups]


def prompt_tokens(cell: NeedleSample, tokenizer: PromptTokenizer) -> int:
    messages = build_messages(pack_context([cell.document]), cell.needles.question)
    return len(tokenizer.encode_messages(messages).token_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES], ids=["words", "bytes"])
@pytest.mark.parametrize("bare", [False, True])
def test_prompt_and_answer_have_the_length_asked_for(
    kind: str, tokenizer: PromptTokenizer, bare: bool
) -> None:
    lengths = (2048, 3001, 8192)
    for cell in cells(tokenizer, lengths, (0, 33.3, 100), needles=kind, bare=bare):
        if bare:
            suite = NeedleSuite((2048,), (0,), bare=True)
            used = suite._prompt_tokens(cell, tokenizer) + 96
        else:
            used = prompt_tokens(cell, tokenizer) + 96
        following = tokenizer.count_tokens(cell.text.sentences[cell.sentences])
        marker = tokenizer.count_tokens("[D1 p99]\n\n\n")
        made = len(cell.needles.sentences)
        shorter = (max(map(len, cell.needles.sentences)) + 30) * made if tokenizer is BYTES else 8
        assert used <= cell.length
        assert used > cell.length - following - marker - 4 * made - shorter


@pytest.mark.slow
def test_lengths_are_kept_with_the_tokenizer_of_the_default_model(
    real_cache_folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pacellm_rag.models.loading import load_tokenizer

    monkeypatch.delenv("PACELLM_RAG_CACHE")
    if real_cache_folder is not None:
        monkeypatch.setenv("PACELLM_RAG_CACHE", real_cache_folder)
    tokenizer = load_tokenizer()
    for kind in KINDS:
        for cell in cells(tokenizer, (1024, 8192), (0, 50, 100), needles=kind):
            assert cell.length - 100 < prompt_tokens(cell, tokenizer) + 96 <= cell.length


def test_every_cell_of_a_length_has_the_same_text_with_needles_elsewhere() -> None:
    for length in (1024, 4096):
        made = cells(lengths=(length,), depths=(0, 25, 100), trials=2)
        assert len(made) == 6
        bare = [[p.replace(c.needles.sentences[0], "").split() for p in c.pages] for c in made]
        assert all(pages == bare[0] for pages in bare)
        assert len(bare[0]) == (1 if length == 1024 else 4)
        assert len({cell.needles for cell in made}) == 6


def test_needles_stand_between_sentences_nearest_to_their_depth() -> None:
    made = cells(lengths=(4096,), depths=(0, 12.5, 50, 100))
    for cell in made:
        text = "\n\n".join(cell.pages)
        needle = cell.needles.sentences[0]
        before, after = text.split(needle)
        assert before.rstrip()[-1:] in ("", ".", ":", "?", "!", '"', ")", "”")
        assert after == "" or after[0] in " \n"
        share = 100 * TOKENIZER.count_tokens(before) / TOKENIZER.count_tokens(before + after)
        assert share == pytest.approx(cell.depth, abs=2)
    assert made[0].pages[0].startswith(made[0].needles.sentences[0])
    assert made[-1].pages[-1].endswith(made[-1].needles.sentences[0])


def test_other_needles_lie_at_other_depths_and_the_first_at_its_own() -> None:
    for kind in ("multikey", "multivalue"):
        for cell in cells(lengths=(4096,), depths=(0, 60, 100), needles=kind):
            placed = [cell.text.depth_of(border, cell.sentences) for border in cell.borders]
            wanted = [cell.depth, *((cell.depth + 25 * i) % 100 for i in (1, 2, 3))]
            assert placed == pytest.approx(wanted, abs=2)
            assert all(any(s in page for page in cell.pages) for s in cell.needles.sentences)


def test_needles_at_the_same_border_are_both_there(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One sentence only is here, with some more words in it. " * 2)
    (cell,) = cells(lengths=(430,), depths=(100,), needles="multivalue", haystack=path)
    assert len(set(cell.borders)) < 4
    assert all(sentence in "".join(cell.pages) for sentence in cell.needles.sentences)


def test_cells_are_the_same_for_the_same_seed_and_never_share_a_needle() -> None:
    assert cells() == cells()
    one, two = cells(seed=0), cells(seed=1)
    assert {c.needles.question for c in one}.isdisjoint(c.needles.question for c in two)
    assert len({c.needles for c in one}) == len(one)
    assert [cell.id for cell in one] == ["1024-0", "1024-50", "1024-100", "2048-0", "2048-50",
                                         "2048-100"]  # fmt: skip
    again = cells(lengths=(1024,), depths=(2.5,), trials=2)
    assert [cell.id for cell in again] == ["1024-2.5-0", "1024-2.5-1"]


def test_lengths_beyond_the_window_or_without_room_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"9,000.*8,192.*--context-window"):
        NeedleSuite((1024, 9000), (0,)).groups(TOKENIZER)
    with pytest.raises(ConfigurationError, match=r"length 100 has no room.*Raise --lengths"):
        NeedleSuite((100,), (0,)).groups(TOKENIZER)
    assert NeedleSuite((8192,), (0,)).groups(TOKENIZER)


@pytest.mark.parametrize(
    "wrong",
    [{"lengths": ()}, {"depths": ()}, {"trials": 0}, {"needles": "two"},
     {"extra_readings": ("best",)}, {"bare": True, "extra_readings": ("bm25:4",)}],
)  # fmt: skip
def test_values_that_can_not_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        NeedleSuite(**{"lengths": (1024,), "depths": (0,), **wrong})


def test_settings_tell_apart_all_that_changes_the_cells(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Some text.")
    base: dict[str, Any] = {"lengths": (1024,), "depths": (0,)}
    settings = NeedleSuite(**base).settings
    assert json.loads(json.dumps(settings)) == settings
    changes: list[dict[str, Any]] = [
        {"lengths": (1025,)}, {"depths": (1,)}, {"needles": "multikey"}, {"haystack": path},
        {"trials": 2}, {"bare": True}, {"seed": 1},
    ]  # fmt: skip
    assert all(NeedleSuite(**{**base, **change}).settings != settings for change in changes)


def answered(suite: Suite[NeedleSample], text: str, **options: Any) -> Any:
    (group,) = suite.groups(TOKENIZER)
    model = ScriptedModel([text])
    (outcome,) = suite.answer(model, group, **options)
    return group.samples[0], outcome, model


def test_answers_are_scored_by_keywords_by_rouge_and_by_the_page_cited() -> None:
    suite = NeedleSuite((4096,), (60,))
    cell, silent, model = answered(suite, "I do not know.")
    assert silent.scores["recall"] == 0
    assert silent.prompt_tokens == prompt_tokens(cell, TOKENIZER)
    assert len(model.prompts) == 1
    (page,) = cell.evidence
    assert page == 3
    _, outcome, _ = answered(suite, f"{cell.needles.sentences[0]} [D1 p{page}]")
    assert outcome.scores["recall"] == 1
    assert outcome.scores["rouge_l"] == pytest.approx(1, abs=0.01)
    assert outcome.scores["citation"] == 1
    assert (outcome.task, outcome.facts["length"], outcome.facts["depth"]) == ("single", 4096, 60)
    assert outcome.facts["placed"] == [pytest.approx(60, abs=2)]
    assert outcome.facts["haystack_repeats"] == 0
    json.dumps(dict(outcome.facts), allow_nan=False)
    _, part, _ = answered(suite, f"It is {cell.needles.keywords[1].upper()}.")
    assert part.scores["recall"] == pytest.approx(1 / 3)


def test_other_readings_get_a_part_of_the_text() -> None:
    suite = NeedleSuite((4096,), (10,), extra_readings=("bm25:2", "window:500"))
    assert suite.readings == ("whole", "bm25:2", "window:500")
    cell, found, model = answered(suite, "x", reading="bm25:2")
    needle = TOKENIZER.encode_text(cell.needles.keywords[2]).token_ids
    assert needle[0] in model.prompts[0]
    assert found.prompt_tokens < 1200
    assert found.tokens_left_out == 0
    _, cut, model = answered(suite, "x", reading="window:500")
    assert needle[0] not in model.prompts[0]
    assert cut.prompt_tokens < 700
    assert cut.tokens_left_out > 3000


def test_the_bare_prompt_is_that_of_the_original_test() -> None:
    suite = NeedleSuite((2048,), (50,), bare=True)
    cell, outcome, model = answered(suite, "x")
    (prompt,) = model.prompts
    begins = TOKENIZER.encode_text(
        "<system>\nYou are a helpful AI bot that answers questions for a user. Keep your response "
        "short and direct\n<user>\n"
    ).token_ids
    ends = TOKENIZER.encode_text(
        f"\n\n{cell.needles.question} Don't give information outside the document or repeat your "
        "findings\n<assistant>\n"
    ).token_ids
    assert prompt[: len(begins)] == begins
    assert prompt[-len(ends) :] == ends
    assert outcome.tokens_left_out == 0
    assert "citation" not in outcome.scores
    assert suite.readings == ("whole",)


def test_the_search_for_the_length_renders_few_prompts_and_finds_the_most() -> None:
    text = cells(lengths=(8192,), depths=(0,))[0].text
    asked: list[int] = []

    def tokens_of(count: int) -> int:
        asked.append(count)
        return 70 + text.token_ends[count - 1] + 9 * (count // 20)

    for room in (300, 2000, 7000):
        asked.clear()
        found = most_sentences(text, room, tokens_of)
        assert len(asked) <= 8
        assert tokens_of(found) <= room < tokens_of(found + 1)
    assert most_sentences(text, 50, tokens_of) == 0
    assert most_sentences(text, 10**6, tokens_of) == len(text.sentences)


def test_a_group_is_one_cell() -> None:
    groups: list[Group[NeedleSample]] = list(NeedleSuite((1024,), (0, 50)).groups(TOKENIZER))
    assert [(group.id, len(group.samples)) for group in groups] == [("1024-0", 1), ("1024-50", 1)]
