"""The rules of InfiniteBench's scorer, case by case; what surprises is the official rule."""

from __future__ import annotations

from typing import Any

import pytest

from pacellm_rag.evaluation.infinitebench_scores import SCORES, score_answer
from pacellm_rag.evaluation.infinitebench_tasks import TASKS


def test_every_task_has_its_rule() -> None:
    assert set(SCORES) == set(TASKS)


@pytest.mark.parametrize("task", ["passkey", "number_string"])
@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("71432", 1),
        (" The pass key is 71432. Remember it.", 1),
        ("71432 and 5", 1),
        ("5 and 71432", 0),  # the first integer only
        ("0071432", 0),  # digits, not numbers
        ("71432.5", 1),
        ("7,1432", 0),
        ("-71432", 1),
        ("٧ 71432", 1),  # digits of other scripts are none
        ("x71432y", 1),
        ("7143", 0),
        ("none", 0),
        ("", 0),
    ],
)
def test_the_first_integer_is_compared_digit_by_digit(task: str, answer: str, score: int) -> None:
    assert score_answer(task, answer, "71432") == score
    assert score_answer(task, answer, ["71432", "5"]) == score


def test_leading_zeros_of_a_key_count() -> None:
    assert score_answer("passkey", "01234", "01234") == 1
    assert score_answer("passkey", "1234", "01234") == 0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("c0-ffee", 1),
        ('{"c0-ffee"}', 1),
        ('"key": "c0-ffee",\n', 1),
        ("It is 'c0-ffee'!", 1),
        ("c0-ffee?c0", 1),
        ("(c0-ffee)", 0),  # brackets are no blanks
        ("c0-ffee;", 0),
        ("C0-FFEE", 0),
        ("c0-ffee1", 0),
        ("c0 - ffee", 0),
        ("", 0),
    ],
)
def test_a_value_must_be_one_of_the_words(answer: str, score: int) -> None:
    assert score_answer("kv_retrieval", answer, "c0-ffee") == score
    assert score_answer("kv_retrieval", answer, ("c0-ffee",)) == score


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("JANE", ["JANE"], 1),
        ("jane", ["JANE"], 1),
        ("It is Jane.", ["JANE"], 1),
        ("Jane: hello", ["JANE"], 1),
        ("JANET", ["JANE"], 0),
        ("Jane", ["Jane"], 0),  # the answer is put in capitals, the label is not
        ("Jane", ["TOM", "JANE"], 0),  # the first name only
        ("JANE DOE", ["JANE DOE"], 0),  # a name of two words is never one word
        ("straße", ["STRASSE"], 1),
        ("Jane-Doe", ["JANE"], 0),
        ("", ["JANE"], 0),
    ],
)
def test_the_first_name_must_be_one_of_the_words_in_capitals(
    answer: str, label: list[str], score: int
) -> None:
    assert score_answer("longdialogue_qa_eng", answer, label) == score


CHOICE: tuple[tuple[str, int], ...] = (
    # its first character decides
    ("B", 1),
    (" \n B. a red cat", 1),
    ("Because of A", 1),
    ("A red cat", 0),  # also where it begins a word
    ("C or B", 0),
    # else the whole answer may be the text
    ("red cat.", 1),
    ("red cat", 0),
    ("Red cat.", 0),
    # else the first of the phrases that occurs, in their order
    ("the answer is: B", 1),
    ("the answer is: red cat.", 0),  # by then the answer has lost its dots, the label has not
    ("the answer is:B", 0),  # one character is skipped
    ("the answer is:", 0),
    ("the answer is: ", 0),
    ("the answer is B", 1),
    ("the answer is  B", 1),
    ("the answer is 'B'", 1),  # quotes are blanks, and blanks become one
    ("the answer: B", 1),
    ("option is B", 1),
    ("the option is C, the answer is B", 1),  # "answer is" comes first in the list
    ("my answer: C. So the answer is B", 0),  # "answer:" comes before "answer is"
    ("my answer: C. So the answer is: B", 1),
    ("the answer is Bad", 1),
    ("the answer is b", 0),
    ("answer is\nB", 1),
    ("The Answer is C, no, B", 0),  # the phrase is in lower case: the first letter decides
    # else the first word of such letters
    ("I choose B", 1),
    ("I choose (B)", 0),
    ("I choose B.", 1),
    ("I choose C, or B", 0),
    ("perhaps BC or B", 0),  # BC is found in ABCD
    ("perhaps AC or B", 1),  # AC is not
    ("I don't know", 0),
    ("", 0),
    ("   \n", 0),
    ("?", 0),
)


