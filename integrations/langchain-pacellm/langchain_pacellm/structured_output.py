"""Answers in a given form: what to enforce for a `response_format`, and chains that parse it.

Knows LangChain's schemas and parsers. Enforcing a schema, token by token, is PaceLLM's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_pacellm.errors import PaceInvalidRequestError
from pacellm_rag.constraints import JsonConstraint

__all__ = ["Method", "structured_chain", "to_constraint"]

Method = Literal["json_schema", "function_calling", "json_mode"]

_METHODS: Final = ("json_schema", "function_calling", "json_mode")
_NAME: Final = "answer"
# Keywords of JSON Schema whose values hold schemas: under names of their own, in a list, or bare.
_NAMED: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_BARE: Final = ("items", "additionalProperties", "contains")


def to_constraint(response_format: Any) -> JsonConstraint | None:
    """What a `response_format` asks of an answer.

    Objects whose schema lists properties have no others, unless it says so, or the format says
    `"strict": False`.

    Args:
        response_format: None, `{"type": "text"}`, `{"type": "json_object"}`, `{"type":
            "json_schema", "json_schema": {"name": ..., "schema": ...}}`, or a schema: a class of
            pydantic, a TypedDict, a JSON schema.

    Raises:
        PaceInvalidRequestError: it is none of these.
    """
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return JsonConstraint({"type": "object"})
        if kind == "json_schema":
            spec = response_format.get("json_schema")
            schema = spec.get("schema") if isinstance(spec, Mapping) else None
            if not isinstance(spec, Mapping) or not isinstance(schema, Mapping):
                raise PaceInvalidRequestError(
                    f"response_format is {dict(response_format)!r}; its json_schema must hold a "
                    "name and a schema."
                )
            return JsonConstraint(schema if spec.get("strict") is False else _closed(schema))
    return JsonConstraint(_closed(_json_schema(response_format)))


def structured_chain(
    model: BaseChatModel,
    schema: Any,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
    given: Mapping[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """A chain whose answers are objects of a schema; see `ChatPaceLLM.with_structured_output`.

    Raises:
        PaceInvalidRequestError: there is no such method, or no schema where one is needed.
    """
    if method not in _METHODS:
        raise PaceInvalidRequestError(
            f"method is {method!r}; it must be one of: {', '.join(_METHODS)}."
        )
    if schema is None and method != "json_mode":
        raise PaceInvalidRequestError(
            f"There is no schema, which method={method!r} needs. Give one, or use json_mode."
        )
    told: dict[str, Any] = {"method": method}
    if strict is not None:
        told["strict"] = strict
    traced = {"kwargs": told, "schema": schema if schema is not None else {"title": _NAME}}
    llm: Runnable[LanguageModelInput, Any]
    parser: OutputParserLike[Any]
    if method == "function_calling":
        llm, parser = _by_function(
            model, schema, strict, {**given, "ls_structured_output_format": traced}
        )
    else:
        form: dict[str, Any] = {"type": "json_object"}
        if schema is not None:
            spec: dict[str, Any] = {"name": _name(schema), "schema": _json_schema(schema)}
            form = {"type": "json_schema", "json_schema": spec}
            if strict is not None:
                spec["strict"] = strict
        llm = model.bind(response_format=form, ls_structured_output_format=traced, **given)
        parser = JsonOutputParser()
        if is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _by_function(
    model: BaseChatModel, schema: Any, strict: bool | None, given: Mapping[str, Any]
) -> tuple[Runnable[LanguageModelInput, Any], OutputParserLike[Any]]:
    if isinstance(schema, Mapping) and not {"name", "title", "function", "toolSpec"} & set(schema):
        schema = {**schema, "title": _NAME}
    try:
        name = str(convert_to_openai_tool(schema, strict=strict)["function"]["name"])
    except (ValueError, TypeError, KeyError) as error:
        raise PaceInvalidRequestError(f"{schema!r} is no schema: {error}") from error
    llm = model.bind_tools(
        [schema],
        tool_choice=name,
        parallel_tool_calls=False,
        strict=strict,
        **given,
    )
    if is_basemodel_subclass(schema):
        return llm, PydanticToolsParser(tools=[schema], first_tool_only=True)
    return llm, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _json_schema(schema: Any) -> Mapping[str, Any]:
    if isinstance(schema, Mapping) and not {"parameters", "function", "input_schema"} & set(schema):
        return schema
    if is_basemodel_subclass(schema):
        found: dict[str, Any] = (
            schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema.schema()
        )
        return found
    try:
        return convert_to_json_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PaceInvalidRequestError(
            f"{schema!r} is no schema: give a class of pydantic, a TypedDict or a JSON schema."
        ) from error


def _name(schema: Any) -> str:
    if isinstance(schema, Mapping):
        return str(schema.get("title") or schema.get("name") or _NAME)
    return str(getattr(schema, "__name__", _NAME))


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose objects have no properties but those that it lists.

    Parts of an `allOf` stay open: each would forbid what the others list.
    """
    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            closed[key] = {k: _closed_part(v) for k, v in value.items()}
        elif key in _LISTED and isinstance(value, list) and (key != "allOf" or len(value) == 1):
            closed[key] = [_closed_part(v) for v in value]
        elif key in _BARE:
            closed[key] = _closed_part(value)
        else:
            closed[key] = value
    if isinstance(closed.get("properties"), Mapping) and "allOf" not in closed:
        closed.setdefault("additionalProperties", False)
        closed.setdefault("type", "object")  # without it the schema allows numbers and texts, too
    return closed


def _closed_part(part: Any) -> Any:
    return _closed(part) if isinstance(part, Mapping) else part
