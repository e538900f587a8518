from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_doubles import Site, last

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.documents import Document, Page
from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel, WordTokenizer
from pacellm_rag_ui.chosen_documents import cut_pages
from pacellm_rag_ui.library import LibraryError
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.reading import PageProgress, page_ends, progress_status

SHORT = PageSettings(options=GenerationOptions(max_new_tokens=50))


def _words(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(["apple", "Pear.", "fig", "(date)", "x-y"]) for _ in range(count))


def test_the_meter_counts_what_is_sent(tmp_path: Path) -> None:
    model = ScriptedModel(["Yes."])
    with Site(tmp_path, model, SHORT) as site:
        page = site.page()
        for number in range(3):
            site.add(page, f"{number}.txt", *[_words(30, number * 10 + i) for i in range(4)])
        last(site.handlers.ask(page, "Before?"))
        meter = site.handlers.meter(page, "When does it end?")
        last(site.handlers.ask(page, "When does it end?"))
        assert meter.total == len(model.prompts[-1]) + 50
        assert meter.total == sum(d.tokens or 0 for d in meter.documents) + meter.other_tokens + 50
        assert (meter.window, meter.room) == (8192, 8192 - meter.total)
        assert (meter.fits, meter.advice, meter.untick, meter.keep_pages) == (True, "", (), None)
        assert meter.known_tokens > 300


def test_documents_that_are_not_ticked_are_counted_but_not_added(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(), SHORT) as site:
        page = site.page()
        one, two = (site.add(page, f"{n}.txt", _words(40, n)) for n in range(2))
        both = site.handlers.meter(page)
        site.handlers.choose(page, two.id, False)
        alone = site.handlers.meter(page)
        assert [line.chosen for line in alone.documents] == [True, False]
        assert alone.documents[1].tokens == both.documents[1].tokens
        assert alone.total < both.total
        assert [line.id for line in alone.documents] == [one.id, two.id]


def test_tokens_are_counted_anew_for_another_tokenizer(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(), SHORT) as site:
        page = site.page()
        document = site.add(page, "a.txt", _words(40))
        site.handlers.choose(page, document.id, False)
        before = site.handlers.meter(page).documents[0].tokens
        site.model = ScriptedModel()

        class Letters(WordTokenizer):
            def count_tokens(self, text: str) -> int:
                return 10 * len(text)

        site.model.tokenizer = Letters(name="letters")
        after = site.handlers.meter(page).documents[0].tokens
        assert before is not None
        assert after is not None
        assert after > 2 * before


def _apply(site: Site, page: Any, meter: Any, how: str) -> None:
    if how == "untick":
        for document_id in meter.untick:
            site.handlers.choose(page, document_id, False)
    else:
        document_id, first, final = meter.keep_pages
        site.handlers.keep_pages(page, document_id, (first, final))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.75, 0.95])
@pytest.mark.parametrize("how", ["untick", "keep"])
@pytest.mark.parametrize("seed", range(3))
def test_advice_is_enough_and_leaves_as_much_as_it_can(
    tmp_path: Path, seed: int, how: str, share: float
) -> None:
    """`share`: of the documents together (or of the largest one, to cut it) that is too much."""
    draw = random.Random(seed)
    model = ScriptedModel(["Yes."], context_window=100_000)
    with Site(tmp_path, model, SHORT) as site:
        page = site.page()
        for number in range(draw.randint(2, 4)):
            pages = [_words(draw.randint(0, 50), seed + i) for i in range(draw.randint(1, 6))]
            site.add(page, f"{number}.txt", *pages, _words(40, 99 + number))
        site.add(page, "large.txt", *[_words(40, i) for i in range(30)])
        question = "What is it?"
        whole = site.handlers.meter(page, question)
        sizes = sorted(line.tokens or 0 for line in whole.documents)
        over = int(share * (sizes[-1] if how == "keep" else sum(sizes) - sizes[0]))
        model.context_window = model.tokenizer.context_window = whole.total - over
        before = site.handlers.meter(page, question)
        assert (before.fits, before.room) == (False, -over)
        _apply(site, page, before, how)
        after = site.handlers.meter(page, question)
        assert after.fits
        assert last(site.handlers.ask(page, question)).state == "done"
        if how == "keep":
            assert before.keep_pages is not None
            document_id, first, final = before.keep_pages
            site.handlers.keep_pages(page, document_id, (first, min(final + 2, 30)))
            assert not site.handlers.meter(page, "What is it?").fits, "two more are too many"
        else:
            for kept in before.untick if len(before.untick) > 1 else ():
                for document_id in before.untick:
                    site.handlers.choose(page, document_id, document_id == kept)
                if kept == before.untick[-1]:
                    assert not site.handlers.meter(page, question).fits, "all of them are needed"