@pytest.mark.parametrize(("answer", "score"), CHOICE)
def test_a_choice_is_read_in_the_official_order(answer: str, score: int) -> None:
    assert score_answer("longbook_choice_eng", answer, ["red cat.", "B"]) == score
    assert score_answer("longbook_choice_eng", answer, ("red cat.", "B")) == score


def test_text_behind_a_phrase_counts_where_it_has_no_punctuation() -> None:
    assert score_answer("longbook_choice_eng", "the answer is: red cat!", ["red cat", "B"]) == 1
    assert score_answer("longbook_choice_eng", "the answer is red  cat", ["red cat", "B"]) == 1


DEBUG: tuple[tuple[str, int], ...] = (
    ("B.", 1),
    ("B:", 1),
    ("  B. parse", 1),
    ("B", 0),  # a letter alone is not enough
    ("B) parse", 0),
    ("B, parse", 0),
    ("parse", 0),
    ("A. parse", 0),
    ("answer is: B", 1),
    ("The answer is: parse", 1),
    ("The answer is: `parse`", 1),  # marks are blanks, and blanks become one
    ("The answer is:`parse`", 1),
    ("The answer is:parse", 0),  # one character is skipped
    ("The answer is: **B**", 1),
    ("The answer is: Option B", 1),
    ("The answer is: (B)", 0),
    ("It is: B", 1),
    ("Answer: B", 0),  # in lower case only
    ("my answer: B", 1),
    ("answer: A. The answer is: B", 1),  # "answer is:" comes first in the list
    ("answer: B. It is: A", 0),  # "is:" comes before "answer:"
    ("answer is B", 0),
    ("correct option is: B", 1),  # through "is:"
    ("The answer is:", 0),
    ("The answer is: Because", 1),
    ("The answer is: A", 0),
    ("", 0),
)


@pytest.mark.parametrize(("answer", "score"), DEBUG)
def test_a_bug_is_read_in_the_official_order(answer: str, score: int) -> None:
    assert score_answer("code_debug", answer, ["parse", "B"]) == score


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("-7", -7, 1),
        ("The value is -7", -7, 1),
        ("The value is -7.", -7, 1),
        ("`-7`\n", -7, 1),
        ("f(3): -7", -7, 1),
        ("7 is the value", 7, 0),  # the last word
        ("7, 8", 8, 1),
        ("= 7", 7, 1),
        ("=7", 7, 0),
        ("007", 7, 1),
        ("+7", 7, 1),
        ("1_0", 10, 1),  # as Python reads integers
        ("7.0", 0, 1),  # the dot parts words
        ("3.5", 5, 1),
        ("seven", 7, 0),
        ("9" * 5000, 9, 0),
        ("", 7, 0),
        (" . ", 7, 0),
    ],
)
def test_the_last_word_of_a_run_is_its_value(answer: str, label: int, score: int) -> None:
    assert score_answer("code_run", answer, label) == score
    assert score_answer("code_run", answer, [label]) == score


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("88", 88, 1),
        ("It is 88.", 88, 1),
        ("88 or 5", 88, 1),
        ("5 or 88", 88, 0),
        ("-88", 88, 1),  # signs are not read
        ("-88", -88, 0),
        ("088", 88, 1),
        ("88.0", 88, 0),  # no integer: the official script ends with an error
        ("88.0", 88.0, 1),
        ("88", 88.0, 1),
        ("3.5", 3.5, 1),
        ("3.50", 3.5, 1),
        ("3.", 3.0, 1),
        (".5", 5, 1),
        ("3,5", 3.5, 0),
        ("9" * 5000, 9, 0),
        ("none", 88, 0),
        ("", 88, 0),
        ("", 3.5, 0),
    ],
)
def test_the_first_number_is_read_by_the_kind_of_the_label(
    answer: str, label: float, score: int
) -> None:
    assert score_answer("math_find", answer, label) == score
    assert score_answer("math_find", answer, [label]) == score


