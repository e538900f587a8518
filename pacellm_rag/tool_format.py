"""How a model writes calls of tools, how they are read again, and how tools are put into words.

A call is text: something before the tool's name, something between name and arguments, the
arguments as JSON, and something behind them. What these are is told by the model's chat template
(`models.tool_template`); a model whose template knows no tools is told in words (`tools_in_words`).
Knows nothing of templates or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pacellm_rag.messages import Message, Tool, ToolCall

__all__ = ["IN_WORDS", "CallPiece", "ToolCallParser", "ToolFormat", "tools_in_words"]


@dataclass(frozen=True)
class ToolFormat:
    """The text around the names and arguments of calls.

    Calls are written `before` name `middle` arguments [`between` name `middle` arguments ...]
    `after`.

    Attributes:
        before: ahead of the first call's name; not empty.
        middle: between a name and its arguments.
        after: behind the last call's arguments.
        between: from one call's arguments to the next call's name; None where a turn has one call.
        native: whether the model's own chat template writes calls so.
    """

    before: str
    middle: str
    after: str
    between: str | None = None
    native: bool = True

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model would write them."""
        between = self.between if self.between is not None else self.after + "\n" + self.before
        written = between.join(
            f"{call.name}{self.middle}{json.dumps(dict(call.arguments), ensure_ascii=False)}"
            for call in calls
        )
        return f"{self.before}{written}{self.after}"


IN_WORDS = ToolFormat(
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    native=False,
)
"""The format for models whose template has none: the one that most open models were trained on."""


def tools_in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """A conversation with tools as one without: for chat templates that know no tools.

    The tools are described behind the system turn's own text, so that long documents in it stay
    the beginning of the prompt; calls become text, and results turns of the user.
    """
    turns = [_in_words(message) for message in messages]
    if not tools:
        return turns
    listed = "\n".join(
        json.dumps(
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
            ensure_ascii=False,
        )
        for tool in tools
    )
    example = IN_WORDS.write([ToolCall("NAME", {"ARGUMENT": "VALUE"})])
    told = (
        f"You can call these tools:\n{listed}\n\nTo call one, end your answer with\n{example}\n"
        "Call a tool only where it helps; its result will come as the next message."
    )
    if turns and turns[0].role == "system":
        return [Message("system", f"{turns[0].content}\n\n{told}"), *turns[1:]]
    return [Message("system", told), *turns]


def _in_words(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if message.tool_calls:
        calls = IN_WORDS.write(message.tool_calls)
        return Message("assistant", f"{message.content}\n{calls}" if message.content else calls)
    return Message(message.role, message.content)


@dataclass(frozen=True)
class CallPiece:
    """A stretch of a call.

    Attributes:
        index: which call of the answer, from 0.
        name: the tool's, in the first piece of a call, where a model may have left it empty; else
            None.
        arguments: some more of the arguments' JSON text.
        complete: whether the arguments end with it.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    complete: bool = False


@dataclass
class ToolCallParser:
    """Parts an answer that comes in pieces into its text and its calls.

    Args:
        form: how calls are written.

    Attributes:
        cut_off: whether the answer has ended in the middle of a call; known after `flush`.
    """

    form: ToolFormat
    cut_off: bool = False
    _held: str = ""
    _state: str = "text"
    _index: int = -1
    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False
    _pieces: list[CallPiece] = field(default_factory=list)

    def feed(self, piece: str) -> tuple[str, list[CallPiece]]:
        """Takes the next piece; returns text that is no part of a call, and pieces of calls."""
        self._held += piece
        text = ""
        while True:
            state = self._state
            if state == "text":
                text += self._text()
            elif state == "name":
                self._name()
            elif state == "arguments":
                self._arguments()
            elif state == "behind":
                self._behind()
            if self._state == state:
                break
        pieces, self._pieces = self._pieces, []
        return text, pieces

    def flush(self) -> str:
        """The text held back, when nothing more will come."""
        held, self._held = self._held, ""
        self.cut_off = self._state in ("name", "arguments")
        return held if self._state == "text" else ""

    def _text(self) -> str:
        at = self._held.find(self.form.before)
        if at >= 0:
            text, self._held = self._held[:at], self._held[at + len(self.form.before) :]
            self._state = "name"
            return text
        keep = _begun(self._held, self.form.before)
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(text) :]
        return text

    def _name(self) -> None:
        at = self._held.find(self.form.middle)
        if at >= 0:
            self._index += 1
            self._pieces.append(CallPiece(self._index, name=self._held[:at]))
            self._held = self._held[at + len(self.form.middle) :]
            self._state = "arguments"
            self._depth = 0

    def _arguments(self) -> None:
        """Gives out JSON text up to the brace that closes the arguments."""
        for place, sign in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = sign == "\\"
                self._quoted = sign != '"'
            elif sign == '"':
                self._quoted = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._give(place + 1, complete=True)
                    self._state = "behind"
                    return
        self._give(len(self._held), complete=False)

    def _give(self, length: int, *, complete: bool) -> None:
        if length:
            self._pieces.append(
                CallPiece(self._index, arguments=self._held[:length], complete=complete)
            )
            self._held = self._held[length:]

    def _behind(self) -> None:
        """Another call, or the end: what else the model writes behind its calls is left out."""
        for another in (self.form.between, self.form.after + self.form.before):
            if another is not None and self._held.startswith(another):
                self._held = self._held[len(another) :]
                self._state = "name"
                return


def _begun(text: str, marker: str) -> int:
    """Length of the longest end of `text` with which `marker` begins."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
