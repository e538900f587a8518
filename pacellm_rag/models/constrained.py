"""Answers that keep to a JSON schema or call tools rightly, enforced token by token.

llguidance tells which tokens may come next. On top of it, an answer is brought to a valid end
before its tokens run out: at every token a way to close everything that is open is known, and the
model is followed only as long as what is left is enough for one.

Knows tokens and logits; knows nothing of engines.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pacellm_rag.constraints import Constraint, JsonConstraint, ToolConstraint
from pacellm_rag.errors import ConfigurationError, MissingDependencyError, ModelError
from pacellm_rag.models.shortest_json import ShortestJson
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
_LONGEST_WAY = 4096  # tokens that are looked ahead for an end
_LONGEST_VALUE = 256  # characters of short values whose ends are tried as well
_ONLY_WITHIN = "xzAb@_/"  # signs that JSON has only within strings
_OTHERS = "10[{: "  # and some that lead on elsewhere


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
        self._grammars: dict[str, tuple[LLMatcher, _Endings]] = {}

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
                matcher = self._compiled(vocabulary, grammar)
                compiled = matcher, self._endings(vocabulary, constraint)
                while len(self._grammars) >= 64:
                    self._grammars.pop(next(iter(self._grammars)))
                self._grammars[grammar] = compiled
            matcher, endings = compiled
            matcher = matcher.deep_copy()
        enforced = TokenConstraint(matcher, endings, self.stop_ids)
        needed = enforced.tokens_to_end
        if needed is None:
            raise ConfigurationError(
                "No answer of this form was found that ends. Does the schema refer to itself "
                "without an end, or have a pattern that nothing matches?"
            )
        if needed > tokens:
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
                known = sorted(i for i in self.stop_ids if i < len(fast))
                self._vocabulary = from_tokenizer(fast, eos_token=known)
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
            text = r"TEXT: /(.|\n)*/"
            if mark.startswith("<["):  # nor may it be spelled
                text += rf" & ~(/(.|\n)*/ {json.dumps(self._mark_text(form.before))} /(.|\n)*/)"
            start = [f"start: TEXT | begin {rest} {tail}", text, *begins]
        return "\n".join(["%llguidance {}", *start, *rules]) + "\n"

    def _mark(self, before: str) -> tuple[str, str]:
        """What begins a call, and the rest of what stands before its name, as grammar."""
        mark = self._mark_text(before)
        rest = before[len(mark) :]
        return self._terminal(mark), self._terminal(rest) if rest else ""

    @staticmethod
    def _mark_text(before: str) -> str:
        found = re.match(r"<[^>\s]+>|\[[^\]\s]+\]", before)
        return found.group() if found else before

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

    def _endings(self, vocabulary: LLTokenizer, constraint: Constraint) -> _Endings:
        """What may bring answers of this form to their end."""
        if isinstance(constraint, JsonConstraint):
            schemas = [constraint.schema]
        else:
            otherwise = [constraint.otherwise.schema] if constraint.otherwise else []
            schemas = [*otherwise, *(tool.parameters for tool in constraint.tools)]
        values: set[str] = set()
        for schema in schemas:
            short = ShortestJson(_plain(schema))
            short.text()
            values |= short.values

        def ids(texts: Iterable[str]) -> list[int]:
            tokens = (vocabulary.tokenize_str(text) for text in texts)
            return [found[0] for found in tokens if len(found) == 1]

        def tokens(texts: Iterable[str]) -> list[list[int]]:
            return [vocabulary.tokenize_str(text) for text in sorted(texts, key=len) if text]

        short_values = [value for value in values if len(value) <= _LONGEST_VALUE]
        rests = {rest for value in short_values for rest in _rests(value)}
        return _Endings(
            ids("}]"),
            ids('"'),
            ids(","),
            ids(_ONLY_WITHIN),
            ids(_OTHERS),
            tokens(values),
            tokens(rests),
        )


def _rests(value: str) -> Iterable[str]:
    """What is left of a short value when some of it has been written."""
    if value[0] in "{[":
        return [value[found.end() :] for found in re.finditer('[{,] ?"|[{[]', value)]
    return [value[at:] for at in range(1, len(value))]


@dataclass(frozen=True)
class _Endings:
    """Tokens that bring JSON to its end.

    Attributes:
        brackets: those that close objects and arrays.
        quote: the one that begins and ends strings.
        comma: the one that goes on behind a value.
        within: some that may come only within strings.
        others: some that lead on where nothing else is known.
        values: short values, the shortest first.
        rests: ends of these, the shortest first.
    """

    brackets: list[int]
    quote: list[int]
    comma: list[int]
    within: list[int]
    others: list[int]
    values: list[list[int]]
    rests: list[list[int]]


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as the JSON that it stands for."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(schema)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The schema is not JSON: {error}") from error
    return plain


class TokenConstraint:
    """Keeps one answer to its form; made by `ConstraintCompiler`.

    A way to the end is known at any time, and a token is taken only if there is one behind it as
    well that is short enough; else the known way is gone.

    Args:
        matcher: where the answer stands in the grammar.
        endings: what may bring it to its end.
        stop_ids: tokens that end it.
    """

    def __init__(self, matcher: LLMatcher, endings: _Endings, stop_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._endings = endings
        self._stop_ids = stop_ids
        self._way = self._find_way(matcher, _LONGEST_WAY)
        for value in endings.values:
            if (self._way is None or len(value) < len(self._way)) and self._ends(matcher, value):
                self._way = value

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def tokens_to_end(self) -> int | None:
        """How many tokens the way to the end has; None where none is known."""
        return None if self._way is None else len(self._way)

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
        known = self._way
        if known and known[0] == token:
            self._way = known[1:]
        else:
            ahead = self._matcher.deep_copy()
            self._consume(ahead, token)
            fits = known is not None and len(known) < left and self._ends(ahead, known)
            way = known if fits else self._find_way(ahead, min(left - 1, _LONGEST_WAY))
            if way is None and known is not None:
                if not known:
                    return min(self._stop_ids)
                token, *way = known
            self._way = way
        self._consume(self._matcher, token)
        return token

    @staticmethod
    def _consume(matcher: LLMatcher, token: int) -> None:
        if not matcher.consume_token(token):
            raise ModelError(f"The form of the answer can not be enforced: {matcher.get_error()}")

    def _ends(self, matcher: LLMatcher, way: list[int]) -> bool:
        """Whether these tokens lead to an end."""
        if matcher.is_stopped():
            return not way
        stop = min(self._stop_ids)
        return bool(matcher.validate_tokens([*way, stop]) == len(way) + 1)

    def _find_way(self, matcher: LLMatcher, most: int) -> list[int] | None:
        """Tokens that lead to an end; None where none are found among the first `most`."""
        ahead, way = matcher.deep_copy(), list[int]()
        while not (ahead.is_accepting() or ahead.is_stopped()):
            step = ahead.compute_ff_tokens() or self._step(ahead)
            if not step or len(way) + len(step) > most or not ahead.consume_tokens(step):
                return None
            way += step
        return way

    def _step(self, matcher: LLMatcher) -> list[int]:
        """The next tokens on the way to an end; [] where nothing may come."""
        allowed, ends = self._allowed(matcher, None), self._endings
        within = [token for token in ends.within if allowed[token]]
        for token in ends.quote if within else [*ends.brackets, *ends.quote, *ends.comma]:
            if allowed[token]:
                return [token]
        known: list[list[int]] = [*(() if within else ends.values), *ends.rests]
        for tokens in known:
            if allowed[tokens[0]] and matcher.validate_tokens(tokens) == len(tokens):
                return tokens
        likely = [*within, *(token for token in ends.others if allowed[token])]
        return likely[:1] or [int(token) for token in np.flatnonzero(allowed)[:1]]

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
