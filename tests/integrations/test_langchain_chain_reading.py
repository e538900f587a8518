"""When the whole-document chain loads and reads, and that it does so once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chain_doubles import (
    QUESTION,
    SAID,
    SMALL,
    load_sample_pages,
)
from langchain_core.documents import Document

from langchain_pacellm import ChatPaceLLM
from langchain_pacellm.chains import create_whole_document_chain
from pacellm_rag import errors
from pacellm_rag.testing import ScriptedModel

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    return load_sample_pages(documents)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel([SAID], context_window=20_000)


def test_nothing_is_read_before_the_first_question(tmp_path: Path, model: ScriptedModel) -> None:
    path = tmp_path / "late.txt"
    chain = create_whole_document_chain(model, path)
    with pytest.raises(errors.DocumentError, match="no file"):
        chain.invoke(QUESTION)
    path.write_text("Gideon Ashby represents the Supplier.")
    assert chain.invoke(QUESTION)["receipt"]["documents"] == 1
    path.unlink()
    assert chain.invoke("And who else?")["receipt"]["documents"] == 1
    assert len(model.prefills) == 1


def test_weights_are_loaded_with_the_first_question_and_once() -> None:
    loaded: list[ScriptedModel] = []

    class Lazy(ChatPaceLLM):
        @property
        def text_model(self) -> Any:
            loaded.append(ScriptedModel())
            return loaded[-1]

    chain = create_whole_document_chain(Lazy(engine=ScriptedModel()), SMALL)
    assert loaded == []
    assert len(chain.batch(["a", "b", "c", "d"] * 4)) == 16
    assert len(loaded) == 1


def test_the_second_question_reuses_what_was_read(tiny: Callable[..., PaceModel]) -> None:
    model = tiny()
    long = [Document(f"{p.page_content} " * 55, metadata=p.metadata) for p in SMALL]
    chain = create_whole_document_chain(ChatPaceLLM(engine=model, max_tokens=8), long, cite=False)
    first, second = chain.invoke("How many pumps?"), chain.invoke("Where are they?")
    assert first["usage"]["input_token_details"]["cache_read"] == 0
    usage = second["usage"]
    assert usage["input_token_details"]["cache_read"] >= 0.95 * usage["input_tokens"]
    assert first["usage"]["input_tokens"] > 2_500
    assert first["receipt"] == second["receipt"]
    assert usage["output_tokens"] == 8


async def test_concurrent_questions_get_the_answers_of_single_ones(
    tiny: Callable[..., PaceModel],
) -> None:
    questions = [f"How many pumps has site {n}?" for n in range(6)]
    alone = create_whole_document_chain(tiny(), SMALL, max_tokens=8)
    expected = [alone.invoke(question)["answer"] for question in questions]
    chain = create_whole_document_chain(tiny(), SMALL, max_tokens=8)
    in_threads = await asyncio.to_thread(chain.batch, questions)  # type: ignore[arg-type]
    assert [r["answer"] for r in in_threads] == expected
    chain = create_whole_document_chain(tiny(), SMALL, max_tokens=8)
    in_tasks = await chain.abatch(questions)  # type: ignore[arg-type]
    assert [r["answer"] for r in in_tasks] == expected
    assert [r["question"] for r in in_tasks] == questions
