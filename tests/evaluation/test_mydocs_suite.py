from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.mydocs import MyDocsSuite
from pacellm_rag.evaluation.types import Suite
from pacellm_rag.testing import ScriptedModel, WordTokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = WordTokenizer()
DOCUMENTS = (
    Document("sha256:a", "Annual report", (Page(1, "i", "Profit was 5."), Page(2, "1", "Loss.")),
             source="/home/me/annual.pdf"),
    Document("sha256:b", "Contract", (Page(1, "1", "It ends in May."),), source="deals/c.docx"),
)  # fmt: skip


def write(tmp_path: Path, *lines: dict[str, Any] | str) -> Path:
    path = tmp_path / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def asked(path: Path, documents: tuple[Document, ...] = DOCUMENTS, **options: Any) -> list[Any]:
    groups = MyDocsSuite(path, documents, **options).groups(TOKENIZER)
    return [sample for group in groups for sample in group.samples]


@pytest.mark.parametrize(
    ("more", "evidence"),
    [
        ({}, ()),
        ({"page": 2, "document": "annual.pdf"}, ((0, 2),)),
        ({"page": 1, "document": "c"}, ((1, 1),)),
        ({"page": 1, "document": "Annual report"}, ((0, 1),)),
        ({"document": "c.docx"}, ()),
        ({"evidence": [{"document": "c.docx", "page": 1, "quote": "May"},
                       {"document": "annual.pdf", "page": 1}]}, ((1, 1), (0, 1))),
        ({"evidence": []}, ()),
    ],
)  # fmt: skip
def test_pages_are_found_by_the_document_s_file_or_title(
    tmp_path: Path, more: dict[str, Any], evidence: tuple[Any, ...]
) -> None:
    (sample,) = asked(write(tmp_path, {"question": "Q?", "answers": ["a"], **more}))
    assert sample.evidence == evidence


def test_a_page_needs_no_document_where_there_is_one_only(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "Q?", "answers": ["a"], "page": 2})
    assert asked(path, DOCUMENTS[:1])[0].evidence == ((0, 2),)
    with pytest.raises(ConfigurationError, match=r"line 1.*without its document.*annual\.pdf"):
        asked(path)


def test_questions_are_named_and_sorted_as_the_file_says(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "One?", "answers": ["a", "b"], "kind": "table", "id": 7},
        "",
        {"question": "Two?", "answers": []},
    )
    one, two = asked(path)
    assert (one.id, one.answers, one.facts) == ("7", ("a", "b"), {"kind": "table"})
    assert (two.id, two.answers, two.facts) == ("003", (), {})


def test_so_many_questions_are_asked_on_one_reading(tmp_path: Path) -> None:
    path = write(tmp_path, *({"question": f"Q{i}?", "answers": ["5"]} for i in range(5)))
    suite: Suite[Any] = MyDocsSuite(path, DOCUMENTS, per_reading=2)
    groups = suite.groups(TOKENIZER)
    assert [(group.id, len(group.samples)) for group in groups] == [("000", 2), ("001", 2),
                                                                    ("002", 1)]  # fmt: skip
    model = ScriptedModel(["5 [D1 p1]", NOT_ANSWERED])
    outcomes = list(suite.answer(model, groups[0]))
    assert [o.scores["f1"] for o in outcomes] == [1, 0]
    assert [o.scores["declined"] for o in outcomes] == [0, 1]
    assert [o.facts["position"] for o in outcomes] == [0, 1]
    assert len(model.prefills) == 1
    assert "citation" not in outcomes[0].scores  # no page was named


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no question"),
        (["{"], "line 1"),
        (['{"question": "Q?", "answers": ["a"]}', "[1]"], "line 2"),
        (['{"question": "Q?"}'], "answers"),
        (['{"question": " ", "answers": []}'], "empty"),
        (['{"question": 3, "answers": []}'], "empty"),
        (['{"question": "Q?", "answers": "a"}'], "a list of texts"),
        (['{"question": "Q?", "answers": [""]}'], "a list of texts"),
        (['{"question": "Q?", "answers": [], "page": 3, "document": "c"}'], "no page 3"),
        (['{"question": "Q?", "answers": [], "page": true, "document": "c"}'], "no page True"),
        (['{"question": "Q?", "answers": [], "page": "1", "document": "c"}'], "no page '1'"),
        (['{"question": "Q?", "answers": [], "page": 1, "document": "x.pdf"}'], "'x.pdf'.*c.docx"),
        (['{"question": "Q?", "answers": [], "evidence": [{"document": "c"}]}'], "KeyError"),
        (['{"question": "Q?", "answers": [], "evidence": 5}'], "TypeError"),
        (['{"question": "Q?", "answers": [], "id": 1}'] * 2, "line 2.*before|before.*line 2"),
    ],
)  # fmt: skip
def test_lines_that_are_not_as_needed_are_named(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        asked(write(tmp_path, *lines))


def test_two_documents_of_one_name_can_not_be_told_apart(tmp_path: Path) -> None:
    twice = (DOCUMENTS[1], DOCUMENTS[1])
    path = write(tmp_path, {"question": "Q?", "answers": ["a"], "page": 1, "document": "c.docx"})
    with pytest.raises(ConfigurationError, match=r"c\.docx"):
        asked(path, twice)


def test_what_does_not_fit_or_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "Q?", "answers": ["a"]})
    with pytest.raises(ConfigurationError, match="--context-window"):
        MyDocsSuite(path, DOCUMENTS).groups(WordTokenizer(100))
    with pytest.raises(ConfigurationError, match="--files"):
        MyDocsSuite(path, ())
    with pytest.raises(ConfigurationError, match="per_reading"):
        MyDocsSuite(path, DOCUMENTS, per_reading=0)
    missing = MyDocsSuite(tmp_path / "none.jsonl", DOCUMENTS)
    with pytest.raises(ConfigurationError, match="can not be read"):
        missing.groups(TOKENIZER)
    with pytest.raises(ConfigurationError, match="can not be read"):
        _ = missing.settings


def test_settings_name_documents_and_questions_by_their_content(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "Q?", "answers": ["a"]})
    base = MyDocsSuite(path, DOCUMENTS).settings
    assert json.loads(json.dumps(base)) == base
    assert MyDocsSuite(path, DOCUMENTS[::-1]).settings != base
    assert MyDocsSuite(path, DOCUMENTS, per_reading=9).settings != base
    write(tmp_path, {"question": "Q!", "answers": ["a"]})
    assert MyDocsSuite(path, DOCUMENTS).settings != base


def test_the_sample_questions_of_this_project_can_be_asked() -> None:
    pages = {"annual-report.pdf": 6, "equipment-manual.pdf": 5, "supplier-contract.pdf": 4}
    documents = tuple(
        Document(name, name.title(), tuple(Page(i, str(i), "x") for i in range(1, count + 1)),
                 source=f"examples/documents/{name}")
        for name, count in pages.items()
    )  # fmt: skip
    samples = asked(ROOT / "examples" / "questions.jsonl", documents)
    assert len(samples) == 30
    assert all(bool(sample.answers) == bool(sample.evidence) for sample in samples)
    assert {sample.facts["kind"] for sample in samples} == {
        "single", "two_documents", "unanswerable"
    }  # fmt: skip
