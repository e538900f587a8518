from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import CancelledError, ConfigurationError, ContextOverflowError
from pacellm_rag.protocols import GenerationOptions, Message, ReadProgress, TextModel
from pacellm_rag.reader import DocumentReader
from pacellm_rag.testing import ScriptedModel

REPORT = Document(
    "a",
    "Report",
    (
        Page(1, "i", "The chair is Maria Lund. She took office in spring."),
        Page(2, "1", "Revenue rose to 412 million."),
        Page(3, "2", ""),
    ),
)
CONTRACT = Document("b", "Contract", (Page(1, "1", "The notice period is ninety days."),))


def reader(*answers: str, **options: object) -> tuple[DocumentReader, ScriptedModel]:
    model = ScriptedModel(answers or ("Yes.",), **options)  # type: ignore[arg-type]
    return DocumentReader(model, [REPORT, CONTRACT]), model


def test_an_answer_comes_with_its_page_its_quote_and_its_usage() -> None:
    asked, model = reader("ninety days [D2 p1]")
    answer = asked.ask("What is the notice period?")
    assert answer.text == "ninety days"
    first = answer.citations[0]
    assert (first.title, first.page, first.verified) == ("Contract", 1, True)
    assert first.quote == "The notice period is ninety days."
    usage = answer.usage
    assert usage.prompt_tokens == usage.tokens_read + usage.tokens_reused == len(model.prompts[0])
    assert usage.completion_tokens == 4
    assert answer.finish_reason == "stop"
    assert 0 <= answer.timings.first_token <= answer.timings.total


def test_documents_are_read_once_for_many_questions() -> None:
    asked, model = reader("one", "two", "three")
    answers = [asked.ask(question) for question in ("First?", "Second?", "Third?")]
    assert [a.text for a in answers] == ["one", "two", "three"]
    assert len(model.prefills) == 1
    for answer in answers:
        assert answer.usage.tokens_reused == len(model.prefills[0])
        assert answer.usage.tokens_read < 40


def test_the_documents_come_first_and_the_question_last() -> None:
    asked, model = reader()
    asked.ask("Is it so?")
    documents = model.prefills[0]
    rest = model.prompts[0][len(documents) :]
    assert model.prompts[0][: len(documents)] == documents
    page, question = (_words(model, text) for text in ("ninety days", "Is it so?"))
    assert _contains(documents, page)
    assert not _contains(documents, question)
    assert _contains(rest, question)
    assert not _contains(rest, page)


def _words(model: ScriptedModel, text: str) -> tuple[int, ...]:
    """The tokens of a text alone, without the turn's marks around it."""
    return model.tokenizer.encode_messages([Message("user", text)]).token_ids[4:-5]