def test_advice_names_documents_and_pages(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(context_window=700), SHORT) as site:
        page = site.page()
        site.add(page, "Letter.txt", _words(40))
        big = site.add(page, "Report.txt", *[_words(40, i) for i in range(12)])
        meter = site.handlers.meter(page)
        assert meter.untick == (big.id,)
        assert meter.keep_pages is not None
        assert (meter.keep_pages[0], meter.keep_pages[1]) == (big.id, 1)
        assert meter.advice == (
            f"{-meter.room:,} tokens too many: untick “Report”, or keep pages 1 to "
            f"{meter.keep_pages[2]} of “Report”."
        )
        assert last(site.handlers.ask(page, "What?")).error.endswith("of “Report”.")


def test_advice_goes_on_from_the_pages_kept(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(context_window=600), SHORT) as site:
        page = site.page()
        document = site.add(page, "a.txt", *[_words(40, i) for i in range(20)])
        site.handlers.keep_pages(page, document.id, (9, 18))
        keep = site.handlers.meter(page).keep_pages
        assert keep is not None
        assert keep[1] == 9
        assert 9 <= keep[2] < 18


def test_a_long_conversation_is_what_to_leave(tmp_path: Path) -> None:
    model = ScriptedModel([_words(200)], context_window=900)
    with Site(tmp_path, model) as site:
        page = site.page()
        site.handlers.set_options(page, answer_tokens=220)
        site.add(page, "a.txt", _words(20))
        assert last(site.handlers.ask(page, "Tell me.")).state == "done"
        meter = site.handlers.meter(page, "More.")
        assert not meter.fits
        assert "begin a new chat" in meter.advice
        site.handlers.new_chat(page)
        assert site.handlers.meter(page, "More.").fits


def test_a_question_that_is_too_long_alone_is_told_so(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(context_window=400), SHORT) as site:
        page = site.page()
        site.add(page, "a.txt", "One.")
        meter = site.handlers.meter(page, _words(400))
        assert (meter.untick, meter.keep_pages) == ((), None)
        assert "shorten the question" in meter.advice
        assert "new chat" not in meter.advice


def test_short_memory_is_red_as_well_and_its_advice_is_enough(tmp_path: Path) -> None:
    model = ScriptedModel(free_bytes=1100)  # a byte a token
    with Site(tmp_path, model, SHORT) as site:
        page = site.page()
        site.add(page, "a.txt", *[_words(40, i) for i in range(3)])
        site.add(page, "b.txt", *[_words(40, i) for i in range(9)])
        meter = site.handlers.meter(page, "What?")
        assert (meter.fits, meter.room > 0) == (False, True)
        assert "memory" in meter.advice
        assert "GiB" not in meter.advice
        _apply(site, page, meter, "keep")
        assert site.handlers.meter(page, "What?").fits


def test_without_documents_the_meter_says_what_to_do(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(), SHORT) as site:
        page = site.page()
        empty = site.handlers.meter(page)
        assert (empty.fits, empty.documents, empty.window) == (False, (), 8192)
        assert "Add one" in empty.message
        document = site.add(page, "a.txt", _words(30))
        site.handlers.choose(page, document.id, False)
        unticked = site.handlers.meter(page)
        assert "Tick" in unticked.message
        assert unticked.documents[0].tokens


