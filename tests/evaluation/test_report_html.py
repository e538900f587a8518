from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from invented_runs import PACE, PLAIN, needles, outcome, run_of

from pacellm_rag.evaluation import sample_rows
from pacellm_rag.evaluation.html_report import html_report
from pacellm_rag.evaluation.html_text import html_text
from pacellm_rag.evaluation.sample_rows import MOST_CHARACTERS, MOST_SAMPLES, answered, listed
from pacellm_rag.evaluation.types import Outcome

VOID = {"meta", "input", "br", "link", "img"}
LOADING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "xlink:href"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>&amp; \x00\u202e\ud800"


class Page(HTMLParser):
    """Reads a page strictly: what opens closes, in order, and ids are unique."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.rows: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in {attrs}"
        self.tags.append((tag, found))
        if (name := found.get("id")) is not None:
            self.ids.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def page_of(answers: dict[str, list[Outcome]], **options: object) -> tuple[str, Page]:
    summary, outcomes = run_of(answers, **options)  # type: ignore[arg-type]
    page = html_report(summary, outcomes, ())
    return page, Page(page)


def test_the_page_is_well_formed_and_asks_nobody_for_anything() -> None:
    from pacellm_rag.evaluation.report import _pictures

    summary, outcomes = run_of(needles(0.1, lengths=3))
    page = html_report(summary, outcomes, _pictures(summary, outcomes))
    read = Page(page)
    for tag, attributes in read.tags:
        assert not LOADING & set(attributes), (tag, attributes)
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\s*\(|@import|@font-face", page)
    links = re.findall(r"https?://[^\"'<\s]*", page)
    assert set(links) == {"http://www.w3.org/2000/svg"}  # a name, which nothing loads


def test_the_policy_allows_the_pages_own_script_only() -> None:
    page, read = page_of(needles(lengths=1))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for _, a in read.tags if "http-equiv" in a)
    assert policy is not None
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_whatever_models_data_and_names_say_is_text() -> None:
    answers = {
        EVIL: [outcome(EVIL, EVIL, task=EVIL, question=EVIL, answers=[EVIL], more={EVIL: 0.5})],
        "pace": [outcome(EVIL, EVIL + "!", 0.0, task=EVIL, **{EVIL: EVIL * 3})],
    }
    page, read = page_of(
        answers,
        arms=({**PLAIN, "name": EVIL}, {**PACE, "pace": {"layers": EVIL}}),
        model=EVIL,
        notes={EVIL: {EVIL: EVIL}},
    )
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in read.tags}
    assert "<script>alert" not in page
    assert "\x00" not in page
    assert "\u202e" not in page
    page.encode("utf-8")
    assert "</script><script>alert(1)" in read.text


def test_a_sample_shows_question_wanted_facts_and_each_arms_answer_and_score() -> None:
    answers = {
        "plain": [outcome("s1", "in Rome", 0.25, question="Where?", wanted=["Paris", "at home"])],
        "pace": [outcome("s1", "in Paris", 0.75, question="Where?", wanted=["Paris", "at home"])],
    }
    _, read = page_of(answers, arms=(PLAIN, PACE))
    for words in ("Where?", "Paris | at home", "in Rome", "in Paris", "25.0", "75.0 \u25b2"):
        assert words in read.text
    row = next(a for tag, a in read.tags if tag == "tr" and "data-is" in a)
    assert row["data-is"] == "better-1"


def test_what_was_not_answered_or_empty_or_unscored_is_said() -> None:
    answers = {
        "plain": [outcome("a", "  "), Outcome("b", "t", "x", {}, 5, 3, 0, 1, 0.5, {"answers": []})],
        "pace": [outcome("a")],
    }
    _, read = page_of(answers, arms=(PLAIN, PACE))
    for words in ("no words", "not answered", "not scored", "(nothing)", "5 tokens, 3 left out"):
        assert words in read.text


def test_facts_that_differ_stand_with_the_arm() -> None:
    answers = {
        "plain": [outcome("a", kind="x", cited="page 1")],
        "pace": [outcome("a", kind="x", cited="page 2")],
    }
    page, _ = page_of(answers, arms=(PLAIN, PACE))
    row = page[page.index('<tr data-task="single"') :]
    shared, plain, pace = re.split(r"<td ", row)[:3]
    assert "page" not in shared
    assert "page 1" in plain
    assert "page 2" in pace
    assert row.count(">x<") == 1


def test_long_texts_are_cut_and_say_so() -> None:
    answers = {"plain": [outcome("a", "word " * MOST_CHARACTERS)]}
    page, read = page_of(answers, arms=(PLAIN,))
    assert f"({4 * MOST_CHARACTERS:,} characters more, in samples.jsonl)" in read.text
    assert len(page) < 40_000


def test_a_single_arm_is_reported_without_comparison() -> None:
    _, read = page_of({"plain": [outcome("a"), outcome("b")]}, arms=(PLAIN,))
    assert "plain is the only arm" in read.text


def many(differing: set[int], count: int) -> list[sample_rows.AnsweredSample]:
    pairs = [("plain", outcome(str(i), score=0.5)) for i in range(count)]
    pairs += [("pace", outcome(str(i), score=1.0 if i in differing else 0.5)) for i in range(count)]
    return answered(["plain", "pace"], pairs, "recall")


def test_up_to_the_limit_every_sample_is_listed() -> None:
    samples = many(set(), MOST_SAMPLES)
    assert listed(samples) == (samples, "")


def test_too_many_samples_are_left_out_with_a_note_and_differing_ones_stay() -> None:
    differing = set(range(MOST_SAMPLES, MOST_SAMPLES + 100))
    kept, note = listed(many(differing, MOST_SAMPLES + 200))
    names = [int(sample.any.sample) for sample in kept]
    assert names == [*range(MOST_SAMPLES - 100), *sorted(differing)]
    assert note.startswith("1,000 of 1,200 samples are listed")
    assert "200 are left out, 0 of them with different scores" in note


def test_too_many_differing_samples_are_thinned_evenly() -> None:
    kept, note = listed(many(set(range(3000)), 3100))
    names = [int(sample.any.sample) for sample in kept]
    assert names == list(range(0, 3000, 3))
    assert "2,100 are left out, 2,000 of them with different scores" in note


def test_the_note_stands_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_rows, "MOST_SAMPLES", 10)
    page, read = page_of(needles(0.1, lengths=1))
    assert "10 of 22 samples are listed" in read.text
    assert page.count("<tr data-task=") == 10


def test_samples_come_in_the_order_of_the_run_and_unknown_arms_are_passed_over() -> None:
    pairs = [("plain", outcome("b")), ("plain", outcome("a")), ("other", outcome("c"))]
    found = answered(["plain", "pace"], pairs, "recall")
    assert [sample.any.sample for sample in found] == ["b", "a"]
    assert found[0].changes() == ("",)


def test_equal_scores_with_other_words_are_told_from_equal_answers() -> None:
    pairs = [
        ("plain", outcome("a", "one")), ("pace", outcome("a", "two")),
        ("plain", outcome("b", "one")), ("pace", outcome("b", "one")),
    ]  # fmt: skip
    found = answered(["plain", "pace"], pairs, "recall")
    assert [sample.changes() for sample in found] == [("reworded",), ("same",)]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("\x00\x1b\x85\ud800\u2066", "\ufffd" * 5),
        ("שלום 漢字 🙂", "שלום 漢字 🙂"),
        (None, "None"),
    ],
)
def test_text_in_html_is_what_it_was_as_far_as_html_can_hold_it(text: object, html: str) -> None:
    assert html_text(text) == html
