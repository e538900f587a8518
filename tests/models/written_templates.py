"""Chat templates of the kinds in use, cut down to how they write tools, and tokenizers for them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.testing import byte_tokenizer

_SAID = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_LISTED = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\\n\\n' }}{% endif %}# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
)
_RESULT = (
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content "
    "+ '\\n</tool_response><|im_end|>\\n' }}"
)


def _chatml(call: str) -> str:
    return (
        _LISTED + "{% for m in messages %}{% if m.tool_calls %}{{ '<|im_start|>assistant' }}"
        "{% if m.content %}{{ '\\n' + m.content }}{% endif %}"
        "{% for c in m.tool_calls %}{% set c = c.function %}" + call + "{% endfor %}"
        "{{ '<|im_end|>\\n' }}" + _RESULT + "{% elif not (m.role == 'system' and loop.first) %}"
        + _SAID + "{% endif %}{% endfor %}" + _ANSWER
    )  # fmt: skip


HERMES = _chatml(
    '{{ \'\\n<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}'
    "{{ c.arguments | tojson }}{{ '}\\n</tool_call>' }}"
)
XML = _chatml(
    "{{ '\\n<tool_call>\\n<function=' + c.name + '>\\n' }}{% for k, v in c.arguments.items() %}"
    "{{ '<parameter=' + k + '>\\n' + v + '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</tool_call>' }}"
)
NO_MIDDLE = _chatml("{{ '\\n[CALL]' + c.name }}{{ c.arguments | tojson }}")
LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' + said + '<|eot_id|>' }}"
    "{% if tools %}{{ '<|start_header_id|>user<|end_header_id|>\\n\\nFunctions:\\n' }}"
    "{% for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}"
    "{{ messages[0].content | trim + '<|eot_id|>' }}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}"
    '{{ \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\' + c.name '
    "+ '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}"
    "{{ m.content | tojson }}{{ '<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim "
    "+ '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_NINE = "{% if {} | length != 9 %}{{ raise_exception('ids must have 9 characters') }}{% endif %}"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.first %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}"
    "{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}"
    + _NINE.replace("{}", "c.id", 1)
    + "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}"
    "{{ ', ' if not loop.last else ']' + eos_token }}{% endfor %}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% elif m.role == 'tool' %}"
    + _NINE.replace("{}", "m.tool_call_id", 1)
    + '{{ \'[TOOL_RESULTS] {"content": \' + m.content + \', "call_id": "\' + m.tool_call_id '
    "+ '\"}[/TOOL_RESULTS]' }}{% else %}{{ raise_exception('only user and assistant') }}{% endif %}"
    "{% endfor %}"
)
# Each kind: its template, special tokens it adds, tokens it adds that are not special.
KINDS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "hermes": (HERMES, (), ()),
    "qwen": (HERMES, (), ("<tool_call>", "</tool_call>")),
    "llama": (LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
    "mistral": (MISTRAL, ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"), ()),
    "in_words": (byte_tokenizer().chat_template, (), ()),
    "xml": (XML, (), ("<tool_call>", "</tool_call>")),
}
NATIVE = ("hermes", "qwen", "llama", "mistral")


@functools.cache
def _trained() -> str:
    """A vocabulary of pieces of words and of JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    called = {"name": "x", "arguments": {"a": [1, 2.5, True, None, False], "b": {"c": ""}}}
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{HERMES} {LLAMA} {json.dumps(called)}"] * 3, trainer)
    return str(tokenizer.to_str())


def bpe_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A small vocabulary whose tokens are longer than bytes, with `byte_tokenizer`'s first four."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template or byte_tokenizer().chat_template
    return fast


def chat_tokenizer(kind: str = "in_words", vocabulary: str = "bytes") -> ChatTokenizer:
    """A tokenizer with a kind's template and tokens."""
    template, special, added = KINDS[kind]
    fast = (byte_tokenizer if vocabulary == "bytes" else bpe_tokenizer)(template)
    for names, is_special in ((special, True), (added, False)):
        tokens = [AddedToken(name, special=is_special, normalized=False) for name in names]
        fast.add_tokens(tokens, special_tokens=is_special)
    return ChatTokenizer(fast, name=kind, context_window=8192)
