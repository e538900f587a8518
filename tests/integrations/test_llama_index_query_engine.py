"""The query engine over whole documents: what is read, cited, chosen, refused and told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index.llms.pacellm import PaceReader, page_nodes
from llama_index.llms.pacellm.query_engine import WholeDocumentQueryEngine
from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel

Engine = WholeDocumentQueryEngine


def model_saying(*answers: str, window: int = 100_000) -> ScriptedModel:
    return ScriptedModel(answers or ("Yes.",), context_window=window)


@pytest.fixture(scope="module")
def pages(documents: Path) -> list[TextNode]:
    reader = PaceReader()
    return page_nodes(p for file in sorted(documents.glob("*.pdf")) for p in reader.load_data(file))


def places(response: Any) -> list[tuple[str, str]]:
    return [(n.metadata["file_name"], n.metadata["page_label"]) for n in response.source_nodes]


def same(key: str, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value)])


def test_an_answer_has_its_pages_as_source_nodes_and_says_what_it_took(
    pages: list[TextNode],
) -> None:
    model = model_saying("60 days [D3 p2].")
    response = Engine(model, pages).query("How long is the notice period?")
    assert isinstance(response, Response)
    assert response.response == "60 days."
    assert ("supplier-contract.pdf", "2") in places(response)
    assert len(response.source_nodes) <= 4 < len(pages)
    metadata = response.metadata or {}
    named = [c for c in metadata["citations"] if (c["found_by"], c["page"]) == ("model", 2)]
    node = next(n for n in response.source_nodes if n.node_id == named[0]["node_id"])
    assert (named[0]["title"], named[0]["page_label"]) == (node.metadata["title"], "2")
    assert named[0]["verified"] is True
    assert named[0]["quote"] in " ".join(node.text.split())
    assert named[0]["score"] == node.score
    usage = metadata["usage"]
    assert usage["prompt_tokens"] == usage["tokens_read"] + usage["tokens_reused"]
    assert metadata["receipt"]["documents"] == 3
    assert metadata["receipt"]["pages"] == 15
    assert metadata["finish_reason"] == "stop"


def test_every_page_of_every_document_reaches_the_model_in_one_prompt(
    pages: list[TextNode],
) -> None:
    model = model_saying()
    engine = Engine(model, pages)
    engine.query("Anything?")
    assert len(model.prompts) == len(model.prefills) == 1
    text = engine.reader.packed.text
    for page in pages:
        assert page.text in text
    assert [d.title for d in engine.documents] == list(
        dict.fromkeys(page.metadata["title"] for page in pages)
    )


def test_the_users_nodes_stay_as_they_are(pages: list[TextNode]) -> None:
    before = [page.model_dump_json() for page in pages]
    response = Engine(model_saying("Ninety [D1 p1]."), pages).query("What?")
    response.source_nodes[0].node.metadata["mine"] = "changed"
    response.source_nodes[0].node.set_content("changed")
    assert [page.model_dump_json() for page in pages] == before


async def test_streaming_gives_the_same_answer_and_sources_once_it_has_ended(
    pages: list[TextNode],
) -> None:
    said = "Sixty [D3 p2] days [D1 p1, D2 p2], no more."
    whole = Engine(model_saying(said), pages).query("How long?")
    streamed = Engine(model_saying(said), pages, streaming=True).query("How long?")
    assert isinstance(streamed, StreamingResponse)
    assert (streamed.source_nodes, streamed.metadata) == ([], {})
    pieces = list(streamed.response_gen)
    assert len(pieces) > 2
    assert "".join(pieces) == str(whole) == "Sixty days, no more."
    later = await Engine(model_saying(said), pages, streaming=True).aquery("How long?")
    assert isinstance(later, AsyncStreamingResponse)
    assert "".join([piece async for piece in later.async_response_gen()]) == str(whole)
    at_once = await Engine(model_saying(said), pages).aquery("How long?")
    assert str(at_once) == str(whole)
    for other in (streamed, later, at_once):
        assert other.source_nodes == whole.source_nodes != []
        metadata, expected = dict(other.metadata or {}), dict(whole.metadata or {})
        for measured in ("timings", "receipt"):
            assert metadata.pop(measured).keys() == expected.pop(measured).keys()
        assert metadata == expected


def test_a_streamed_response_can_be_made_a_whole_one(pages: list[TextNode]) -> None:
    streamed = Engine(model_saying("Sixty [D3 p2]."), pages, streaming=True).query("How long?")
    assert isinstance(streamed, StreamingResponse)
    response = streamed.get_response()
    assert response.response == "Sixty."
    assert response.source_nodes
    assert response.metadata is not None
    assert response.metadata["finish_reason"] == "stop"


def test_documents_that_do_not_fit_are_refused_with_their_numbers(pages: list[TextNode]) -> None:
    for streaming in (False, True):
        model = model_saying(window=500)
        engine = Engine(model, pages, streaming=streaming)
        with pytest.raises(ContextOverflowError) as caught:
            engine.query("Anything?")
        assert not isinstance(caught.value, ValueError)  # which others turn into "Empty Response"
        assert caught.value.available_tokens == 500
        assert caught.value.needed_tokens > 2000
        assert list(caught.value.document_tokens) == [d.title for d in engine.documents]
        assert (model.prefills, model.generations) == ([], [])


async def test_an_overflow_is_raised_by_async_queries_too(pages: list[TextNode]) -> None:
    for streaming in (False, True):
        with pytest.raises(ContextOverflowError):
            await Engine(model_saying(window=500), pages, streaming=streaming).aquery("What?")


def test_no_documents_and_no_question_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no document to read"):
        Engine(model_saying(), [])
    with pytest.raises(ConfigurationError, match=r"Item 1 .* is a str"):
        Engine.from_documents([Document(text="One."), "two"], model_saying())  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="question is empty"):
        Engine(model_saying(), [Document(text="One.")]).query("  ")


def test_a_model_that_can_not_read_documents_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="MockLLM, which can not"):
        Engine(MockLLM(), [Document(text="One.")])


def test_without_a_model_the_settings_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    with pytest.raises(ConfigurationError, match="MockLLM"):
        Engine.from_documents([Document(text="One.")])


def test_documents_are_chosen_by_name_and_keep_their_order(pages: list[TextNode]) -> None:
    engine = Engine(model_saying(), pages)
    title = pages[0].metadata["title"]
    chosen = engine.select("supplier-contract.pdf", title)
    assert [d.title for d in chosen.documents] == [title, engine.documents[2].title]
    by_id = engine.select(pages[0].metadata["document_id"], pages[-1].metadata["file_path"])
    assert by_id.documents == chosen.documents
    assert engine.select().documents == engine.documents
    with pytest.raises(ConfigurationError, match=r"no document 'x\.pdf'; there are: Annual Report"):
        engine.select("x.pdf")


def test_nodes_are_chosen_by_their_metadata(pages: list[TextNode]) -> None:
    engine = Engine(model_saying(), pages, filters=same("file_name", "annual-report.pdf"))
    assert [len(d.pages) for d in engine.documents] == [6]
    within = MetadataFilters(
        condition=FilterCondition.AND,
        filters=[
            MetadataFilters(
                condition=FilterCondition.OR,
                filters=[
                    MetadataFilter(key="page_label", value="ii"),
                    MetadataFilter(key="page_number", value=5, operator=FilterOperator.GTE),
                ],
            ),
            MetadataFilters(
                condition=FilterCondition.NOT,
                filters=[MetadataFilter(key="page_label", value="4")],
            ),
        ],
    )
    (document,) = engine.select(filters=within).documents
    assert [(p.number, p.label) for p in document.pages] == [(2, "ii"), (5, "3")]
    with pytest.raises(ConfigurationError, match="None of 6 nodes passes"):
        engine.select(filters=same("file_name", "supplier-contract.pdf"))


def test_a_choice_of_the_first_documents_is_not_read_again(pages: list[TextNode]) -> None:
    model = model_saying("Yes.")
    engine = Engine(model, pages)
    engine.query("What?")
    response = engine.select(pages[0].metadata["title"]).query("What?")
    assert response.metadata is not None
    receipt = response.metadata["receipt"]
    assert receipt["documents"] == 1
    assert receipt["tokens_reused"] >= 0.95 * receipt["tokens"]


def test_settings_given_to_the_engine_decide_how_it_answers(pages: list[TextNode]) -> None:
    options = GenerationOptions(max_new_tokens=2)
    engine = Engine(model_saying("One two three four."), pages, options=options)
    for asked in (engine, engine.select()):
        response = asked.query("What?")
        assert str(response) == "One two"
        assert response.metadata is not None
        assert response.metadata["finish_reason"] == "length"


class Collector(BaseEventHandler):
    seen: list[str] = []  # noqa: RUF012 - a pydantic field

    @classmethod
    def class_name(cls) -> str:
        return "Collector"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.seen.append(event.class_name())


@pytest.fixture
def events() -> Iterator[list[str]]:
    root, handler = get_dispatcher(), Collector(seen=[])
    root.add_event_handler(handler)
    yield handler.seen
    root.event_handlers.remove(handler)


async def test_events_are_those_of_other_query_engines(
    pages: list[TextNode], events: list[str]
) -> None:
    Engine(model_saying("Yes it is."), pages).query("What?")
    expected = ["QueryStartEvent", "SynthesizeStartEvent", "LLMChatStartEvent"]
    expected += ["LLMChatEndEvent", "SynthesizeEndEvent", "QueryEndEvent"]
    assert events == expected
    events.clear()
    await Engine(model_saying("Yes it is."), pages).aquery("What?")
    assert events == expected
    events.clear()
    response = Engine(model_saying("Yes it is."), pages, streaming=True).query("What?")
    assert isinstance(response, StreamingResponse)
    list(response.response_gen)
    assert events[-1] == "LLMChatEndEvent"
    assert events.count("LLMChatInProgressEvent") >= 3


def test_callbacks_count_the_models_own_tokens(pages: list[TextNode]) -> None:
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler()
    model = model_saying("Yes it is.")
    engine = Engine(model, pages, callback_manager=CallbackManager([debug, counter]))
    engine.query("What?")
    for kind in (CBEventType.QUERY, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(debug.get_event_pairs(kind)) == 1
    assert counter.prompt_llm_token_count == len(model.prompts[0])
    assert counter.completion_llm_token_count == 3


async def test_a_stream_that_is_closed_ends_its_events(pages: list[TextNode]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model = model_saying("One two three four.")
    manager = CallbackManager([debug])
    engine = Engine(model, pages, streaming=True, callback_manager=manager)
    stream: Any = engine.query("What?")
    assert next(stream.response_gen) == "One"
    stream.response_gen.close()
    later: Any = await engine.aquery("What?")
    assert await anext(later.response_gen) == "One"
    await later.response_gen.aclose()
    assert [generation.closed for generation in model.generations] == [True, True]
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 2
    assert (stream.source_nodes, stream.metadata) == ([], {})


def test_the_prompts_are_not_the_users_to_change(pages: list[TextNode]) -> None:
    assert Engine(model_saying(), pages).get_prompts() == {}


def test_chunks_of_a_page_are_one_page_and_the_chunk_with_the_quote_is_cited(
    documents: Path,
) -> None:
    loaded = PaceReader().load_data(documents / "supplier-contract.pdf")
    chunks = SentenceSplitter(chunk_size=120, chunk_overlap=0).get_nodes_from_documents(loaded)
    assert len(chunks) > len(loaded)
    engine = Engine(model_saying("Sixty days [D1 p2]."), chunks)
    assert [p.number for p in engine.documents[0].pages] == [1, 2, 3, 4]
    response = engine.query("How long is the notice period?")
    assert response.metadata is not None
    cited = {c["node_id"]: c["quote"] for c in response.metadata["citations"] if c["verified"]}
    assert cited
    for source in response.source_nodes:
        quote = cited.get(source.node_id, "")
        assert quote in " ".join(source.node.get_content().split())


def test_pages_of_other_readers_are_put_together_by_their_file() -> None:
    def page(label: str, text: str) -> BaseNode:
        return Document(text=text, metadata={"file_path": "/x/a.pdf", "page_label": label})

    loose = [page("i", "Preface."), page("1", "One."), page("1", "More."), page("2", "Two.")]
    engine = Engine(model_saying("Two [D1 p3]."), [*loose, Document(text="A note.", id_="n")])
    report, note = engine.documents
    assert [(p.number, p.label, p.text) for p in report.pages] == [
        (1, "i", "Preface."),
        (2, "1", "One.\nMore."),
        (3, "2", "Two."),
    ]
    assert (report.title, report.source) == ("a.pdf", "/x/a.pdf")
    assert (note.title, [p.text for p in note.pages]) == ("Document 2", ["A note."])
    (source,) = engine.query("Two?").source_nodes
    assert source.node_id == loose[3].node_id


@pytest.mark.parametrize("number", ["0", "-1", "x", "², ", None, True, 1.5, [1]])
def test_page_numbers_that_are_none_leave_pages_as_they_came(number: Any) -> None:
    nodes = [
        TextNode(text=text, metadata={"document_id": "d", "page_number": given})
        for text, given in (("First.", 9), ("Second.", number))
    ]
    (document,) = Engine(model_saying(), nodes).documents
    assert [(p.number, p.text) for p in document.pages] == [(1, "First."), (2, "Second.")]


def test_a_node_that_comes_twice_is_read_once(pages: list[TextNode]) -> None:
    assert (
        Engine(model_saying(), [*pages, *pages]).documents
        == Engine(model_saying(), pages).documents
    )


def test_odd_characters_blank_pages_and_pages_out_of_order_are_read() -> None:
    nodes = [
        TextNode(text=text, metadata={"document_id": "d", "page_number": number, "title": "\udcff"})
        for number, text in ((3, "Third."), (1, ""), (2, "\ud800 [D1 p3] odd"))
    ]
    engine = Engine(model_saying("Odd [D1 p2]."), nodes)
    response = engine.query("Odd?")
    assert [source.node_id for source in response.source_nodes] == [nodes[2].node_id]
    assert response.metadata is not None
    assert response.metadata["receipt"]["pages_without_text"] == (("?", 1),)


async def test_many_async_queries_at_once_each_get_their_own_answer(pages: list[TextNode]) -> None:
    model = model_saying("One.", "Two.", "Three.")
    engine = Engine(model, pages)
    responses = await asyncio.gather(*(engine.aquery(q) for q in ("A?", "B?", "C?")))
    assert sorted(map(str, responses)) == ["One.", "Three.", "Two."]
    metadata = [response.metadata for response in responses]
    assert len({id(one) for one in metadata}) == 3
