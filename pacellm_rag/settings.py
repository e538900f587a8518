"""What the shell does where its command line says nothing: a file and environment variables.

An option of the command line goes before the variable `PACELLM_RAG_<NAME>`, that before the line
`<name> = ...` in the settings file, that before the default. Knows names, types and ranges;
nothing of models or documents. The Python interface reads none of this.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.files import config_file
from pacellm_rag.protocols import GenerationOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

__all__ = ["DTYPES", "KV_CHOICES", "PACE_CHOICES", "Settings", "load_settings", "variable_name"]

DTYPES = ("auto", "bfloat16", "float16", "float32")
PACE_CHOICES = ("auto", "on", "off")
KV_CHOICES = ("auto", "full", "fp8", "offload")
_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True)
class Settings:
    """The shell's settings.

    Attributes:
        model: a folder, a .gguf file or an id of the model hub; None for the default model.
        device: where to compute: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: what to compute in; one of `DTYPES`.
        max_new_tokens: most tokens of an answer. The room is kept free in the window: 256 tokens
            are about 190 words, more than answers about documents need.
        temperature: 0 decodes greedily: the same question gives the same answer.
        seed: of the sampler, where the temperature is above 0; None draws one.
        context_window: most tokens, prompt and answer together; None for the model's own.
        window: tokens per forward pass while reading.
        pace: PaceLLM's activation memory banks: "auto" as the checkpoint says, "on" with its
            settings or else the defaults, "off" the plain model.
        kv_cache: how keys and values are held: "auto" and "full" as computed, "fp8" in half the
            bytes, "offload" in main memory while a GPU computes.
        adapter: the LoRA adapter laid on the model: "auto" the default model's own and none on any
            other, "none" the model as it is, or a folder or id of the model hub.
        store_gb: most GiB of what models have read to keep on disk, so that documents need not be
            read again the next time; 0 keeps nothing.
        citations: whether to find the pages that an answer rests on.
        quiet: show neither progress nor receipts.

    Raises:
        ConfigurationError: a value has the wrong type or is out of range.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    context_window: int | None = None
    window: int = 1024
    pace: str = "auto"
    kv_cache: str = "auto"
    adapter: str = "auto"
    store_gb: float = 20.0
    citations: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check(field.name, value, field.name)

    @property
    def generation_options(self) -> GenerationOptions:
        """How to decode answers."""
        return GenerationOptions(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed
        )


@dataclass(frozen=True)
class _Rule:
    """Which values a setting takes, as TOML types, as text of a variable, and in words."""

    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any]
    says: str


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _is_amount(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < math.inf


_TEXT = _Rule(lambda v: isinstance(v, str) and bool(v.strip()), str, "a text that is not empty")
_COUNT = _Rule(lambda v: _is_whole(v, 1), int, "a whole number, 1 or more")
_ON_OFF = _Rule(
    lambda v: isinstance(v, bool),
    lambda text: _SWITCH[text.strip().lower()],
    "true or false",
)
_RULES = {
    "model": _TEXT,
    "device": _TEXT,
    "dtype": _Rule(lambda v: v in DTYPES, str, f"one of {', '.join(DTYPES)}"),
    "max_new_tokens": _COUNT,
    "temperature": _Rule(_is_amount, float, "a number, 0 or more"),
    "seed": _Rule(lambda v: _is_whole(v, 0), int, "a whole number, 0 or more"),
    "context_window": _COUNT,
    "window": _COUNT,
    "pace": _Rule(lambda v: v in PACE_CHOICES, str, f"one of {', '.join(PACE_CHOICES)}"),
    "kv_cache": _Rule(lambda v: v in KV_CHOICES, str, f"one of {', '.join(KV_CHOICES)}"),
    "adapter": _TEXT,
    "store_gb": _Rule(_is_amount, float, "a number, 0 or more"),
    "citations": _ON_OFF,
    "quiet": _ON_OFF,
}


def variable_name(setting: str) -> str:
    """The environment variable of a setting."""
    return f"PACELLM_RAG_{setting.upper()}"


def load_settings(
    options: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Puts the settings together.

    Args:
        options: those of the command line; None stands for an option that was not given.
        file: the settings file; None for the user's. The user's need not exist, a named one must.
        environment: the variables.

    Raises:
        ConfigurationError: a value can not work, or the file has an unknown key or is no TOML.
    """
    must_exist = file is not None or bool(environment.get("PACELLM_RAG_CONFIG"))
    values = _from_file(file or config_file(), must_exist)
    values |= _from_environment(environment)
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = _check(name, value, f"--{name.replace('_', '-')}")
    return Settings(**values)


def _from_file(path: Path, must_exist: bool) -> dict[str, Any]:
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not must_exist:
            return {}
        raise ConfigurationError(
            f"There is no settings file {path}. Make it, or unset PACELLM_RAG_CONFIG."
        ) from error
    except (OSError, ValueError) as error:  # both kinds of decoding errors are ValueErrors
        raise ConfigurationError(
            f"The settings file {path} can not be read: {error}. It is a TOML file with lines "
            'such as model = "Qwen/Qwen3-4B-Instruct-2507".'
        ) from error
    for name, value in values.items():
        if name not in _RULES:
            raise ConfigurationError(
                f"The settings file {path} has an unknown key {name!r}. Known are: "
                f"{', '.join(_RULES)}."
            )
        _check(name, value, f"{name} in {path}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, rule in _RULES.items():
        variable = variable_name(name)
        text = environment.get(variable, "")
        if not text.strip():
            continue
        try:
            value = rule.parse(text)
        except (ValueError, KeyError) as error:
            raise ConfigurationError(_refusal(variable, text, rule)) from error
        values[name] = _check(name, value, variable)
    return values


def _check(name: str, value: Any, origin: str) -> Any:
    rule = _RULES[name]
    if not rule.accepts(value):
        raise ConfigurationError(_refusal(origin, value, rule))
    return float(value) if name in ("temperature", "store_gb") else value


def _refusal(origin: str, value: Any, rule: _Rule) -> str:
    return f"{origin} is {value!r}; it must be {rule.says}."
