"""The query engine with `PaceLLM`, and as a tool of LlamaIndex' routers, planners and agents."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import Document
from llama_index.core.settings import Settings
from llama_index.core.tools import QueryEngineTool

from llama_index.llms.pacellm import PaceReader, page_nodes
from llama_index.llms.pacellm.base import PaceLLM
from llama_index.llms.pacellm.chat_engine import WholeDocumentChatEngine
from llama_index.llms.pacellm.query_engine import WholeDocumentQueryEngine
from pacellm_rag.errors import ContextOverflowError, ModelError
from pacellm_rag.messages import ToolCall
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel
from pacellm_rag.tool_format import IN_WORDS

NOTE = Document(text="The notice period is ninety days. The contract ends in May.", id_="note")


class RecordingModel(ScriptedModel):
    """Keeps the options of its answers."""

    def stream(self, token_ids: Any, options: GenerationOptions, **more: Any) -> Any:
        self.options = options
        return super().stream(token_ids, options, **more)


def scripted(*answers: str, window: int = 100_000, **settings: Any) -> PaceLLM:
    return PaceLLM(engine=RecordingModel(answers, context_window=window), **settings)


def model_of(llm: PaceLLM) -> RecordingModel:
    model = llm.text_model
    assert isinstance(model, RecordingModel)
    return model


@pytest.fixture(scope="module")
def engines(documents: Path) -> dict[str, WholeDocumentQueryEngine]:
    reader = PaceReader()
    return {
        name: WholeDocumentQueryEngine(
            scripted(*answers), page_nodes(reader.load_data(documents / f"{name}.pdf"))
        )
        for name, answers in (
            ("annual-report", ("Revenue rose [D1 p3].",)),
            ("supplier-contract", ("Sixty days [D1 p2].",)),
        )
    }


@pytest.fixture
def tools(engines: dict[str, WholeDocumentQueryEngine]) -> list[QueryEngineTool]:
    return [
        QueryEngineTool.from_defaults(
            engine, name=name.replace("-", "_"), description=f"The {name}."
        )
        for name, engine in engines.items()
    ]


def test_the_llms_own_settings_decide_how_it_answers() -> None:
    llm = scripted(
        "One two three four.",
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=11,
        stop=["four"],
        timeout=60,
    )
    engine = WholeDocumentQueryEngine(llm, [NOTE])
    assert str(engine.query("What?")) == "One two three"
    used = model_of(llm).options
    left = used.timeout
    assert left is not None
    assert 0 < left <= 60
    assert used == GenerationOptions(3, 0.5, 0.9, 7, 11, ("four",), left)
    llm.max_tokens = 1  # counts from the next question on
    assert str(engine.query("What?")) == "One"
    assert str(WholeDocumentChatEngine(llm, [NOTE]).chat("What?")) == "One"


def test_engines_can_be_copied_and_sent_to_other_processes() -> None:
    llm = scripted("Yes.")
    engine = WholeDocumentQueryEngine(llm, [NOTE])
    engine.query("Is it?")
    assert str(copy.deepcopy(engine).query("Is it?")) == "Yes."
    assert len(model_of(llm).prefills) == 1
    unasked = WholeDocumentQueryEngine(PaceLLM("/nowhere/no-model"), [NOTE])
    sent = pickle.loads(pickle.dumps(unasked))
    assert sent.documents == unasked.documents
    with pytest.raises(ModelError, match="no-model"):
        sent.query("Is it?")


async def test_less_asked_for_makes_documents_fit() -> None:
    llm = scripted("Yes.", window=300, max_tokens=280)
    engine = WholeDocumentQueryEngine(llm, [NOTE])
    with pytest.raises(ContextOverflowError):
        engine.query("Is it?")
    llm.max_tokens = 20
    assert engine.reader.plan().answer_tokens == 20
    assert str(await engine.aquery("Is it?")) == "Yes."


def test_the_settings_llm_is_taken_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", scripted("Yes."))
    assert str(WholeDocumentQueryEngine.from_documents([NOTE]).query("Is it?")) == "Yes."


async def test_making_an_engine_loads_no_model_and_asking_it_tells_what_is_missing() -> None:
    llm = PaceLLM("/nowhere/no-model")
    engine = WholeDocumentQueryEngine.from_documents([NOTE], llm)
    chat = WholeDocumentChatEngine.from_documents([NOTE], llm)
    with pytest.raises(ModelError, match="no-model"):
        engine.query("What?")
    with pytest.raises(ModelError, match="no-model"):
        await chat.achat("What?")


async def test_a_router_takes_the_document_that_fits(tools: list[QueryEngineTool]) -> None:
    choice = ToolCall("SingleSelection", {"index": 2, "reason": "It is about the contract."})
    router = RouterQueryEngine.from_defaults(tools, llm=scripted(IN_WORDS.write([choice])))
    for response in (router.query("How long?"), await router.aquery("How long?")):
        assert str(response) == "Sixty days."
        metadata = response.metadata or {}
        assert metadata["selector_result"].ind == 1
        assert metadata["citations"][0]["verified"]
        assert {s.metadata["file_name"] for s in response.source_nodes} == {"supplier-contract.pdf"}


@pytest.mark.parametrize("at_once", [False, True])
def test_sub_questions_are_answered_from_the_documents_they_are_about(
    tools: list[QueryEngineTool], at_once: bool
) -> None:
    asked = [
        {"sub_question": "How did revenue do?", "tool_name": "annual_report"},
        {"sub_question": "How long is the notice?", "tool_name": "supplier_contract"},
    ]
    llm = scripted(f"```json\n{json.dumps({'items': asked})}\n```", "Up, and sixty days.")
    engine = SubQuestionQueryEngine.from_defaults(
        tools,
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        use_async=at_once,
        verbose=False,
    )
    response = engine.query("How did revenue do, and how long is the notice?")
    assert str(response) == "Up, and sixty days."
    files = {s.metadata.get("file_name") for s in response.source_nodes}
    assert {"annual-report.pdf", "supplier-contract.pdf"} <= files


# llama-index-workflows goes through all attributes of an agent, pydantic's deprecated ones too
agents = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


@agents
async def test_an_agent_asks_the_documents(tools: list[QueryEngineTool]) -> None:
    call = IN_WORDS.write([ToolCall("supplier_contract", {"input": "How long is the notice?"})])
    llm = scripted(call, "It is sixty days.")
    agent = FunctionAgent(tools=list(tools), llm=llm)
    output = await agent.run("How long is the notice period?")
    assert str(output) == "It is sixty days."
    (result,) = output.tool_calls
    assert result.tool_output.content == "Sixty days."
    sources = result.tool_output.raw_output.source_nodes
    assert "2" in [source.metadata["page_label"] for source in sources]


@agents
async def test_an_agent_is_told_when_documents_do_not_fit() -> None:
    small = WholeDocumentQueryEngine(scripted("Never.", window=50), [NOTE])
    with pytest.raises(ContextOverflowError):
        small.query("What?")
    tool = QueryEngineTool.from_defaults(small, name="note")
    call = IN_WORDS.write([ToolCall("note", {"input": "What?"})])
    output = await FunctionAgent(tools=[tool], llm=scripted(call, "Too long.")).run("What?")
    (result,) = output.tool_calls
    assert result.tool_output.is_error
    assert "takes 50 tokens" in result.tool_output.content


def test_one_model_answers_and_cites_for_all_engines(documents: Path) -> None:
    llm = scripted("Yes [D1 p1].")
    reader = PaceReader()
    pages = [page for f in sorted(documents.glob("*.pdf")) for page in reader.load_data(f)]
    engine = WholeDocumentQueryEngine.from_documents(pages, llm)
    chat = WholeDocumentChatEngine.from_documents(pages, llm)
    engine.query("Is it?")
    response = chat.chat("Is it?")
    receipt = (response.metadata or {})["receipt"]
    assert receipt["tokens_reused"] == receipt["tokens"]
    assert response.source_nodes
