"""Counting and rendering prompts with a model's own tokenizer and chat template.

Needs no weights, so that an exact count is there before anything is loaded. Knows the traps of
chat templates: those that refuse or silently drop a system turn, and those that write the BOS
which the tokenizer would add again. Knows nothing of documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from pacellm_rag.errors import ModelError
from pacellm_rag.messages import Message, Tool
from pacellm_rag.models.tool_template import find_tool_format, template_tools, template_turns
from pacellm_rag.protocols import EncodedPrompt
from pacellm_rag.tool_format import IN_WORDS, ToolFormat, tools_in_words

__all__ = ["ChatTokenizer"]

# Tokens that end a turn in the chat formats in use; a model whose generation config names only
# the end of text would otherwise go on and write the user's next turn.
_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
)


class ChatTokenizer:
    """A Hugging Face tokenizer as the reader needs it (`protocols.PromptTokenizer`).

    Args:
        tokenizer: any transformers tokenizer.
        name: the model's name or path, for messages.
        context_window: most tokens, prompt and answer together.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, name: str, context_window: int
    ) -> None:
        self.hf = tokenizer
        self.name = name
        self.context_window = context_window
        self._bos_wanted = self._adds_bos()

    def _adds_bos(self) -> bool:
        bos = self.hf.bos_token_id
        return bos is not None and list(self.hf("a")["input_ids"])[:1] == [bos]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer, as far as the tokenizer knows."""
        ids = {self.hf.eos_token_id, getattr(self.hf, "eot_token_id", None)}
        vocabulary = self.hf.get_vocab()
        ids |= {vocabulary.get(token) for token in _END_OF_TURN}
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools: as its chat template does, or as it is told to."""
        if not self.hf.chat_template:
            return IN_WORDS
        return find_tool_format(self._apply_to_turns) or IN_WORDS

    @cached_property
    def _hidden_ids(self) -> frozenset[int] | None:
        """Special tokens that are no text; None where all are, which is the usual case."""
        special = {i for i, token in self.hf.added_tokens_decoder.items() if token.special}
        special |= set(self.hf.all_special_ids)
        shown = special & self.call_ids
        return frozenset(special - shown) if shown else None

    @cached_property
    def call_ids(self) -> frozenset[int]:
        """Tokens added to the vocabulary that occur in the marks around calls of tools."""
        form = self.tool_format
        marks = "".join((form.before, form.middle, form.between or "", form.after))
        ids = self.hf(marks, add_special_tokens=False, verbose=False)["input_ids"]
        return frozenset(ids) & frozenset(self.hf.added_tokens_decoder)

    def count_tokens(self, text: str) -> int:
        """Tokens of a bare text, without special tokens."""
        return len(self.hf(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, token_ids: list[int]) -> str:
        """Text of some tokens, special tokens left out but for the marks of tool calls."""
        hidden = self._hidden_ids
        if hidden is not None:
            token_ids = [i for i in token_ids if i not in hidden]
        text = self.hf.decode(
            token_ids, skip_special_tokens=hidden is None, clean_up_tokenization_spaces=False
        )
        return str(text)

    def encode_messages(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> EncodedPrompt:
        """Renders and encodes a conversation, ready for the model to answer.

        Raises:
            ModelError: the chat template can not render these turns.
        """
        if not self.tool_format.native:
            messages, tools = tools_in_words(messages, tools), ()
        prompt = self.encode_text(self.render(messages, tools))
        places = self._content_places(prompt.text, messages, tools)
        return replace(prompt, message_starts=_first_tokens(prompt.offsets, places))

    def encode_text(self, text: str) -> EncodedPrompt:
        """Encodes a prompt that is rendered already, with one BOS where the model uses one."""
        encoding = self._encode(text)
        ids, offsets = list(encoding["input_ids"]), [tuple(o) for o in encoding["offset_mapping"]]
        bos = self.hf.bos_token_id
        if bos is not None and self._bos_wanted and ids[:1] != [bos]:
            ids, offsets = [bos, *ids], [(0, 0), *offsets]
        while bos is not None and ids[:2] == [bos, bos]:
            ids, offsets = ids[1:], offsets[1:]
        return EncodedPrompt(text, tuple(ids), tuple(offsets))

    def _content_places(
        self, text: str, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> list[int]:
        """Where in a rendered prompt the turns' contents begin; none where it can not be told.

        Told by rendering the turns with marks for contents: what lies between is the template's.
        """
        said = [message for message in messages if message.content.strip()]
        marks = {id(message): f"\ue000{index}\ue001" for index, message in enumerate(said)}
        outline = self.render(
            [replace(m, content=marks.get(id(m), m.content)) for m in messages],  # blank ones stay
            tools,
        )
        if any(outline.count(mark) != 1 for mark in marks.values()):
            return []
        header, *between = re.split("\ue000\\d+\ue001", outline)
        if not text.startswith(header):
            return []
        places, at = [], len(header)
        for message, behind in zip(said, between, strict=True):
            own = message.content
            trims = (own, own.rstrip(), own.lstrip(), own.strip())
            quoted = (json.dumps(c, ensure_ascii=False)[1:-1] for c in trims)  # tools' results
            found = next((c for c in (*trims, *quoted) if text.startswith(c + behind, at)), None)
            if found is None:
                return []
            places.append(at)  # also before blanks: the same place for every question
            at += len(found) + len(behind)
        return places if at == len(text) else []

    def _encode(self, text: str) -> Any:
        if not self.hf.is_fast:
            raise ModelError(
                f"The tokenizer of {self.name} ({type(self.hf).__name__}) can not tell which "
                "characters its tokens cover, which citations need. Convert it to the fast "
                "format: AutoTokenizer.from_pretrained(...).save_pretrained(...) with "
                "sentencepiece and tokenizers installed."
            )
        return self.hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The prompt as text: the model's chat template, or a plain one where it has none.

        A system turn that the template refuses, or drops without a word, is put in front of the
        first user turn; turns of one role that follow each other become one where it refuses them.
        """
        if not self.hf.chat_template:
            return _render_plain(messages)
        attempts = [list(messages), _joined(messages)]
        system = messages[0].content.strip() if messages[0].role == "system" else ""
        if system and len(messages) > 1:
            attempts += [_fold_system(messages), _joined(_fold_system(messages))]
        refusal: TemplateError | None = None
        for turns in attempts:
            try:
                text = self._apply_template(turns, tools)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if not system or system in text:
                return text
        if refusal is None:
            refusal = TemplateError("it leaves the system turn out.")
        raise ModelError(
            f"The chat template of {self.name} refuses this conversation: {refusal}"
        ) from refusal

    def _apply_template(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        return self._apply_to_turns(template_turns(messages), template_tools(tools), True)

    def _apply_to_turns(
        self, turns: list[dict[str, Any]], tools: list[dict[str, Any]], answer: bool
    ) -> str:
        offered: list[Any] | None = [*tools] or None
        text = self.hf.apply_chat_template(
            turns,
            tools=offered,
            tokenize=False,
            add_generation_prompt=answer,
            enable_thinking=False,  # read by templates of reasoning models, unknown to the others
        )
        return str(text)


def _first_tokens(offsets: Sequence[tuple[int, int]], places: Sequence[int]) -> tuple[int, ...]:
    """The tokens that begin at or behind each of some ascending places, but the prompt's first.

    A prompt's first token begins its first segment anyway.
    """
    found: list[int] = []
    token = 0
    for place in places:
        while token < len(offsets) and not place <= offsets[token][0] < offsets[token][1]:
            token += 1
        if 0 < token < len(offsets) and found[-1:] != [token]:
            found.append(token)
    return tuple(found)


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    return [replace(first, content=f"{system.content}\n\n{first.content}"), *rest]


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Turns of one role that follow each other as one."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        plain = not message.tool_calls and message.role != "tool"
        if last is not None and last.role == message.role and plain and not last.tool_calls:
            joined[-1] = replace(last, content=f"{last.content}\n\n{message.content}")
        else:
            joined.append(message)
    return joined


def _render_plain(messages: Sequence[Message]) -> str:
    parts = []
    for message in messages:
        if message.role == "system":
            parts.append(f"{message.content}\n\n")
        elif message.role == "user":
            parts.append(f"Question: {message.content}\nAnswer:")
        else:
            parts.append(f" {message.content}\n\n")
    return "".join(parts)
