"""Answers that keep to a JSON schema or call tools rightly, enforced token by token.

llguidance tells which tokens may come next. On top of it, an answer is brought to a valid end
before its tokens run out: after every token that could come, the shortest way to close everything
that is open is known, and the model is followed only as long as what is left is enough for that.

Knows tokens and logits; knows nothing of engines.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pacellm_rag.constraints import Constraint, JsonConstraint, ToolConstraint
from pacellm_rag.errors import ConfigurationError, MissingDependencyError, ModelError
from pacellm_rag.models.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["ConstraintCompiler", "TokenConstraint"]

logger = logging.getLogger(__name__)

_JSON_OPTIONS: Any = {
    "whitespace_flexible": False,  # else a model may write blanks for ever
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": True,  # what is not enforced is logged
}
_LONGEST_CLOSING = 4096  # tokens that are looked ahead for an end
_WATCHED = 512  # tokens left below which every token is looked at
# What brings JSON to its end soonest, outside strings; a letter is allowed only within them.
_CLOSERS = ("}", "]", ",", "0", "1", '"', "true", "false", "null", "[", "{", ":", " ")
_LETTER, _QUOTE = "x", '"'


class ConstraintCompiler:
    """Makes what enforces constraints on one model's answers.

    Args:
        tokenizer: the model's.
        stop_ids: tokens that end its answers.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._grammars: dict[str, LLMatcher] = {}

    def compile(self, constraint: Constraint, tokens: int) -> TokenConstraint:
        """Makes the enforcer of one answer.

        Args:
            constraint: what to enforce.
            tokens: the most that the answer may have.

        Raises:
            MissingDependencyError: llguidance is not installed.
            ConfigurationError: the schema is not valid, or can not be met in so few tokens.
        """
        vocabulary = self._tokens()
        grammar = self._grammar(constraint)
        with self._lock:
            compiled = self._grammars.get(grammar)
            if compiled is None:
                compiled = self._compiled(vocabulary, grammar)
                while len(self._grammars) >= 64:
                    self._grammars.pop(next(iter(self._grammars)))
                self._grammars[grammar] = compiled
            matcher = compiled.deep_copy()
        enforced = TokenConstraint(matcher, self._closers(vocabulary), self.stop_ids)
        needed = enforced.tokens_to_end()
        if needed is not None and needed > tokens:
            raise ConfigurationError(
                f"An answer of this form takes at least {needed} tokens; max_new_tokens is "
                f"{tokens}. Raise it, or ask for less."
            )
        return enforced

    def _tokens(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                try:
                    from llguidance.hf import from_tokenizer
                except ModuleNotFoundError as error:
                    raise MissingDependencyError(
                        'Answers in a given form need llguidance: pip install "pacellm-rag[json]"',
                        name="llguidance",
                    ) from error
                fast: Any = self.tokenizer.hf
                self._vocabulary = from_tokenizer(fast, eos_token=sorted(self.stop_ids))
            return self._vocabulary

    def _compiled(self, vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigurationError(
                f"The schema can not be enforced: {matcher.get_error().strip()}"
            )
        for warning in matcher.get_grammar_warnings():
            logger.warning("Not enforced: %s", warning)
        return matcher

    def _grammar(self, constraint: Constraint) -> str:
        from llguidance import LLMatcher

        if isinstance(constraint, JsonConstraint):
            return LLMatcher.grammar_from_json_schema(
                _plain(constraint.schema), overrides=_JSON_OPTIONS
            )
        return self._tool_grammar(constraint)

    def _tool_grammar(self, constraint: ToolConstraint) -> str:
        """A grammar of calls, behind any text or alone, in llguidance's dialect of Lark."""
        form = self.tokenizer.tool_format
        calls, rules = [], []
        for number, tool in enumerate(constraint.tools):
            schema = {"type": "object", **_plain(tool.parameters), "x-guidance": _JSON_OPTIONS}
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
            calls.append(
                f"{json.dumps(tool.name)} {self._terminal(form.middle)} arguments_{number}"
            )
            rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
        more = ""
        if constraint.parallel and form.between:
            more = f" ({self._terminal(form.between)} call)*"
        tail = f"call{more} {self._terminal(form.after)}" if form.after else f"call{more}"
        rules = [f"call: {' | '.join(calls)}", *rules]
        if constraint.required:
            start = [f"start: {self._terminal(form.before)} {tail}"]
        elif constraint.otherwise is not None:
            schema = {**_plain(constraint.otherwise.schema), "x-guidance": _JSON_OPTIONS}
            start = [f"start: otherwise | {self._terminal(form.before)} {tail}"]
            rules.append(f"otherwise: %json {json.dumps(schema)}")
        else:
            mark, rest = self._mark(form.before)
            begins = (
                [f"begin: TEXT {mark}"] if mark.startswith("<[") else [f"begin[lazy]: TEXT {mark}"]
            )
            start = [f"start: TEXT | begin {rest} {tail}", r"TEXT: /(.|\n)*/", *begins]
        return "\n".join(["%llguidance {}", *start, *rules]) + "\n"

    def _mark(self, before: str) -> tuple[str, str]:
        """What begins a call, and the rest of what stands before its name, as grammar."""
        found = re.match(r"<[^>\s]+>|\[[^\]\s]+\]", before)
        mark = found.group() if found else before
        rest = before[len(mark) :]
        return self._terminal(mark), self._terminal(rest) if rest else ""

    def _terminal(self, text: str) -> str:
        """A fixed text as grammar; tokens that were added to the vocabulary go by their number."""
        parts, at = [], 0
        marks = {
            str(token): i
            for i, token in self.tokenizer.hf.added_tokens_decoder.items()
            if i in self.tokenizer.call_ids
        }
        pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
        for found in re.finditer(pattern, text) if marks else ():
            if found.start() > at:
                parts.append(json.dumps(text[at : found.start()]))
            parts.append(f"<[{marks[found.group()]}]>")
            at = found.end()
        if at < len(text):
            parts.append(json.dumps(text[at:]))
        return " ".join(parts)

    def _closers(self, vocabulary: LLTokenizer) -> _Closers:
        def ids(*texts: str) -> list[int]:
            tokens = (vocabulary.tokenize_str(text) for text in texts)
            return [found[0] for found in tokens if len(found) == 1]

        return _Closers(ids(*_CLOSERS), ids(_LETTER), ids(_QUOTE))


@dataclass(frozen=True)
class _Closers:
    """Tokens that bring JSON to its end.

    Attributes:
        outside: outside strings, the best first.
        letter: one that may come only within strings.
        quote: the one that ends a string.
    """

    outside: list[int]
    letter: list[int]
    quote: list[int]


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as the JSON that it stands for."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(schema)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The schema is not JSON: {error}") from error
    return plain


class TokenConstraint:
    """Keeps one answer to its form; made by `ConstraintCompiler`.

    Args:
        matcher: where the answer stands in the grammar.
        closers: tokens that bring it to its end.
        stop_ids: tokens that end it.
    """

    def __init__(self, matcher: LLMatcher, closers: _Closers, stop_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._closers = closers
        self._stop_ids = stop_ids

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of shape (1, vocabulary) with those of tokens that must not come at -inf."""
        allowed = torch.from_numpy(self._allowed(self._matcher, logits.shape[-1]))
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def choose(self, token: int, left: int) -> int:
        """The token to go on with.

        Args:
            token: what the model wants to write; one that is allowed.
            left: tokens that the answer may still have, this one included.

        Returns:
            `token`, or one that brings the answer to its end where else it would not have one.

        Raises:
            ModelError: the grammar has become too complex to go on with.
        """
        if token in self._stop_ids:
            return token
        if left > _WATCHED:
            self._consume(token)
            return token
        ahead = self._matcher.deep_copy()
        if not ahead.consume_token(token):
            raise ModelError(f"The form of the answer can not be enforced: {ahead.get_error()}")
        need = self._closing_length(ahead, left)
        if need is None or need >= left:  # beside `token` itself, `left - 1` tokens are left
            closing = self._closing_token(self._matcher)
            if closing is not None and self.tokens_to_end(left) is not None:
                token = closing
        if token not in self._stop_ids:
            self._consume(token)
        return token

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ModelError(
                f"The form of the answer can not be enforced: {self._matcher.get_error()}"
            )

    def tokens_to_end(self, most: int = _LONGEST_CLOSING) -> int | None:
        """How many tokens the shortest end known takes; None where none is found in `most`."""
        return self._closing_length(self._matcher, most)

    def _closing_length(self, matcher: LLMatcher, most: int) -> int | None:
        ahead = matcher.deep_copy()
        for count in range(most + 1):
            if ahead.is_accepting() or ahead.is_stopped():
                return count
            token = self._closing_token(ahead)
            if token is None or not ahead.consume_token(token):
                return None
        return None

    def _closing_token(self, matcher: LLMatcher) -> int | None:
        """The next token on the way to the end; a stop token at the end."""
        if matcher.is_accepting() or matcher.is_stopped():
            return min(self._stop_ids)
        forced = matcher.compute_ff_tokens()
        if forced:
            return int(forced[0])
        allowed = self._allowed(matcher, None)
        within = any(allowed[token] for token in self._closers.letter)
        for token in [*(self._closers.quote if within else ()), *self._closers.outside]:
            if allowed[token]:
                return int(token)
        found = np.flatnonzero(allowed)
        return int(found[0]) if len(found) else None

    @staticmethod
    def _allowed(matcher: LLMatcher, size: int | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tokens may come: one entry for each."""
        bits = np.unpackbits(
            np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little"
        ).astype(bool)
        if size is None or len(bits) == size:
            return bits
        padded = np.zeros(size, dtype=bool)
        padded[: min(size, len(bits))] = bits[:size]
        return padded
