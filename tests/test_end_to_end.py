"""The whole way with the real default model, which `make test` installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pacellm_rag import DocumentReader, GenerationOptions, Message, load_documents, load_model
from pacellm_rag.context.matching import find_quote
from pacellm_rag.errors import ContextOverflowError
from pacellm_rag.models.model import PaceModel

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted((ROOT / "examples" / "documents").glob("*.pdf"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(real_cache_folder: str | None) -> Iterator[PaceModel]:
    with pytest.MonkeyPatch.context() as patch:
        if real_cache_folder is None:
            patch.delenv("PACELLM_RAG_CACHE")
        else:
            patch.setenv("PACELLM_RAG_CACHE", real_cache_folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)
        yield load_model(store_bytes=0)  # documents are to be read, not found on the disk
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reader(model: PaceModel) -> DocumentReader:
    options = GenerationOptions(max_new_tokens=40)
    return DocumentReader(model, load_documents(DOCUMENTS), options=options)


def test_whole_documents_are_read_and_answered_with_checked_citations(
    reader: DocumentReader,
) -> None:
    answer = reader.ask("What is the notice period for ending the contract?")
    receipt = reader.receipt
    assert receipt is not None
    assert receipt.pages == sum(len(d.pages) for d in reader.documents) == 15
    assert 6000 < receipt.tokens < 7500
    assert answer.text
    assert answer.citations
    for citation in answer.citations:
        page = reader.documents[citation.document].pages[citation.page - 1]
        assert citation.verified
        assert find_quote(citation.quote, page.text) is not None
    assert answer.usage.tokens_reused == receipt.tokens


def test_the_contract_is_cited_for_a_question_about_the_contract(reader: DocumentReader) -> None:
    first = reader.ask("Who is the supplier of the pumps under the contract?").citations[0]
    assert reader.documents[first.document].source.endswith("supplier-contract.pdf")


def test_asking_a_then_b_then_a_gives_the_same_a(reader: DocumentReader) -> None:
    questions = ["Who chairs the board?", "Which fault codes are there?", "Who chairs the board?"]
    first, _, again = (reader.ask(question) for question in questions)
    assert first.text == again.text
    assert first.citations == again.citations


def test_a_follow_up_sees_the_conversation(reader: DocumentReader) -> None:
    first = reader.ask("Who chairs the board?")
    history = [Message("user", first.question), Message("assistant", first.text)]
    follow_up = reader.ask("Since when?", history=history)
    assert follow_up.usage.prompt_tokens > first.usage.prompt_tokens
    assert follow_up.usage.tokens_reused == first.usage.tokens_reused


def test_too_many_documents_are_refused_with_the_count(
    model: PaceModel, reader: DocumentReader
) -> None:
    twice = [*reader.documents, *reader.documents]
    with pytest.raises(ContextOverflowError, match="takes 8,192 tokens") as caught:
        DocumentReader(model, twice).read()
    assert caught.value.needed_tokens > 8192


def test_retrieval_heads_of_the_default_model_look_at_the_fact(model: PaceModel) -> None:
    from pacellm_rag.models.head_probe import score_heads

    heads = model.retrieval_heads
    assert heads is not None
    scores = score_heads(model.module, model.tokenizer, window=model.window, seed=99)
    assert scores is not None
    kept = [float(scores[layer, head]) for layer, head in heads.heads]
    assert min(kept) > 4 * float(scores.median())
    assert sum(kept) / len(kept) > 0.15


def test_the_shell_answers_in_json(real_cache_folder: str | None, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PACELLM_RAG_CACHE"}
    environment["PACELLM_RAG_READINGS"] = str(tmp_path)
    if real_cache_folder is not None:
        environment["PACELLM_RAG_CACHE"] = real_cache_folder
    command = [
        sys.executable, "-m", "pacellm_rag", "ask", str(DOCUMENTS[0]),
        "-q", "Who chairs the board?", "--json", "--max-new-tokens", "24",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["question"] == "Who chairs the board?"
    assert answer["answer"]
    assert answer["citations"]
    assert answer["receipt"]["tokens_reused"] == 0
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    repeated = json.loads(again.stdout)
    assert repeated["receipt"]["tokens_reused"] == repeated["receipt"]["tokens"]
    assert repeated["answer"] == answer["answer"]


def test_banks_of_the_default_model_take_what_calibration_found(model: PaceModel) -> None:
    assert model.pace is None  # off unless asked for
    paced = load_model(pace="on", store_bytes=0)
    assert paced.pace is not None
    assert paced.pace.config.layers == (0,)
    reader = DocumentReader(paced, load_documents(DOCUMENTS[:1]))
    assert reader.ask("Who audited the accounts?", options=GenerationOptions(max_new_tokens=5)).text
    assert paced.pace.stats()[0].acted