@pytest.mark.parametrize(
    ("answer", "label", "drops_first", "score"),
    [
        ("[3, -1, -11]", [3, 1, 11], False, 1.0),  # signs are not read
        ("3 1 11", [3, 1, 11], False, 1.0),
        ("3 1 12", [3, 1, 11], False, 2 / 3),
        ("3 2 11", [3, 1, 11], False, 1 / 3),  # nothing behind the first mistake
        ("0 1 11", [3, 1, 11], False, 0.0),
        ("3 1 11 99", [3, 1, 11], False, 1.0),
        ("3", [3, 1, 11], False, 1 / 3),
        ("003 1", [3, 1], False, 1.0),
        ("0 00", [0, 0], False, 1.0),
        ("3.1", [3, 1], False, 1.0),
        ("1 3 1 11", [3, 1, 11], True, 1.0),  # the prompt of GPT-4 repeats the first number
        ("3 1 11", [3, 1, 11], True, 0.0),
        ("1", [1], True, 0.0),
        ("3 -1", [3, -1], False, 0.5),  # a negative value is never right
        ("9" * 5000, [9], False, 0.0),
        ("", [3], False, 0.0),
        ("", [3], True, 0.0),
    ],
)
def test_a_calculation_counts_up_to_its_first_mistake(
    answer: str, label: list[int], drops_first: bool, score: float
) -> None:
    assert score_answer("math_calc", answer, label, drops_first=drops_first) == score
    assert score_answer("math_calc", answer, [label], drops_first=drops_first) == score
    assert score_answer("math_calc", answer, tuple(label), drops_first=drops_first) == score


def test_only_calculations_drop_a_number() -> None:
    assert score_answer("math_find", "1 2", 1, drops_first=True) == 1
    assert score_answer("passkey", "1 2", "1", drops_first=True) == 1


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("The red cat!", ["a red cat"], 1.0),
        ("red", ["red cat"], f1(1, 1 / 2)),
        ("red red cat", ["red cat"], f1(2 / 3, 1)),
        ("red cat", ["dog", "red", "cat dog"], f1(1 / 2, 1)),  # the best accepted answer
        ("mother-in-law", ["mother in law"], 0.0),  # punctuation goes without a blank
        ("an, a, the", ["the"], 0.0),  # nothing is left, which is no match
        ("", [""], 0.0),
        ("", ["red"], 0.0),
        ("red", [], 0.0),
        ("Café—bar", ["café bar"], 0.0),  # a dash beyond ASCII stays
        ("theatre", ["tre"], 0.0),
    ],
)
def test_english_answers_share_words(answer: str, label: list[str], score: float) -> None:
    assert score_answer("longbook_qa_eng", answer, label) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("「红楼梦」。", ["红楼梦"], 1.0),
        ("《红楼梦》。", ["红楼梦"], f1(3 / 4, 1)),  # the official list has 》 and not 《
        ("红 楼\u3000梦\n", ["红楼梦"], 1.0),  # blanks of all kinds go
        ("红梦", ["红楼梦"], f1(1, 2 / 3)),
        ("梦楼红", ["红楼梦"], 1.0),  # in any order
        ("红红", ["红"], f1(1 / 2, 1)),
        ("ABC", ["abc"], 1.0),
        ("the a", ["thea"], 1.0),  # no articles in Chinese
        ("宝玉", ["黛玉", "宝玉"], 1.0),
        ("，。！", ["，"], 0.0),
        ("", [""], 0.0),
        ("a·b", ["ab"], f1(2 / 3, 1)),  # the middle dot is none of the listed signs
        ("a—b…c“d”﹏", ["abcd"], 1.0),
    ],
)
def test_chinese_answers_share_characters(answer: str, label: list[str], score: float) -> None:
    assert score_answer("longbook_qa_chn", answer, label) == pytest.approx(score, abs=1e-12)


def test_summaries_get_rouge_lsum_with_the_best_reference() -> None:
    assert score_answer("longbook_sum_eng", "a b\nc d", ("x", "c d\na b")) == 1.0
    assert score_answer("longbook_sum_eng", "", ("x",)) == 0.0


@pytest.mark.parametrize("label", [["red cat", "B"], ("red cat", "B")])
def test_scores_are_plain_numbers(label: Any) -> None:
    assert type(score_answer("longbook_choice_eng", "B", label)) is float


def test_an_unknown_task_has_no_score() -> None:
    with pytest.raises(KeyError):
        score_answer("poetry", "", "")
