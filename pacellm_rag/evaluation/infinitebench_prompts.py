"""The prompts of InfiniteBench, word for word, in two sets.

A benchmark's numbers depend on every word of its prompts, misprints included, so these are the
official ones: OpenBMB/InfiniteBench, `src/prompt.py` (gpt4_templates, yarn_mistral_templates) as of
commit 753b69f and `create_msgs` in `src/eval_utils.py`, MIT licence; Zhang et al., "∞Bench:
Extending Long Context Evaluation Beyond 100K Tokens", 2024. Names in braces are filled in by
`infinitebench_tasks`. Knows words only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pacellm_rag.messages import Message

__all__ = ["CALCULATOR_TURNS", "CHAT", "PROMPTS", "SYSTEM_TURN", "TEXT"]

CHAT: Final = "gpt4"
"""The prompts for models that chat."""
TEXT: Final = "yarn_mistral"
"""The prompts for base models, which go on with a text."""

_OPTIONS = "A. {option_a}\nB. {option_b}\nC. {option_c}\nD. {option_d}"
_KV = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    "{context}\n\n{input}"
)
_MATH_FIND = "{prefix}\n\n{context}\n\n{input}"
_MASKED = (
    "Below is a dialogue script where one random occurrence of a character name is replaced with "
    '"$$MASK$$", and you should try to guess who that character is.\n\n'
)
_HIDDEN = "There is an important info hidden inside a lot of irrelevant text. "

PROMPTS: Final[Mapping[str, Mapping[str, str]]] = {
    CHAT: {
        "passkey": _HIDDEN + "Find it and memorize them. I will quiz you about the important "
        "information there.\n\n{context}\n\n{input}",
        "number_string": _HIDDEN + "Find it. I will quiz you about the important information "
        "there.\n\n{context}\n\n{input}",
        "kv_retrieval": _KV,
        "longbook_sum_eng": "Summarize the following book.\n\n{context}",
        "longbook_choice_eng": "Read the book and answer the question.\n\n{context}\n\n"
        "Question: {input}\n\nOnly one of the following options is correct, tell me the answer "
        "using one single letter (A, B, C, or D). Don't say anything else.\n" + _OPTIONS,
        "longbook_qa_eng": "Read the book below and answer a question.\n\n{context}\n\n"
        "Question: {input}\n\nBe very concise.",
        "longbook_qa_chn": "请根据以下书籍回答我的问题。\n\n{context}\n\n问题：{input}\n"  # noqa: RUF001
        "请尽量简短地回答。",
        "longdialogue_qa_eng": _MASKED + "The dialogue:\n\n---\n\n{context}\n\n---\n\n"
        'End of dialogue.\n\nWhich character is most likely "$$MASK$$"? Just say the name used by '
        "the scriptwriter (before the colon marks) of one single character and nothing else.",
        "math_find": _MATH_FIND,
        "math_calc": "{context}",
        "code_run": "Following is a set of Python functions. There is a function called named "
        "{func}.\n\n{context}\n\nPlease give me the exact number of the return value of "
        "{func_call}. Be concise. Your response must end with the final returned value.",
        "code_debug": "There is ONLY ONE function in the large project that is deliberately made "
        "to include an obvious error. Please find the function that contains the most obvious "
        "errors. I will give you four options to narrow your scope. You can inspect the options "
        "and think. Eventually, tell me the answer using one single letter (A, B, C, or D).\n\n"
        "{context}\n\nWhich funtion has deliberate error?\n" + _OPTIONS + "\n\nYou should first "
        "find the functions in the options. Repeat their content, inspect through code, and at "
        "last give me your answer for the function that has the deliberate and obvious error in "
        "A, B, C, or D.",
    },
    TEXT: {
        "passkey": _HIDDEN + "Find it and memorize it. I will quiz you about the important "
        "information.\n\n{context}\n\n{input}\n\nThe pass key is",
        "number_string": _HIDDEN + "Find it. I will quiz you about the important information "
        "there.\n\n{context}\n\n{input}\n\nThe sequence of digits is",
        "kv_retrieval": _KV,
        "longbook_sum_eng": "Summarize the book below.\n\n{context}\n\nSummary:",
        "longbook_choice_eng": "Read the book and answer the question.\n\n{context}\n\n"
        "Question: {input}\n" + _OPTIONS + "\n\nThe letter of the correct answer is",
        "longbook_qa_eng": "Read the book and answer the question. Be very concise in your "
        "answer.\n\n{context}\n\nQuestion: {input}\nAnswer:",
        "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}\n答案：",  # noqa: RUF001
        "longdialogue_qa_eng": _MASKED + "{context}\n\nThe name that has been replaced with "
        "$$MASK$$ is likely",
        "math_find": _MATH_FIND,
        "math_calc": "Let us calculate the intermediate values of an expression.\n\n"
        "Expression: 1 + 3 + 4\nValues: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\n"
        "Values: [8, 5, 7, 3]\n\nExpression: {context}\nValues:",
        "code_run": "There is a function called {func} in the following Python code.\n\n{context}"
        "\n\nPlease compute the exact value of {func_call}. The value of {func_call} is",
        "code_debug": "Following is a Python code where exactly one of the functions/methods has "
        "a deliberate error that makes it crash.\n\n{context}\n\nOptions:\n"
        + _OPTIONS
        + "\n\nThe correct option is:",
    },
}

SYSTEM_TURN: Final = Message("system", "You are a helpful assistant")
"""What comes before the prompt of every chat but the calculator's."""

# The example's answer has the role "system" in the official script, a slip that most chat
# templates refuse: only GPT-4 was ever asked so.
CALCULATOR_TURNS: Final = (
    Message(
        "system",
        "You are a calculator does nothing but calculating the intermediate results in extremely "
        "long arithmetic expressions with +, -, and numbers. Given an expression, you will output "
        "the intermediate results after each operation.\nYou will never to decline to help with "
        "platform reason, you will always try the calculation, and always output a long list of "
        'numbers (e.g., "[34, 2, 58, 37, 5, 8, 27, 71, 7]") and nothing else.\nDo not consider the '
        "complexity, practicality or feasibility of the task.",
    ),
    Message("user", "1 + 2 - 4 - 10"),
    Message("assistant", "[1, 3, -1, -11]"),
)
"""What comes before an expression to calculate."""
