"""The sample documents match their sources, and the sample questions match the documents."""

import importlib.util
import json
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pypdf import PdfReader

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCUMENTS = EXAMPLES / "documents"
LABELS = {
    "annual-report.pdf": ["i", "ii", "1", "2", "3", "4"],
    "equipment-manual.pdf": ["1", "2", "3", "4", "5"],
    "supplier-contract.pdf": ["1", "2", "3", "4"],
}
QUESTIONS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]


def squeeze(text: str) -> str:
    """Drops white space, resolves ligatures, ignores case."""
    return "".join(unicodedata.normalize("NFKC", text).split()).casefold()


def texts(path: Path) -> list[str]:
    return [page.extract_text() for page in PdfReader(path).pages]


@pytest.fixture(scope="module")
def pages() -> dict[tuple[str, int], str]:
    """The squeezed text of every page, by document and page number (from 1)."""
    return {
        (name, number): squeeze(text)
        for name in LABELS
        for number, text in enumerate(texts(DOCUMENTS / name), 1)
    }


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("reportlab")
    spec = importlib.util.spec_from_file_location("make_documents", EXAMPLES / "make_documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_documents_are_known() -> None:
    assert sorted(path.name for path in DOCUMENTS.glob("*.pdf")) == sorted(LABELS)
    assert sorted(path.stem for path in (DOCUMENTS / "sources").glob("*.md")) == sorted(
        Path(name).stem for name in LABELS
    )


@pytest.mark.parametrize("name", LABELS)
def test_document_has_labels_title_and_small_size(name: str) -> None:
    path = DOCUMENTS / name
    reader = PdfReader(path)
    assert reader.page_labels == LABELS[name]
    assert reader.metadata is not None
    assert reader.metadata.title
    assert reader.metadata.author == "Vessary Water"
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("name", LABELS)
def test_rebuilding_gives_the_committed_document(
    name: str, script: ModuleType, tmp_path: Path
) -> None:
    source = DOCUMENTS / "sources" / f"{Path(name).stem}.md"
    first, second = tmp_path / "first.pdf", tmp_path / "second.pdf"
    script.build(source, first)
    script.build(source, second)
    assert first.read_bytes() == second.read_bytes()
    # Another version of reportlab may write other bytes, so only the words are compared here.
    assert texts(first) == texts(DOCUMENTS / name)
    assert PdfReader(first).page_labels == LABELS[name]


def test_questions_are_complete() -> None:
    assert Counter(question["kind"] for question in QUESTIONS) == {
        "single": 15,
        "two_documents": 10,
        "unanswerable": 5,
    }
    for field in ("id", "question"):
        assert len({question[field] for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert set(question) == {"id", "question", "answers", "evidence", "kind"}
        assert all(set(item) == {"document", "page", "quote"} for item in question["evidence"])


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
def test_question_rests_on_its_evidence(
    question: dict[str, Any], pages: dict[tuple[str, int], str]
) -> None:
    evidence = question["evidence"]
    documents = {item["document"] for item in evidence}
    if question["kind"] == "unanswerable":
        assert not evidence
        assert not question["answers"]
        return
    assert len(documents) == len(evidence) == (2 if question["kind"] == "two_documents" else 1)
    assert 1 <= len(question["answers"]) <= 4
    for item in evidence:
        quote = squeeze(item["quote"])
        found = [place for place, text in pages.items() if quote in text]
        assert found == [(item["document"], item["page"])]
    quotes = [squeeze(item["quote"]) for item in evidence]
    assert any(squeeze(answer) in quote for answer in question["answers"] for quote in quotes)
