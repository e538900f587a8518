"""Rows of InfiniteBench: what their prompts say, and what is accepted."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench_prompts import PROMPTS
from pacellm_rag.evaluation.infinitebench_tasks import (
    TASKS,
    Row,
    fill_prompt,
    parse_tasks,
    prompt_turns,
    read_row,
)

OPTIONS = ["one", "two", "three", "four"]

# BLAKE2b of the official templates, their {question} called {input}, options in lower case.
# GPT-4 got the bare expression for math_calc (create_prompt), whatever its template says.
_DIGESTS = {
    ("gpt4", "passkey"): "b49a52b10712c374",
    ("gpt4", "number_string"): "5e5463147422b9eb",
    ("gpt4", "kv_retrieval"): "a60982a2dcbaf53e",
    ("gpt4", "longbook_qa_eng"): "c8f9e5992e9235d3",
    ("gpt4", "longbook_choice_eng"): "dfb57a2215e59311",
    ("gpt4", "longbook_sum_eng"): "1e2ebc8619727cbd",
    ("gpt4", "longbook_qa_chn"): "d9cf9a6d45644228",
    ("gpt4", "math_find"): "5d73709ed1362b2f",
    ("gpt4", "code_run"): "99f45ee94770faaf",
    ("gpt4", "code_debug"): "34eca5eee8d4d670",
    ("gpt4", "longdialogue_qa_eng"): "2b0bed4bdbda7088",
    ("yarn_mistral", "passkey"): "d3010f66d65e6344",
    ("yarn_mistral", "number_string"): "fe280edd4a5f411b",
    ("yarn_mistral", "kv_retrieval"): "a60982a2dcbaf53e",
    ("yarn_mistral", "longbook_sum_eng"): "2c0432f2461301aa",
    ("yarn_mistral", "longbook_choice_eng"): "90f12320cf172845",
    ("yarn_mistral", "longbook_qa_eng"): "50083d71bcb1d1bf",
    ("yarn_mistral", "longbook_qa_chn"): "4a905cb69ec10bca",
    ("yarn_mistral", "math_find"): "5d73709ed1362b2f",
    ("yarn_mistral", "math_calc"): "88a619badbac33b6",
    ("yarn_mistral", "code_run"): "b318c7f9eb22124e",
    ("yarn_mistral", "code_debug"): "5d4aa15938f435f3",
    ("yarn_mistral", "longdialogue_qa_eng"): "2ddbf451fcac3769",
}


def test_the_prompts_are_the_official_ones_to_the_letter() -> None:
    digests = {
        (name, task): hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        for name, prompts in PROMPTS.items()
        for task, text in prompts.items()
    }
    assert digests.pop(("gpt4", "math_calc"))
    assert PROMPTS["gpt4"]["math_calc"] == "{context}"
    assert digests == _DIGESTS


@pytest.mark.parametrize("prompts", list(PROMPTS))
def test_every_set_has_a_prompt_for_every_task(prompts: str) -> None:
    assert set(PROMPTS[prompts]) == set(TASKS)


def test_answers_are_as_long_as_in_the_official_script() -> None:
    assert {task.short: task.max_new_tokens for task in TASKS.values()} == {
        "passkey": 6, "number": 12, "kv": 50, "en.sum": 1200, "en.mc": 40, "en.qa": 40,
        "zh.qa": 40, "en.dia": 40, "math.find": 3, "math.calc": 30000, "code.run": 5,
        "code.debug": 5,
    }  # fmt: skip


def row(task: str, **values: Any) -> Row:
    defaults: dict[str, Any] = {
        "id": 0,
        "context": "LONG",
        "input": "WHO?",
        "answer": ["two"],
        "options": OPTIONS,
    }
    return read_row(task, defaults | values)


def test_a_question_on_a_book_is_asked_behind_it() -> None:
    assert fill_prompt("longbook_qa_eng", row("longbook_qa_eng"), "yarn_mistral") == (
        "Read the book and answer the question. Be very concise in your answer.\n\nLONG\n\n"
        "Question: WHO?\nAnswer:"
    )


def test_options_get_letters_in_their_order() -> None:
    prompt = fill_prompt("longbook_choice_eng", row("longbook_choice_eng"), "gpt4")
    assert prompt.endswith("\nA. one\nB. two\nC. three\nD. four")
    assert "Question: WHO?\n\nOnly one of" in prompt
    prompt = fill_prompt("code_debug", row("code_debug"), "yarn_mistral")
    assert prompt.endswith("Options:\nA. one\nB. two\nC. three\nD. four\n\nThe correct option is:")


@pytest.mark.parametrize("call", ["func_12(-7)", "func_0(3)"])
def test_a_run_names_the_function_and_its_call(call: str) -> None:
    asked = row("code_run", input=f"Please give me the value of {call}.", answer=4)
    name = call.partition("(")[0]
    assert fill_prompt("code_run", asked, "yarn_mistral") == (
        f"There is a function called {name} in the following Python code.\n\nLONG\n\n"
        f"Please compute the exact value of {call}. The value of {call} is"
    )


@pytest.mark.parametrize(
    ("question", "prefix"),
    [
        ("Answer with one number. The largest number of the list is: ", "the largest number"),
        ("The second smallest number of these is", "the second smallest number"),
        ("The median of this list is: ", "the median"),
        ("The MEDIAN of the half of it", "the median of the half"),  # up to the last "of"
        ("The sum.\nThe mean of it", "the mean"),  # and not beyond a line
    ],
)
def test_a_search_for_a_number_says_first_which(question: str, prefix: str) -> None:
    asked = row("math_find", input=question, answer=[3])
    assert fill_prompt("math_find", asked, "gpt4") == (
        f"What is {prefix} in the following list?\n\nLONG\n\n{question}"
    )


def test_braces_in_the_data_are_text() -> None:
    asked = row("kv_retrieval", context='JSON data:\n{"a": "{input}"}', input='\nKey: "a"')
    assert fill_prompt("kv_retrieval", asked, "gpt4").endswith(
        'below.\n\nJSON data:\n{"a": "{input}"}\n\n\nKey: "a"'
    )


def test_chat_prompts_come_with_turns_and_bare_ones_without() -> None:
    turns = prompt_turns("passkey", "PROMPT", "gpt4")
    assert turns is not None
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "You are a helpful assistant"),
        ("user", "PROMPT"),
    ]
    assert prompt_turns("passkey", "PROMPT", "yarn_mistral") is None


def test_the_calculator_is_shown_an_example() -> None:
    expression = fill_prompt("math_calc", row("math_calc", answer=[1]), "gpt4")
    turns = prompt_turns("math_calc", expression, "gpt4")
    assert turns is not None
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn.content for turn in turns[1:]] == ["1 + 2 - 4 - 10", "[1, 3, -1, -11]", "LONG"]
    assert turns[0].content.startswith("You are a calculator does nothing but calculating")


@pytest.mark.parametrize(
    ("task", "answer", "label"),
    [
        ("passkey", "01234", "01234"),
        ("passkey", ["01234"], "01234"),
        ("kv_retrieval", ["a", "b"], "a"),
        ("longbook_qa_eng", ["x", "y"], ("x", "y")),
        ("longbook_qa_eng", "x", ("x",)),
        ("longbook_sum_eng", ["x"], ("x",)),
        ("longdialogue_qa_eng", ["JANE", "JANE DOE"], ("JANE", "JANE DOE")),
        ("longbook_choice_eng", ["three"], ("three", "C")),
        ("longbook_choice_eng", "one", ("one", "A")),
        ("longbook_choice_eng", ["three", "D"], ("three", "D")),  # a letter that is given counts
        ("code_debug", ["four"], ("four", "D")),
        ("math_find", [3], 3),
        ("math_find", 3.5, 3.5),
        ("math_find", ["3"], 3),  # as data sets of one type export it
        ("math_find", ["3.0"], 3.0),
        ("math_calc", [3, 2], (3, 2)),
        ("math_calc", [[3, 2]], (3, 2)),
    ],
)
def test_labels_are_brought_to_one_form(task: str, answer: Any, label: Any) -> None:
    question = "The largest number of it" if task == "math_find" else "WHO?"
    found = row(task, answer=answer, input=question).label
    assert found == label
    assert type(found) is type(label)


@pytest.mark.parametrize(("answer", "label"), [(7, 7), ([-7], -7), ("7", 7)])
def test_the_label_of_a_run_is_an_integer(answer: Any, label: int) -> None:
    assert row("code_run", answer=answer, input="func_1(2)").label == label


def test_the_first_of_equal_options_has_the_letter() -> None:
    options = ["one", "two", "two", "four"]
    assert row("code_debug", answer=["two"], options=options).label == ("two", "B")


def test_old_files_call_the_text_content() -> None:
    found = read_row("passkey", {"content": "LONG", "input": "?", "answer": "1"})
    assert found == Row("LONG", "?", (), "1")


@pytest.mark.parametrize(
    ("task", "values", "says"),
    [
        ("passkey", {"context": None}, "'context' is null, no string"),
        ("passkey", {"input": 5}, "'input' is 5, no string"),
        ("passkey", {"answer": 5}, "'answer' is 5; a string or strings"),
        ("passkey", {"answer": []}, "empty list"),
        ("longbook_qa_eng", {"answer": ["a", 5]}, "'answer' is a list; a string or strings"),
        ("longbook_choice_eng", {"options": ["a"]}, "'options' is a list; four strings"),
        ("longbook_choice_eng", {"options": None}, "'options' is null; four strings"),
        ("longbook_choice_eng", {"options": [1, 2, 3, 4]}, "four strings"),
        ("longbook_choice_eng", {"answer": ["five"]}, "none of the options"),
        ("code_debug", {"answer": ["one", "two"]}, "none of the options"),
        ("code_run", {"answer": 4}, "a call such as func_7"),
        ("code_run", {"answer": 4.0, "input": "func_1(2)"}, "holds 4.0; an integer"),
        ("code_run", {"answer": True, "input": "func_1(2)"}, "holds True; an integer"),
        ("code_run", {"answer": "x", "input": "func_1(2)"}, "holds 'x'; an integer"),
        ("math_find", {"answer": 4, "input": "the largest"}, "'The largest number of'"),
        ("math_find", {"answer": "x", "input": "The mean of it"}, "holds 'x'; a number"),
        ("math_calc", {"answer": [1, "a"]}, "holds 'a'; an integer"),
        ("math_calc", {"answer": [[]]}, "empty list"),
    ],
)
def test_rows_that_are_not_as_needed_are_refused(
    task: str, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        row(task, **values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "a list, not an object"),
        ("x", "a string, not an object"),
        (None, "null, not an object"),
        ({"input": "?", "answer": "1"}, "'context' is missing"),
        ({"context": "LONG", "input": "?"}, "'answer' is missing"),
    ],
)
def test_lines_without_what_is_needed_are_refused(values: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_row("passkey", values)


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("en.mc,en.dia", ("longbook_choice_eng", "longdialogue_qa_eng")),
        ("En.MC", ("longbook_choice_eng",)),
        (" kv , Retrieve.PassKey", ("kv_retrieval", "passkey")),
        ("math_calc", ("math_calc",)),
        ("ALL", tuple(TASKS)),
    ],
)
def test_tasks_go_by_short_and_full_names(text: str, tasks: tuple[str, ...]) -> None:
    assert parse_tasks(text) == tasks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("en.poetry", r"no task 'en.poetry'; its tasks are passkey, number, kv, en.sum"),
        ("", "no task ''"),
        ("en.mc,", "no task ''"),
        ("kv,kv_retrieval", "kv is named twice"),
    ],
)
def test_unknown_tasks_are_refused_with_the_known_ones(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_tasks(text)