def test_without_a_model_the_meter_says_why(tmp_path: Path) -> None:
    def load() -> Any:
        raise ModelError("There is no model here. Install one.")

    with Site(tmp_path, ScriptedModel(), SHORT) as site:
        page = site.page()
        site.add(page, "a.txt", _words(30))
        site.load = load
        meter = site.handlers.meter(page)
        assert (meter.fits, meter.window) == (False, 0)
        assert meter.message == "There is no model here. Install one."
        assert meter.documents[0].tokens, "what was counted when it was added"


# page ranges


def _document(pages: int) -> Document:
    return Document(
        "sha256:x", "T", tuple(Page(i, f"L{i}", f"text {i}") for i in range(1, pages + 1))
    )


def test_a_page_range_cuts_the_document_and_keeps_numbers_and_labels() -> None:
    cut = cut_pages(_document(10), (3, 5))
    assert [(page.number, page.label) for page in cut.pages] == [(3, "L3"), (4, "L4"), (5, "L5")]
    assert (cut.id, cut.title) == ("sha256:x", "T")
    assert cut_pages(_document(10), None) == _document(10)
    assert len(cut_pages(_document(10), (8, 99)).pages) == 3
    with pytest.raises(ConfigurationError, match="11 to 12"):
        cut_pages(_document(10), (11, 12))


def test_only_the_pages_kept_are_sent(tmp_path: Path) -> None:
    model = ScriptedModel(["The fig [D1 p3]."])
    with Site(tmp_path, model, SHORT) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.", "A pear.", "The fig.", "A date.")
        site.handlers.keep_pages(page, document.id, (2, 3))
        view = last(site.handlers.ask(page, "What?"))
        assert view.citations[0].page == 3
        text = pack_context([cut_pages(site.library.pages("ann", document.id), (2, 3))]).text
        expected = model.tokenizer.encode_messages(
            build_messages(
                pack_context([cut_pages(site.library.pages("ann", document.id), (2, 3))]), "What?"
            )
        )
        assert model.prompts[0] == expected.token_ids
        assert "apple" not in text
        assert view.pages_total == 2


def test_a_change_of_pages_is_read_anew(tmp_path: Path) -> None:
    model = ScriptedModel(["Yes."])
    with Site(tmp_path, model, SHORT) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.", "A pear.")
        last(site.handlers.ask(page, "What?"))
        site.handlers.keep_pages(page, document.id, (1, 1))
        last(site.handlers.ask(page, "What?"))
        pear = model.tokenizer.encode_text("pear").token_ids[0]
        assert [pear in prompt for prompt in model.prompts] == [True, False]


@pytest.mark.parametrize("pages", [(0, 1), (3, 2), (5, 9), (-1, 2)])
def test_pages_that_are_not_there_are_refused(tmp_path: Path, pages: tuple[int, int]) -> None:
    with Site(tmp_path, ScriptedModel(), SHORT) as site:
        page = site.page()
        document = site.add(page, "a.txt", "An apple.", "A pear.")
        with pytest.raises(LibraryError):
            site.handlers.keep_pages(page, document.id, pages)
        assert site.handlers.documents(page)[0].page_range is None


def test_page_ends_rise_and_end_within_the_prompt() -> None:
    document = _document(7)
    blank = replace(document, pages=(*document.pages[:3], Page(4, "4", ""), *document.pages[4:]))
    packed = pack_context([blank, document])
    tokenizer = WordTokenizer()
    ends = page_ends(packed, tokenizer)
    assert len(ends) == 14
    assert ends == sorted(ends)
    assert ends[-1] <= len(tokenizer.encode_messages(build_messages(packed, "A")).token_ids)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, ""),
        (0.4, ""),
        (3.4, ", about 3 s left"),
        (21.0, ", about 20 s left"),
        (100.0, ", about 2 min left"),
        (9000.0, ", about 2.5 h left"),
    ],
)
def test_the_status_is_one_line_for_people(seconds: float | None, told: str) -> None:
    progress = PageProgress(0, 36, 112, 41.2, seconds)
    assert progress_status(progress) == f"Reading page 37 of 112, 41 %{told}"
    done = PageProgress(0, 112, 112, 100.0, 0.0)
    assert progress_status(done) == "Reading page 112 of 112, 100 %"
