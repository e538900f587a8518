"""The shortest JSON text that a schema allows, as far as that can be told from the schema.

Needed to know how an answer can be brought to its end. What is told may be wrong where schemas
are intricate: whoever uses it checks it. Knows schemas; knows nothing of tokens.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["ShortestJson"]

_LEVELS = 12  # references within references that are followed
_FORMATS = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@b.co",
    "hostname": "a",
    "ipv4": "1.1.1.1",
    "ipv6": "::1",
    "uri": "a:b",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
# Python's own reader of regular expressions, whose place differs between versions.
_parser: Any = importlib.import_module("sre_parse" if sys.version_info < (3, 11) else "re._parser")


class ShortestJson:
    """Finds short values of a schema and of the schemas within it.

    Args:
        schema: the whole, which references are resolved in.

    Attributes:
        values: texts of the values found so far.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._known: dict[tuple[str, int], str | None] = {}
        self.values: set[str] = set()

    def text(self) -> str | None:
        """The shortest text; None where none is found."""
        for level in range(_LEVELS):
            found = self._text(self._root, level)
            if found is not None:
                return found
        return None

    def _text(self, schema: Any, level: int) -> str | None:
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            return None
        key = (json.dumps(schema, sort_keys=False), level)
        if key not in self._known:
            self._known[key] = None
            found = self._known[key] = self._find(schema, level)
            if found is not None:
                self.values.add(found)
        return self._known[key]

    def _find(self, schema: Mapping[str, Any], level: int) -> str | None:
        own = dict(schema)
        if "$ref" in own:
            target = self._resolve(own.pop("$ref"))
            return None if target is None or not level else self._text({**target, **own}, level - 1)
        if "allOf" in own:
            return self._text(self._merged([*own.pop("allOf"), own]), level)
        if "const" in own:
            return _dump(own["const"])
        if "enum" in own:
            return _shortest(_dump(value) for value in own["enum"])
        for choice in ("anyOf", "oneOf"):
            if choice in own:
                options = own.pop(choice)
                return _shortest(self._text(self._merged([own, o]), level) for o in options)
        kinds = own.get("type")
        if isinstance(kinds, list):
            return _shortest(self._text({**own, "type": kind}, level) for kind in kinds)
        if kinds == "object":
            return self._object(own, level)
        if kinds == "array":
            return self._array(own, level)
        if kinds == "string":
            return _string(own)
        if kinds in ("number", "integer"):
            return _number(own, whole=kinds == "integer")
        return {None: "null", "null": "null", "boolean": "true"}.get(kinds)

    def _resolve(self, pointer: str) -> Mapping[str, Any] | None:
        found: Any = self._root
        for part in pointer.lstrip("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return found if isinstance(found, Mapping) else None

    def _merged(self, schemas: Iterable[Any]) -> dict[str, Any]:
        """Schemas that all hold as one."""
        merged: dict[str, Any] = {}
        for schema in schemas:
            own = dict(schema) if isinstance(schema, Mapping) else {}
            if merged and "$ref" in own:
                own = {**(self._resolve(own.pop("$ref")) or {}), **own}
            for key, value in own.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = list(dict.fromkeys([*merged.get(key, ()), *value]))
                else:
                    merged[key] = value
        return merged

    def _object(self, schema: Mapping[str, Any], level: int) -> str | None:
        known = schema.get("properties", {})
        required = schema.get("required", ())
        names = [n for n in known if n in required] + [n for n in required if n not in known]
        least = schema.get("minProperties", 0)
        names += [n for n in known if n not in required][: max(least - len(names), 0)]
        names += [f"k{i}" for i in range(least - len(names))]
        order = [*known, *(n for n in names if n not in known)]
        parts = []
        for name in sorted(names, key=order.index):
            value = self._text(known.get(name, schema.get("additionalProperties", True)), level)
            if value is None:
                return None
            parts.append(f"{_dump(name)}: {value}")
        return "{" + ", ".join(parts) + "}"

    def _array(self, schema: Mapping[str, Any], level: int) -> str | None:
        first = schema.get("prefixItems", ())
        parts = []
        for place in range(schema.get("minItems", 0)):
            item = first[place] if place < len(first) else schema.get("items", True)
            value = self._text(item, level)
            if value is None:
                return None
            parts.append(value)
        return "[" + ", ".join(parts) + "]"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shortest(texts: Iterable[str | None]) -> str | None:
    return min((text for text in texts if text is not None), key=len, default=None)


def _string(schema: Mapping[str, Any]) -> str | None:
    text = _FORMATS.get(schema.get("format", ""), "")
    if "pattern" in schema:
        try:
            text = _match(_parser.parse(schema["pattern"]))
        except Exception:  # whatever it does not know
            return None
    return _dump(text + "x" * (schema.get("minLength", 0) - len(text)))


def _match(parsed: Any) -> str:
    """The shortest string that a parsed regular expression matches."""
    text = ""
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL":
            text += chr(value)
        elif name == "NOT_LITERAL":
            text += "x" if value != ord("x") else "y"
        elif name == "ANY":
            text += "x"
        elif name == "IN":
            text += _one_of(value)
        elif name == "BRANCH":
            text += min((_match(option) for option in value[1]), key=len)
        elif name == "SUBPATTERN":
            text += _match(value[-1])
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            text += _match(value[2]) * value[0]
        elif name != "AT":
            raise ValueError(name)
    return text


def _one_of(options: Any) -> str:
    def has(sign: str) -> bool:
        return any(_holds(str(kind), value, sign) for kind, value in options)

    inverse = str(options[0][0]) == "NEGATE"
    first = [
        chr(v if isinstance(v, int) else v[0]) for k, v in options if str(k) in ("LITERAL", "RANGE")
    ]
    tried = "x0 A-_.@/:" + "".join(map(chr, range(33, 127))).replace('"', "").replace("\\", "")
    found: str = next(sign for sign in [*tried, *first] if has(sign) != inverse)
    return found


def _holds(kind: str, value: Any, sign: str) -> bool:
    if kind == "LITERAL":
        return bool(ord(sign) == value)
    if kind == "RANGE":
        return bool(value[0] <= ord(sign) <= value[1])
    if kind == "CATEGORY":
        name = str(value)
        found = sign.isdigit() if "DIGIT" in name else sign.isspace()
        if "WORD" in name:
            found = sign.isalnum() or sign == "_"
        return found != ("NOT" in name)
    return False


def _number(schema: Mapping[str, Any], *, whole: bool) -> str | None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = (
        schema.get("exclusiveMinimum", -math.inf),
        schema.get("exclusiveMaximum", math.inf),
    )
    step = schema.get("multipleOf", 1 if whole else 0)
    tried: list[float] = [0, 1, -1]
    bounds = [b for b in (low, high, above, below) if math.isfinite(b)]
    for bound in bounds:
        tried += [bound, math.floor(bound), math.ceil(bound), bound + 1, bound - 1]
        if step:
            times = math.floor(bound / step)
            tried += [(times + more) * step for more in (-1, 0, 1, 2)]
    if len(bounds) > 1:
        tried.append(sum(bounds) / len(bounds))
    if step:
        tried.append(step)
    fit = [
        int(n) if float(n).is_integer() else n
        for n in tried
        if low <= n <= high
        and above < n < below
        and not (step and not math.isclose(n / step, round(n / step), abs_tol=1e-9))
        and not (whole and not float(n).is_integer())
    ]
    return _shortest(_dump(n) for n in fit)
