from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.qa_data import Context, Row, draw_contexts, file_digest, load_rows


def page(title: str, text: str = "It is here.", **more: Any) -> dict[str, Any]:
    return {"title": title, "context": text, "questions": [["Q?", ["a"]]], **more}


def bundle(*paragraphs: tuple[str, bool], text: str = "Text of") -> dict[str, Any]:
    return {
        "source": "hops",
        "title": "",
        "paragraphs": [[name, f"{text} {name}.", used] for name, used in paragraphs],
        "questions": [["Q?", ["a"]]],
    }


def rows_of(tmp_path: Path, *lines: dict[str, Any], **options: Any) -> list[Row]:
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return load_rows(path, paragraphs=True, **options)


def titles(contexts: list[Context]) -> list[list[str]]:
    return [[document.title for document in context.documents] for context in contexts]


def test_all_accepted_answers_and_questions_without_one_are_kept(tmp_path: Path) -> None:
    line = page("T", questions=[["Q?", ["a", "b"]], ["N?", []], [" ", ["x"]], ["B?", [" "]]])
    (row,) = rows_of(tmp_path, line)
    assert [(q.text, q.answers) for q in row.questions] == [("Q?", ("a", "b")), ("N?", ())]
    assert [q.text for q in row.answerable] == ["Q?"]
    assert row.pages == (("T", "It is here."),)
    assert row.evidence == (0,)


def test_lines_without_an_answerable_question_or_a_page_are_left_out(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, page("A", questions=[["N?", []]]), page("B", ""), bundle(), page("C")
    )  # fmt: skip
    assert [row.title for row in rows] == ["C"]


def test_of_several_documents_the_evidence_and_four_in_all_are_kept(tmp_path: Path) -> None:
    many = bundle(("a", False), ("b", True), ("c", False), ("d", True), ("e", False), ("f", False))
    all_used = bundle(*((name, True) for name in "uvwxyz"))
    one, two = rows_of(tmp_path, many, all_used)
    assert [name for name, _ in one.pages] == ["a", "b", "c", "d"]
    assert one.evidence == (1, 3)
    assert len(two.pages) == 6
    assert two.evidence == (0, 1, 2, 3, 4, 5)


def test_long_pages_can_be_left_out(tmp_path: Path) -> None:
    lines = [page("A", "one two"), page("B", "one two three"), bundle(("c", True), text="x " * 9)]
    assert [row.title for row in rows_of(tmp_path, *lines, most_words=2)] == ["A"]
    with pytest.raises(ConfigurationError, match="no page of up to 1 words"):
        rows_of(tmp_path, *lines, most_words=1)


@pytest.mark.parametrize(
    "line",
    ['{"title"', "[]", "3", '{"context": "x"}', '{"context": "x", "questions": [["q"]]}',
     '{"context": "x", "questions": [["q", 3]]}', '{"paragraphs": [["t"]], "questions": []}'],
)  # fmt: skip
def test_a_line_that_is_not_as_needed_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"line 2 of .*eval packed --help"):
        load_rows(path, paragraphs=True, command="eval packed")


def test_files_that_can_not_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can not be read"):
        load_rows(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="can not be read"):
        file_digest(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"title": "\xe4"}')
    with pytest.raises(ConfigurationError, match="can not be read"):
        load_rows(tmp_path / "latin.jsonl")
    whole = lzma.compress(json.dumps(page("A")).encode() * 500)
    (tmp_path / "cut.jsonl.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="can not be read"):
        load_rows(tmp_path / "cut.jsonl.xz")


def test_pages_of_a_title_are_one_document_and_no_row_is_drawn_twice(tmp_path: Path) -> None:
    lines = [page(title, f"{title} {n}.") for title in "ABCD" for n in range(3)]
    contexts = draw_contexts(rows_of(tmp_path, *lines), [3, 4, 5], random.Random(0))
    assert [sum(len(d.pages) for d in c.documents) for c in contexts] == [3, 4, 5]
    texts = [p.text for c in contexts for d in c.documents for p in d.pages]
    assert len(set(texts)) == 12
    for context in contexts:
        for placed in context.rows:
            ((document, number),) = placed.evidence
            where = context.documents[document].pages[number - 1]
            assert (where.number, where.text) == (number, placed.row.pages[0][1])


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *(page(title) for title in "ABCDEFGHIJKL"))
    one, two, three = (draw_contexts(rows, [2, 2], random.Random(seed)) for seed in (1, 1, 2))
    assert one == two
    assert titles(one) != titles(three)


def test_several_documents_of_one_question_stay_together(tmp_path: Path) -> None:
    lines = [bundle((f"a{i}", True), (f"b{i}", False), (f"c{i}", True)) for i in range(4)]
    contexts = draw_contexts(rows_of(tmp_path, *lines), [5, 5], random.Random(0))
    for context in contexts:
        assert len(context.documents) == 5  # of the second the one that is no evidence goes
        assert [len(placed.row.pages) for placed in context.rows] == [3, 2]
        for placed in context.rows:
            named = [context.documents[d].title[0] for d, _ in placed.evidence]
            assert named == ["a", "c"]
            assert all(page == 1 for _, page in placed.evidence)


def test_what_finds_no_room_waits_for_the_next_context(tmp_path: Path) -> None:
    lines = [bundle((f"a{i}", True), (f"b{i}", True)) for i in range(4)]
    contexts = draw_contexts(rows_of(tmp_path, *lines), [3, 3, 2], random.Random(0))
    assert [len(context.documents) for context in contexts] == [2, 2, 2]
    with pytest.raises(ConfigurationError, match="fill 0 contexts of 3"):
        draw_contexts(rows_of(tmp_path, *lines), [3], random.Random(0))


def test_a_context_has_no_document_of_the_same_name_from_two_questions(tmp_path: Path) -> None:
    lines = [bundle(("same", True), (f"b{i}", True)) for i in range(2)]
    lines += [bundle((f"c{i}", True), (f"d{i}", True)) for i in range(2)]
    for seed in range(5):
        rows = rows_of(tmp_path, *lines)
        for context in draw_contexts(rows, [4, 4], random.Random(seed)):
            named = [document.title for document in context.documents]
            assert len(set(named)) == len(named) == 4


def test_pages_without_a_title_are_documents_of_their_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, page(""), page(""))
    (context,) = draw_contexts(rows, [2], random.Random(0))
    assert titles([context]) == [["Untitled", "Untitled"]]
    assert [placed.evidence for placed in context.rows] == [((0, 1),), ((1, 1),)]


def test_more_contexts_than_there_are_pages_are_refused(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, page("A"), page("B"))
    with pytest.raises(ConfigurationError, match=r"hold 2 pages.* 2 contexts of 1 to 2 need 3"):
        draw_contexts(rows, [1, 2], random.Random(0))