def _contains(tokens: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    size = len(wanted)
    return any(tokens[i : i + size] == wanted for i in range(len(tokens) - size + 1))


def test_the_receipt_names_what_was_read_and_what_has_no_text() -> None:
    asked, model = reader()
    assert asked.receipt is None
    receipt = asked.read()
    assert (receipt.documents, receipt.pages) == (2, 3)
    assert receipt.pages_without_text == (("Report", 3),)
    assert receipt.tokens == len(model.prefills[0])
    assert receipt.tokens_per_second > 0
    assert asked.read() is receipt is asked.receipt


def test_the_state_of_what_was_read_is_there_until_it_is_let_go() -> None:
    asked, model = reader()
    assert asked.state is None
    asked.ask("Who?")
    state = asked.state
    assert state is not None
    assert tuple(state.token_ids) == model.prefills[0]
    asked.ask("When?")
    assert asked.state is state
    asked.close()
    assert asked.state is None


def test_progress_is_told_while_reading() -> None:
    asked, _ = reader(window=20)
    seen: list[ReadProgress] = []
    asked.read(progress=seen.append)
    assert seen[0].tokens_done == 0
    assert seen[-1].tokens_done == seen[-1].tokens_total


def test_a_stream_gives_the_pieces_and_then_the_answer() -> None:
    asked, _ = reader("Maria Lund is the chair [D1 p1].")
    stream = asked.stream("Who is the chair?")
    pieces = list(stream)
    assert "".join(pieces) == stream.text == "Maria Lund is the chair [D1 p1]."
    assert stream.answer.text == "Maria Lund is the chair."
    assert stream.answer is stream.answer


def test_asking_for_the_answer_reads_the_stream_to_its_end() -> None:
    asked, _ = reader("one two three")
    stream = asked.stream("Zzz?")
    next(stream)
    assert stream.answer.text == "one two three"


def test_streaming_and_asking_agree() -> None:
    streamed, _ = reader("ninety days")
    plain, _ = reader("ninety days")
    stream = streamed.stream("What is the notice period?")
    for _ in stream:
        pass
    answer = plain.ask("What is the notice period?")
    assert stream.answer.text == answer.text
    assert stream.answer.citations == answer.citations
    assert stream.answer.usage == answer.usage


def test_leaving_a_stream_early_stops_the_model_and_keeps_what_came() -> None:
    asked, model = reader("one two three")
    with asked.stream("Zzz?") as stream:
        assert next(stream) == "one"
    assert model.generations[0].closed
    assert (stream.answer.text, stream.answer.finish_reason) == ("one", "closed")


def test_a_conversation_keeps_the_documents_prefix() -> None:
    asked, model = reader("Maria Lund", "in spring")
    first = asked.ask("Who is the chair?")
    history = [Message("user", first.question), Message("assistant", first.text)]
    second = asked.ask("Since when?", history=history)
    assert second.usage.tokens_reused == len(model.prefills[0])
    length = len(model.prompts[0]) - 3
    assert model.prompts[1][:length] == model.prompts[0][:length]


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    asked, model = reader(context_window=120)
    with pytest.raises(ContextOverflowError, match="Contract"):
        asked.ask("Who?", options=GenerationOptions(max_new_tokens=50))
    with pytest.raises(ContextOverflowError):
        asked.read()
    assert model.prefills == model.prompts == []


def test_a_long_question_is_refused_where_the_documents_alone_fit() -> None:
    asked, model = reader(context_window=400)
    options = GenerationOptions(max_new_tokens=10)
    asked.options = options
    asked.read()
    with pytest.raises(ContextOverflowError):
        asked.ask("word " * 300)
    assert model.prompts == []


def test_the_plan_is_what_the_answer_then_uses() -> None:
    asked, _ = reader("ok")
    plan = asked.plan("Who is the chair?", options=GenerationOptions(max_new_tokens=7))
    answer = asked.ask("Who is the chair?")
    assert plan.prompt_tokens == answer.usage.prompt_tokens
    assert plan.answer_tokens == 7


def test_cancelling_while_reading_keeps_nothing() -> None:
    asked, model = reader(window=20)
    cancel = threading.Event()

    def stop(progress: ReadProgress) -> None:
        if progress.tokens_done:
            cancel.set()

    with pytest.raises(CancelledError):
        asked.ask("Who?", progress=stop, cancel=cancel)
    assert asked.receipt is None
    cancel.clear()
    assert asked.ask("Who?", cancel=cancel).text == "Yes."
    assert len(model.prefills) == 1


def test_cancelling_while_answering_raises_in_the_loop() -> None:
    asked, _ = reader("one two three")
    cancel = threading.Event()
    stream = asked.stream("Who?", cancel=cancel)
    next(stream)
    cancel.set()
    with pytest.raises(CancelledError):
        list(stream)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        reader()[0].ask(question)


def test_no_documents_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        DocumentReader(ScriptedModel(), [])


def test_attention_is_asked_for_only_when_citing() -> None:
    asked, _ = reader("a tenfold gain", attention=[0.0, 0.0, 1.0, 0.0])
    assert asked.ask("Zzz?").citations[0].source == "attention"
    assert asked.ask("Zzz?", cite=False).citations == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"stop": "END"},
        {"stop": ("",)},
    ],
)
def test_options_that_can_not_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        GenerationOptions(**wrong)  # type: ignore[arg-type]


def test_the_scripted_model_is_a_text_model() -> None:
    model: TextModel = ScriptedModel()
    assert model.name == "scripted"


def test_reading_with_a_scripted_model_needs_no_torch() -> None:
    code = (
        "import sys, pacellm_rag.reader, pacellm_rag.testing\n"
        "from pacellm_rag import Document, DocumentReader, Page\n"
        "from pacellm_rag.testing import ScriptedModel\n"
        "d = Document('x', 'T', (Page(1, '1', 'The sky is blue.'),))\n"
        "print(DocumentReader(ScriptedModel(['blue']), [d]).ask('Sky?').citations[0].page)\n"
        "assert not {'torch', 'transformers', 'pypdf'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
