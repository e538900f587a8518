"""Finds out how a chat template writes calls of tools, by letting it write some.

Templates differ in the marks around a call and agree in writing its arguments as JSON. So calls
with names and arguments that occur nowhere else are rendered, and what stands around them is the
format. Templates that drop tools or calls, or write arguments otherwise, are told apart the same
way: what was put in does not come out. Knows templates; knows nothing of models or tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pacellm_rag.messages import Message, Tool
from pacellm_rag.tool_format import ToolFormat

__all__ = ["find_tool_format", "template_tools", "template_turns"]

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]

_NAME, _OTHER_NAME = "probe_tool_a7", "probe_tool_b8"
_DESCRIPTION = "probe description c9"
_SCHEMA = {"type": "object", "properties": {"probe_key": {"type": "string"}}}
_ARGUMENTS, _OTHER_ARGUMENTS = {"probe_key": "value d1"}, {"probe_key": "value e2"}
_CONTENT = "probe content f3"
_IDS = ("probeid01", "probeid02")


def template_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as chat templates know them."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                _call(call.name, call.arguments, _short(call.id)) for call in message.tool_calls
            ]
        if message.role == "tool":
            turn["tool_call_id"] = _short(message.tool_call_id)
            turn["name"] = message.name
        turns.append(turn)
    return turns


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates know them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
        }
        for tool in tools
    ]


def _short(call_id: str) -> str:
    """An id of nine letters or digits: some templates refuse any other."""
    if re.fullmatch("[A-Za-z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _call(name: str, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    function = {"name": name, "arguments": dict(arguments)}
    return {"type": "function", "id": call_id, "function": function}


def find_tool_format(render: Render) -> ToolFormat | None:
    """The format in which a template writes calls.

    Args:
        render: renders turns, with tools, with or without the beginning of an answer; raises
            whatever the template raises.

    Returns:
        None for a template that has no place for tools, or writes arguments otherwise than as JSON.
    """
    tools = template_tools(
        [Tool(_NAME, _DESCRIPTION, _SCHEMA), Tool(_OTHER_NAME, _DESCRIPTION, _SCHEMA)]
    )
    question = {"role": "user", "content": "question"}
    first = _call(_NAME, _ARGUMENTS, _IDS[0])
    second = _call(_OTHER_NAME, _OTHER_ARGUMENTS, _IDS[1])

    def rendered(turn: dict[str, Any]) -> str | None:
        try:
            return render([question, {"role": "assistant", **turn}], tools, False)
        except Exception:  # whatever a template raises: it can not write this
            return None

    try:
        offered = render([question], tools, True)
    except Exception:
        return None
    if not all(said in offered for said in (_NAME, _DESCRIPTION, "probe_key")):
        return None
    said, one = rendered({"content": _CONTENT}), rendered({"content": "", "tool_calls": [first]})
    if said is None or one is None or _CONTENT not in said:
        return None
    header = said[: said.index(_CONTENT)]
    footer = said[said.index(_CONTENT) + len(_CONTENT) :]
    around = _around(one, header, footer)
    if around is None:
        return None
    before, middle, after = around
    result = {"role": "tool", "content": _CONTENT, "tool_call_id": _IDS[0], "name": _NAME}
    try:
        answered = render(
            [question, {"role": "assistant", "content": "", "tool_calls": [first]}, result],
            tools,
            True,
        )
    except Exception:
        return None
    if _CONTENT not in answered:
        return None
    both = rendered({"content": "", "tool_calls": [first, second]})
    between = None
    if both is not None:
        found = re.search(
            f"{_written(_ARGUMENTS)}(.*?){_OTHER_NAME}{re.escape(middle)}"
            f"{_written(_OTHER_ARGUMENTS)}",
            both,
            re.DOTALL,
        )
        between = _without_ids(found.group(1)) if found else None
    return ToolFormat(before, middle, after, between)


def _around(text: str, header: str, footer: str) -> tuple[str, str, str] | None:
    """What stands before the name, between name and arguments, and behind them."""
    found = re.search(f"{_NAME}([^{{}}]*?){_written(_ARGUMENTS)}", text[len(header) :], re.DOTALL)
    if not found or not text.startswith(header.rstrip()):
        return None
    start = len(header) if text.startswith(header) else len(header.rstrip())
    at = text.index(found.group(), start)
    before = text[start:at].lstrip()
    rest = text[at + len(found.group()) :]
    after = rest.removesuffix(footer) if footer and rest.endswith(footer) else rest
    middle = found.group(1)
    if not before or not middle or any(call_id in before + middle for call_id in _IDS):
        return None  # it could not be told where a call or its arguments begin
    return before, middle, _without_ids(after).rstrip()


def _written(arguments: Mapping[str, str]) -> str:
    ((key, value),) = arguments.items()
    return rf'\{{\s*"{key}"\s*:\s*"{value}"\s*\}}'


def _without_ids(text: str) -> str:
    """Without the calls' ids: models leave them out, though templates write them."""
    return re.sub(rf',?\s*"id"\s*:\s*"(?:{"|".join(_IDS)})"', "", text)
