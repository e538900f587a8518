"""Whatever a model, a file or a person writes, nothing of it is alive in the page or an export."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pacellm_rag.context.citations import Citation
from pacellm_rag_ui.export import export_markdown
from pacellm_rag_ui.safe_text import chip, display_name, plain_markdown, safe_markdown

EVIL = "https://evil.example/x.png"
ATTACKS = [
    # tags
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    f"<IMG SRC={EVIL}>",
    "<svg/onload=alert(1)>",
    "<!-- x --><b onmouseover=alert(1)>",
    "<?php x ?>",
    "<![CDATA[ <img src=x> ]]>",
    "</span></div><iframe src=//evil.example>",
    "<<img src=x>>",
    "<style>*{background:url(//evil.example)}</style>",
    '<div class="mermaid">graph TD</div>',
    "<details open ontoggle=alert(1)>",
    f"<a href='{EVIL}'>x</a>",
    "<\x00script>alert(1)</script>",
    "<\u202escript>",
    "<\ufeffscript>",
    "\ud800<img src=x>",
    "<[D1 p2]img src=x>",
    # pictures and links
    f"![t]({EVIL})",
    f"![a]( <{EVIL}> 'title' )",
    f"![a](\n{EVIL}\n)",
    f"![a\nb]({EVIL})",
    f"![a [n [e] s] t]({EVIL})",
    f"![![a](b)]({EVIL})",
    f"[![alt]({EVIL})](https://evil.example)",
    "![a](https://evil.example/x_(y).png)",
    f"!\\[a]({EVIL})",
    f"\\![a]({EVIL})",
    f"\\\\![a]({EVIL})",
    f"[a](\\<{EVIL}>)",
    f"![a][b]\n\n[b]: {EVIL}",
    f"[b]: <{EVIL}>\n\n![b] and ![b][] and [b]",
    f"[a]:\n{EVIL}\n\n[a]",
    f"[a\nb]: {EVIL}\n\n[a b]",
    f"> [a]: {EVIL}\n\n[a]",
    f"- [a]: {EVIL}\n\n![a]",
    f"[^1]: {EVIL}\n\n[^1]",
    f"[a]\r: {EVIL}\r\r[a]",
    f"[a]\x0b: {EVIL}\n\n[a]",
    f"[a]\u2028({EVIL})",
    f"[a]\ufeff({EVIL})",
    f"[a]\x01({EVIL})",
    f"[a]\u2066({EVIL})",
    "[x](javascript:alert(1))",
    "[x](JaVa\tScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](//evil.example)",
    "[x](/logout)",
    "[x](#cite/other/1/1)",
    "[x](mailto:a@evil.example)",
    f"[D1 p2]({EVIL})",
    f"![D1 p2]({EVIL})",
    f"![x] [D1 p2]({EVIL})",
    f"[x] [D1 p2]: {EVIL}\n\n[x]",
    f"![x[D1 p2]]({EVIL})",
    # addresses that become links by themselves
    "<https://evil.example>",
    "<a@evil.example>",
    "https://evil.example/?q=1",
    "HTTPS://EVIL.EXAMPLE",
    "www.evil.example",
    "**WWW.evil.example**",
    "ftp://evil.example",
    "x@evil.example",
    "http:[D1 p2]//evil.example",
    # entities
    f"&lt;img src=x&gt; &#60;img src=x&#62; &#91;x&#93;({EVIL})",
    f"&#x21;&#x5b;a]({EVIL})",
    f"[x]&#40;{EVIL})",
    # code that is not code
    f"```\n![x]({EVIL})\n<img src=x>",
    f"- ```\n![x]({EVIL})\n<img src=x>",
    f"> ```\n![x]({EVIL})\n<img src=x>",
    f"    ```\n![x]({EVIL})\n\n    ```\n<img src=x>",
    "1. ~~~\n<img src=x>\n~~~",
    "``` `\n<img src=x>\n```",
    "`<img src=x>`<img src=y>`",
    f"``![x]({EVIL})`",
    f"\\`![x]({EVIL})`",
    "a `\n<img src=x>\n` b",
    "a ` <img title='`'> `",
    # diagrams and formulas
    f"```mermaid\ngraph TD; A[<img src={EVIL}>]\n```",
    f"a```mermaid\ngraph TD; A[<img src={EVIL}>]\n```",
    "- ```mermaid\n  graph TD\n  ```",
    "> ```mermaid  \n> graph TD\n> ```",
    "1) ```Mermaid\n   graph TD\n   ```",
    "````\n```mermaid\ngraph TD\n```\n````",
    "~~~mermaid\ngraph TD\n~~~",
    "``[D1 p2]`mermaid\ngraph TD\n```",
    "$$\\href{https://evil.example}{x}$$",
    "$$\n\\includegraphics{https://evil.example/a}\n$$",
    # tables, headings, tasks
    f"| a | b |\n|---|---|\n| ![x]({EVIL}) | [y]({EVIL}) |",
    f"# ![x]({EVIL})",
    f"- [ ] ![x]({EVIL})",
]
SIGNS = [*"[]()!<>`\n\t \\&:|#=*_x\"'", "](", "]:", "![", "```", "~~~", "\n\n", "- ", "> ", "1. "]
MORE = ["&#93;", "mermaid", "$$", EVIL, "www.evil.example", "a@evil.example", "<img src=x>", "\x00"]
LINKS = [f"[a]: {EVIL}", f"![a]({EVIL})", "[D1 p2]", "**", "|--|", "\u202e", "\u200b", "\r", "<!--"]
FRAGMENTS = st.sampled_from([*SIGNS, *MORE, *LINKS, "    "])
TEXTS = st.lists(FRAGMENTS, max_size=30).map("".join) | st.text(max_size=200)
# What Markdown readers beyond markdown-it take for something alive.
LIVE = re.compile(
    r"<[A-Za-z/!?]|\]\(|\]\[|\]:|://|[wW]{3}\.\S|\S@[\w-]|\$\$"
    r"|```[ \t]*mermaid|[\x00\x7f\u202a-\u202e]"
)
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tokens(markdown: str) -> list[Token]:
    flat = []
    for token in READER.parse(markdown):
        flat += [token, *(token.children or ())]
    return flat


def assert_inert(markdown: str) -> None:
    alive = {"image", "link_open", "html_block", "html_inline"}
    assert not [token for token in tokens(markdown) if token.type in alive]
    assert not [token for token in tokens(markdown) if "mermaid" in token.info.lower()]
    assert not LIVE.search(markdown)
    markdown.encode()


def shown(markdown: str) -> str:
    """What a reader sees of it, in one line."""
    seen = ("text", "code_inline", "fence", "code_block", "text_special")
    pieces = [
        token.content if token.type in seen else " "
        for token in tokens(markdown)
        if token.type != "inline"
    ]
    return " ".join("".join(pieces).split())


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_an_answer_is_dead(attack: str) -> None:
    assert_inert(safe_markdown(attack))
    assert_inert(safe_markdown(f"The answer is {attack} [D1 p3]. More."))
    assert_inert(safe_markdown(attack, complete=False))
    assert_inert(safe_markdown(safe_markdown(attack)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_a_plain_text_is_dead_and_shown(attack: str) -> None:
    assert_inert(plain_markdown(attack))
    letters = re.sub(r"[^A-Za-z]", "", attack)
    assert re.sub(r"[^A-Za-z]", "", shown(plain_markdown(attack))) == letters


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("`<img src=x>``<img src=x>`")
@example("]``(https://evil.example)")
@example("```\n[```mermaid")
@example("``````mermaid` ```\tmermaid")
def test_no_answer_is_alive(text: str) -> None:
    assert_inert(safe_markdown(text))
    assert_inert(safe_markdown(text, complete=False))
    assert_inert(plain_markdown(text))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.text(max_size=20), TEXTS)
@example("`", "`", "`")
@example("<script>", "", '"><img src=x onerror=alert(1)>')
def test_a_chip_is_one_link_to_our_page_whatever_it_is_about(
    title: str, label: str, quote: str
) -> None:
    cited = {"title": title, "page": 3, "label": label, "quote": quote, "verified": False}
    html = chip(cited, "a/../'\"<b>", 2)
    link = "#cite/a%2F..%2F%27%22%3Cb%3E/3/2"
    whole = rf'<a class="cite unverified" href="{re.escape(link)}" title="[^"<>`]*">[^<>`\n]*</a>'
    assert re.fullmatch(whole, html)
    found = tokens(f"{safe_markdown(title)}\n\nSee {html}, {html}")
    alive = [t for t in found if t.type in ("image", "link_open", "html_block", "html_inline")]
    assert [t.content for t in alive] in ([*re.findall("<[^>]*>", html)] * 2, [])
    assert not LIVE.search(re.sub("</?a[ >]", "", html))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_an_export_is_dead(attack: str) -> None:
    turns = [
        Turn("user", attack),
        Turn("assistant", attack, [cited(title=attack, label=attack, quote=attack)]),
    ]
    text = export_markdown(attack, turns)
    notes = re.compile(r"^\[\^1\]: ", re.M)
    assert len(notes.findall(text)) == 1
    assert_inert(notes.sub("", text))


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, and **bold** ones. It's 5 < 6 & 7 > 3; $5 to $10 (net).",
        "# Head\n\n- one\n- two\n  - three\n\n1. first\n2. second",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "```\nx = a[0]\nif a < b: pass\n```",
        "> quoted\n\n---\n\n`code` and *this*",
        "See [1] and [sic]. Ünïcödé, 日本語, العربية 👩\u200d🚀",
        "",
    ],
)
def test_an_ordinary_answer_is_left_as_it_is(text: str) -> None:
    assert safe_markdown(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"See ![a chart]({EVIL}) here", "See a chart here"),
        ("See [the site](https://evil.example) now", "See the site (https://evil.example) now"),
        ("Use <b>bold</b> & <i>", "Use <b>bold</b> & <i>"),
        ("Mail x@y.example or see https://y.example", "Mail x@y.example or see https://y.example"),
        ("See [here](#top)", "See here"),
        ("`<b>` and `f(a[0](x))`", "< b> and f(a[0] (x))"),
        ("```html\n<b>\n```", "< b>"),
        ("Yes [D1 p2]. No [D1, p. 3].", "Yes. No."),
        ("a\x00b\x1bc\u202ed", "abcd"),
    ],
)
def test_a_reader_sees_what_was_written(text: str, seen: str) -> None:
    assert shown(safe_markdown(text)) == seen


def test_a_half_written_marker_is_held_back_until_the_end() -> None:
    for end in ("[", "[D", "[D1", "[D1 p", "[D1 p2", "[D1 p2]"):
        assert safe_markdown(f"It is so {end}", complete=False) == "It is so"
    assert safe_markdown("It is so [D") == "It is so [D"
    assert safe_markdown("Yes [D1 p2] and", complete=False).rstrip() == "Yes and"


@pytest.mark.parametrize(
    "text", ["```\ncode", "~~~python\ncode", "- ```\n  code", "> ```\n> code", "````\n```\ncode"]
)
def test_an_open_code_block_is_closed(text: str) -> None:
    after = tokens(safe_markdown(text) + "\n\nAfter")
    assert [t.content for t in after if t.type == "text"] == ["After"]
    assert "code" in "".join(t.content for t in after if t.type == "fence")


def test_long_and_monotonous_answers_cost_little_time() -> None:
    texts = ["[" * 50_000, "[a](" * 20_000, " " * 60_000, "\n" * 60_000, "`" * 50_000, "<" * 50_000]
    texts += ["> " * 30_000, "![a" * 20_000, "a " * 100_000, "1) " * 20_000, "\t \n" * 20_000]
    texts += ["[a](" + "b " * 20_000, "$" * 50_000, "@a" * 30_000]
    for text in texts:
        start = time.monotonic()
        safe_markdown(text)
        plain_markdown(text)
        display_name(text)
        assert time.monotonic() - start < 2, text[:10]


def test_a_question_is_shown_as_typed() -> None:
    assert plain_markdown("What's the total (net)? It was 5.5 %!") == (
        "What's the total (net)? It was 5.5 %!"
    )
    assert plain_markdown("one\ntwo\n\nthree") == "one  \ntwo\n\nthree"
    for text in ("1. one", "- one", "# one", "> one", "a_b_c *d*", "+ x", "~~no~~", "a | b", "==="):
        assert shown(plain_markdown(text)) == text
        kinds = {token.type for token in tokens(plain_markdown(text))}
        assert not kinds & {"em_open", "heading_open", "blockquote_open", "list_item_open"}
    assert "    code".replace(" ", "\u00a0") == plain_markdown("    code")


def test_a_chip_names_the_page_and_shows_the_quote() -> None:
    citation = Citation(0, "Report", 12, "12", "It rose by 4 %.", True, 0.9, "model")
    assert chip(citation, "doc_1", 1) == (
        '<a class="cite verified" href="#cite/doc_1/12/1" title="“It rose by 4 &#37;&#46;”">'
        "Report p&#46; 12</a>"
    )


def test_a_chip_says_what_is_doubtful() -> None:
    unverified = chip(cited(verified=False), "d", 1)
    assert 'class="cite unverified"' in unverified
    assert "not found on the page" in unverified
    labelled = chip(cited(page=6, label="iv"), "d", 1)
    assert "Report p&#46; iv</a>" in labelled
    assert "Page 6 of the file" in labelled
    assert "No words" in chip(cited(quote=" "), "d", 1)
    assert 'class="cite unverified"' in chip({"page": 1, "verified": 1}, "d", 1)
    assert len(chip(cited(title="t" * 9_000, quote="q" * 9_000, label="l" * 999), "d", 1)) < 900


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("report.pdf", "report.pdf"),
        ("re\u202efdp.exe", "re[U+202E]fdp.exe"),
        ("a\nb\tc\x00.pdf", "a[U+000A]b[U+0009]c[U+0000].pdf"),
        ("a\u200bb\u2066c\ufeff.pdf", "a[U+200B]b[U+2066]c[U+FEFF].pdf"),
        ("bad\udcff.pdf", "bad[U+DCFF].pdf"),
        ("tag\U000e0041.pdf", "tag[U+E0041].pdf"),
        ("report.pdf" + " " * 200 + ".exe", "report.pdf .exe"),
        ("a\u00a0\u3000b.pdf", "a b.pdf"),
        ("", "(no name)"),
        (" \u2003 ", "(no name)"),
        ("e" + "\u0301" * 50 + ".pdf", "e" + "\u0301" * 4 + ".pdf"),
        ("<img src=x>.pdf", "<img src=x>.pdf"),
        ("مي\u200cخواهم.pdf", "مي\u200cخواهم.pdf"),
        ("家族👩\u200d👧.pdf", "家族👩\u200d👧.pdf"),
    ],
)
def test_a_name_shows_what_is_hidden_in_it(name: str, seen: str) -> None:
    assert display_name(name) == seen


def test_a_long_name_keeps_its_beginning_and_its_ending() -> None:
    name = "Minutes of the annual meeting of the board, final version 3.pdf"
    assert display_name(name, 30) == "Minutes of the annua…ion 3.pdf"
    assert display_name(name, 200) == name


@given(st.text(max_size=300), st.integers(8, 60))
def test_a_name_is_one_line_of_the_length_allowed(name: str, longest: int) -> None:
    seen = display_name(name, longest)
    assert 0 < len(seen) <= max(longest, len("(no name)"))
    assert seen == " ".join(seen.split())
    assert seen.encode()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x1f]", seen)


@dataclass(frozen=True)
class Turn:
    role: str
    text: str
    citations: list[dict[str, Any]] = field(default_factory=list)
    time: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def cited(**values: Any) -> dict[str, Any]:
    usual = {"title": "Report", "page": 12, "label": "12", "quote": "It rose.", "verified": True}
    return {**usual, **values}


def test_an_export_holds_the_conversation_with_its_sources_as_footnotes() -> None:
    turns = [
        Turn("user", "Did it rise?\nReally?", time=1_700_000_000.0),
        Turn("assistant", "Yes, by **4 %**.", [cited(), cited(page=6, label="iv", verified=False)]),
        Turn("user", "And then?"),
        Turn("assistant", "It fell:\n\n- a lot", [cited()]),
        Turn("assistant", ""),
    ]
    assert export_markdown("Rise & fall", turns) == (
        "# Rise & fall\n\n"
        "## Question, 2023-11-14 22:13 UTC\n\n"
        "> Did it rise?\n> Really?\n\n"
        "Yes, by **4 %**. [^1] [^2]\n\n"
        "## Question\n\n"
        "> And then?\n\n"
        "It fell:\n\n- a lot\n\n[^1]\n\n"
        "(no words)\n\n"
        "[^1]: Report, p. 12: “It rose.”\n"
        "[^2]: Report, p. iv (page 6 of the file): “It rose.” "
        "(these words were not found on the page)\n"
    )


def test_an_empty_conversation_exports_its_title() -> None:
    assert export_markdown(" ", []) == "# Conversation\n"


def test_an_answer_can_not_point_at_our_footnotes() -> None:
    text = export_markdown("t", [Turn("assistant", "As said [^1] here", [cited()])])
    assert "As said \\[^1] here [^1]" in text
