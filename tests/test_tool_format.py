"""However an answer is cut into pieces, its text and its calls are the same."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pacellm_rag.messages import Message, Tool, ToolCall
from pacellm_rag.tool_format import IN_WORDS, CallPiece, ToolCallParser, ToolFormat, tools_in_words

LLAMA = ToolFormat('{"name": "', '", "parameters": ', "}")
MISTRAL = ToolFormat('[TOOL_CALLS] [{"name": "', '", "arguments": ', "}]", '}, {"name": "')
ARGS = ToolFormat("[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]")
FORMS = [IN_WORDS, LLAMA, MISTRAL, ARGS]
_SIGNS = [*'ab{}[]":,\\ \n<>/é😀', "<tool_call>", "[TOOL_CALLS]", '{"name": "', "}\n</tool_call>"]
NASTY = st.lists(st.sampled_from(_SIGNS), max_size=6).map("".join)
VALUES = st.recursive(
    NASTY | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NASTY, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from(["f", "get_it", "ünï"]),
        st.dictionaries(NASTY, VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)
Parted = tuple[str, list[list[str]], bool]


def parted(form: ToolFormat, pieces: list[str]) -> Parted:
    """Text, calls with names and arguments, and whether the last is cut off."""
    parser, text, calls = ToolCallParser(form), "", list[list[str]]()
    for piece in pieces:
        said, parts = parser.feed(piece)
        text += said
        for part in parts:
            if part.name is not None:
                assert part.index == len(calls)
                calls.append([part.name, "", ""])
            calls[part.index][1] += part.arguments
            calls[part.index][2] += "!" * part.complete
    text += parser.flush()
    return text, calls, parser.cut_off


@given(
    st.sampled_from(FORMS),
    st.text("ab <[\n", max_size=12),
    CALLS,
    st.lists(st.integers(0, 400), max_size=12),
)
def test_what_is_written_is_read_however_it_is_cut(
    form: ToolFormat, before: str, calls: list[ToolCall], cuts: list[int]
) -> None:
    if form.between is None:
        calls = calls[:1]
    whole = before + form.write(calls)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
    text, found, cut_off = parted(form, pieces)
    assert text == before
    assert [(name, json.loads(arguments)) for name, arguments, _ in found] == [
        (call.name, call.arguments) for call in calls
    ]
    assert all(ends == "!" for _, _, ends in found)
    assert not cut_off


@given(
    st.sampled_from(FORMS),
    st.lists(st.sampled_from([*'{}[]":ab\\\n ', "<tool_call>", *(f.before for f in FORMS),
                              *(f.middle for f in FORMS), *(f.after for f in FORMS)]), max_size=9),
)  # fmt: skip
@example(FORMS[0], [FORMS[0].before, FORMS[0].middle])
def test_cuts_change_nothing_in_malformed_answers_either(
    form: ToolFormat, parts: list[str]
) -> None:
    whole = "".join(parts)
    assert parted(form, [whole]) == parted(form, list(whole)) == parted(form, parts)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_may_end_anywhere(form: ToolFormat) -> None:
    call = ToolCall("f", {"a": '}"]\\', "b": [{}]})
    whole = "Hi " + form.write([call])
    for end in range(len(whole) + 1):
        text, calls, cut_off = parted(form, [whole[:end]])
        begun = end >= len("Hi " + form.before)
        assert text == (whole[: min(end, 3)] if begun else whole[:end])
        complete = bool(calls) and calls[0][2] == "!"
        assert cut_off == (begun and not complete)


@pytest.mark.parametrize("text", ["<", "<tool_cal", "a < b", "<tool_call>\n{", "{[}]", "\n", ""])
def test_what_merely_begins_like_a_mark_is_text(text: str) -> None:
    assert parted(IN_WORDS, list(text)) == (text, [], False)
    assert parted(IN_WORDS, [f"{text}!"]) == (f"{text}!", [], False)


def test_text_is_given_out_as_soon_as_it_can_be_no_mark() -> None:
    parser = ToolCallParser(IN_WORDS)
    assert parser.feed("one <") == ("one ", [])
    assert parser.feed("b> two") == ("<b> two", [])


def test_arguments_are_given_out_piece_by_piece() -> None:
    parser = ToolCallParser(IN_WORDS)
    parser.feed('<tool_call>\n{"name": "f", "argum')
    assert parser.feed('ents": {"a": 1')[1] == [
        CallPiece(0, name="f"),
        CallPiece(0, arguments='{"a": 1'),
    ]
    assert parser.feed("}}\n")[1] == [CallPiece(0, arguments="}", complete=True)]


def test_what_follows_calls_is_left_out() -> None:
    whole = IN_WORDS.write([ToolCall("f", {})]) + "\nAnd then I thought"
    assert parted(IN_WORDS, list(whole)) == ("", [["f", "{}", "!"]], False)


def test_tools_calls_and_results_are_told_in_words_in_place() -> None:
    tool = Tool("f", 'it\'s "so" é', {"type": "object"})
    call = ToolCall("f", {"é": 1}, "id")
    turns = [
        Message("system", "Documents."),
        Message("user", "?"),
        Message("assistant", "Let me see.", (call,)),
        Message("tool", "42", tool_call_id="id", name="f"),
    ]
    told = tools_in_words(turns, [tool])
    assert [m.role for m in told] == ["system", "user", "assistant", "user"]
    assert told[0].content.startswith("Documents.\n\n")
    assert '"description": "it\'s \\"so\\" é"' in told[0].content
    assert told[2].content == "Let me see.\n" + IN_WORDS.write([call])
    assert "42" in told[3].content
    assert tools_in_words(turns[1:2], [tool])[0].role == "system"
    assert tools_in_words(turns[:2], []) == turns[:2]
    assert tools_in_words([], []) == []
