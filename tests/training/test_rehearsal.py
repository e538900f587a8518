"""Rehearsals: the model's own answers, written once and drawn by number."""

from __future__ import annotations

import json
from pathlib import Path

from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.about_documents import QUESTIONS_REQUEST
from training.contexts import Library, Row, Turn
from training.rehearsal import draw_rehearsal, draw_requests, lines_of, read_rehearsals


def a_library() -> Library:
    library = Library()
    library.articles = [
        [Row(f"Article_{n}", f"Fact {n}. " * 30, (Turn(f"What is {n}?", f"Fact {n}"),))] * 4
        for n in range(4)
    ]
    for kind in ("table", "report", "contract", "story", "hops"):
        library.rows[kind] = [Row("", f"{kind} | 17", (Turn(f"What is the {kind}?", "17"),))]
    return library


def test_they_are_what_the_model_says_and_come_back_from_the_file(tmp_path: Path) -> None:
    model, library, file = ScriptedModel(["Gladly."]), a_library(), tmp_path / "said.jsonl"
    for count in (3, 8):  # the second goes on after the first
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in lines_of(model, library, 0, count, file))
    read = read_rehearsals(file)
    assert [e.documents for e in read] == [draw_requests(library, 0, n).documents for n in range(8)]
    assert len({bool(example.documents) for example in read}) == 2
    turns = [turn for example in read for (turn,) in example.conversations]
    written = [turn.answer for turn in turns if turn.question == QUESTIONS_REQUEST]
    assert written
    assert all(line.endswith("?") for text in written for line in text.splitlines())
    others = {turn.answer for turn in turns if turn.question != QUESTIONS_REQUEST}
    assert others == {"Gladly."}
    assert not any(turn.asked for turn in turns)
    assert all(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def test_some_examples_are_rehearsals_and_always_the_same(tmp_path: Path) -> None:
    library = a_library()
    drawn = [draw_requests(library, 0, number) for number in range(5)]
    taken = [draw_rehearsal(drawn, 0.25, 7, number) for number in range(400)]
    assert taken == [draw_rehearsal(drawn, 0.25, 7, number) for number in range(400)]
    assert 60 < sum(each is not None for each in taken) < 140
    assert draw_rehearsal([], 0.25, 7, 1) is None
