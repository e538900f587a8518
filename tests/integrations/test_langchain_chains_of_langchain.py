"""LangChain's own chains and agents, with this model, this retriever and this chain in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool, tool
from pydantic import BaseModel

from langchain_pacellm import ChatPaceLLM, PacePDFLoader
from langchain_pacellm.chains import create_whole_document_chain
from langchain_pacellm.retrievers import WholeDocumentRetriever
from pacellm_rag.messages import ToolCall
from pacellm_rag.testing import ScriptedModel
from pacellm_rag.tool_format import IN_WORDS

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

NAMES = ("annual-report", "equipment-manual", "supplier-contract")
QUESTION = "Who represents the Supplier?"
ANSWER = "Gideon Ashby does, its contracts manager."
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from these documents.\n\n{context}"), ("human", "{input}")]
)
SMALL = [
    Document(f"{name} has {count} pumps. " * 30, metadata={"source": f"{name}.txt", "page": 0})
    for name, count in (("Hallen", 4), ("Norrock", 3), ("Vessary", 9))
]


@pytest.fixture(scope="session")
def pages(documents: Path) -> list[Document]:
    """The pages of the three samples, in the order of `NAMES`."""
    return PacePDFLoader([documents / f"{name}.pdf" for name in NAMES]).load()


class Prompts(BaseCallbackHandler):
    """The prompts that chat models got, and the messages that they gave."""

    def __init__(self) -> None:
        self.prompts: list[list[Any]] = []
        self.answers: list[AIMessage] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.prompts.extend(messages)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.answers.append(response.generations[0][0].message)


def chat(*answers: str, **settings: Any) -> ChatPaceLLM:
    return ChatPaceLLM(engine=ScriptedModel(answers, context_window=30_000), **settings)


def called(tool_name: str, /, **arguments: Any) -> str:
    return IN_WORDS.write([ToolCall(tool_name, arguments)])


def test_prompt_model_and_parser_make_a_chain() -> None:
    chain = PROMPT | chat(ANSWER) | StrOutputParser()
    given = {"context": "Gideon Ashby represents the Supplier.", "input": QUESTION}
    assert chain.invoke(given) == ANSWER
    pieces = list(chain.stream(given))
    assert len(pieces) > 3
    assert "".join(pieces) == ANSWER
    assert chain.batch([given] * 3) == [ANSWER] * 3


def test_a_retriever_feeds_a_chain_of_runnables(pages: list[Document]) -> None:
    retriever = WholeDocumentRetriever(documents=pages, k=1)

    def written(documents: Sequence[Document]) -> str:
        return "\n\n".join(document.page_content for document in documents)

    given: Any = {"context": retriever | written, "input": RunnablePassthrough()}
    seen = Prompts()
    chain = given | PROMPT | chat(ANSWER) | StrOutputParser()
    assert chain.invoke(QUESTION, {"callbacks": [seen]}) == ANSWER
    ((system, _),) = seen.prompts
    assert all(page.page_content in system.content for page in pages[-4:])
    assert pages[0].page_content not in system.content


async def test_whole_documents_are_stuffed_into_one_prompt(pages: list[Document]) -> None:
    model = chat(ANSWER)
    retriever = WholeDocumentRetriever(documents=pages, model=model, max_tokens=6_500)
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(model, PROMPT))
    seen = Prompts()
    result = await chain.ainvoke({"input": QUESTION}, {"callbacks": [seen]})
    assert result["answer"] == ANSWER
    assert [d.metadata["document_number"] for d in result["context"]] == [1, 3]
    assert [gone["reason"] for gone in result["context"][0].metadata["left_out"]] == ["budget"]
    ((system, human),) = seen.prompts
    for document in result["context"]:
        assert document.page_content in system.content
    assert human.content == QUESTION
    chunks: list[Any] = list(chain.stream({"input": QUESTION}))
    assert "".join(chunk.get("answer", "") for chunk in chunks) == ANSWER


def test_stuffed_documents_are_read_once_for_all_questions(
    tiny: Callable[..., PaceModel],
) -> None:
    model = ChatPaceLLM(engine=tiny(), max_tokens=4)
    retriever = WholeDocumentRetriever(documents=SMALL, model=model, max_tokens=3_000)
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(model, PROMPT))
    seen = Prompts()
    for question in ("Vessary?", "Norrock?", "Hallen?"):  # each ranks another document first
        chain.invoke({"input": question}, {"callbacks": [seen]})
    first, *later = (answer.usage_metadata for answer in seen.answers)
    assert first is not None
    assert first["input_token_details"]["cache_read"] == 0
    assert first["input_tokens"] > 2_000
    for usage in later:
        assert usage is not None
        assert usage["input_token_details"]["cache_read"] >= 0.95 * usage["input_tokens"]


def test_a_history_aware_retriever_asks_with_the_whole_conversation(pages: list[Document]) -> None:
    retriever = WholeDocumentRetriever(documents=pages, k=1)
    rephrase = ChatPromptTemplate.from_messages(
        [("placeholder", "{chat_history}"), ("human", "{input}\nAsk so that it stands alone.")]
    )
    model = chat("At which oil temperature does the pump set trip?", "At 75 degrees.")
    aware = create_history_aware_retriever(model, retriever, rephrase)
    chain = create_retrieval_chain(aware, create_stuff_documents_chain(model, PROMPT))
    history = [HumanMessage("Which pumps are there?"), AIMessage("H320 and H480.")]
    result = chain.invoke({"input": "And when do they trip?", "chat_history": history})
    assert result["answer"] == "At 75 degrees."
    assert result["context"][0].metadata["document_number"] == 2


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_an_agent_reads_documents_through_the_chain(pages: list[Document], way: str) -> None:
    reader = create_whole_document_chain(
        ScriptedModel([f"{ANSWER} [D3 p4]"], context_window=30_000), pages
    )

    @tool
    def read_documents(question: str) -> str:
        """Answers a question from the report, the manual and the contract."""
        result = reader.invoke(question)
        return f"{result['answer']} (page {result['citations'][0]['page_label']})"

    model = chat(called("read_documents", question=QUESTION), "It is Gideon Ashby, see page 4.")
    agent: Any = create_agent(model, [read_documents], system_prompt="Be exact.")
    given = {"messages": [("human", QUESTION)]}
    if way == "invoke":
        messages = agent.invoke(given)["messages"]
    elif way == "ainvoke":
        messages = asyncio.run(agent.ainvoke(given))["messages"]
    else:
        messages = [*agent.stream(given, stream_mode="values")][-1]["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
    assert messages[1].tool_calls[0]["args"] == {"question": QUESTION}
    assert messages[2].content == f"{ANSWER} (page 4)"
    assert messages[3].text == "It is Gideon Ashby, see page 4."


def test_an_agent_gets_whole_documents_from_the_retriever(pages: list[Document]) -> None:
    retriever = WholeDocumentRetriever(documents=pages, k=1)
    search = create_retriever_tool(retriever, "find", "Finds documents.")
    model = chat(called("find", query=QUESTION), ANSWER)
    agent: Any = create_agent(model, [search])
    _, _, found, last = agent.invoke({"messages": [("human", QUESTION)]})["messages"]
    assert all(page.page_content in found.content for page in pages[-4:])
    assert last.text == ANSWER


class Representative(BaseModel):
    """Who represents a party."""

    name: str
    party: Literal["Supplier", "Purchaser"]


@pytest.mark.parametrize("form", [Representative, ProviderStrategy(Representative)])
def test_an_agents_answer_has_the_form_that_was_asked_for(form: Any) -> None:
    @tool
    def look_up(party: str) -> str:
        """Looks up who represents a party."""
        return "Gideon Ashby"

    model = chat(
        called("look_up", party="Supplier"), '{"name": "Gideon Ashby", "party": "Supplier"}'
    )
    agent: Any = create_agent(model, [look_up], response_format=form)
    result = agent.invoke({"messages": [("human", QUESTION)]})
    assert result["structured_response"] == Representative(name="Gideon Ashby", party="Supplier")


def test_an_agents_answer_may_have_its_form_by_a_tool() -> None:
    model = chat(called("Representative", name="Gideon Ashby", party="Supplier"))
    agent: Any = create_agent(model, [], response_format=ToolStrategy(Representative))
    result = agent.invoke({"messages": [("human", QUESTION)]})
    assert result["structured_response"] == Representative(name="Gideon Ashby", party="Supplier")


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_the_form_of_an_agents_answer_is_enforced_on_real_weights(
    tiny: Callable[..., PaceModel], strategy: Any
) -> None:
    model = ChatPaceLLM(engine=tiny(), max_tokens=120)  # knows nothing, not even JSON
    agent: Any = create_agent(model, [], response_format=strategy(Representative))
    result = agent.invoke({"messages": [("human", QUESTION)]})
    assert isinstance(result["structured_response"], Representative)
