"""One set of weights, and one engine, for everybody in this process who names the same model.

Frameworks make model objects freely, one for each chain or request; what is heavy behind them is
here, once for equal settings. Weights are loaded when they are first needed, by whoever comes
first, while the others wait; they stay until `release_shared_models`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from pacellm_rag.models.loading import load_model, load_tokenizer
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.tokenizer import ChatTokenizer

__all__ = ["release_shared_models", "shared_model", "shared_tokenizer"]

_DEFAULTS: Mapping[str, Any] = {
    parameter.name: parameter.default for parameter in signature(load_model).parameters.values()
}

_guard = threading.Lock()
_locks: dict[object, threading.Lock] = {}
_models: dict[object, PaceModel] = {}
_tokenizers: dict[object, ChatTokenizer] = {}


def shared_model(name: str | Path | None = None, **settings: Any) -> PaceModel:
    """The model of this name and these settings: loaded now, or before by somebody else.

    Args:
        name: as for `load_model`.
        settings: other arguments of `load_model`.

    Raises:
        PaceLLMError: as for `load_model`; the next caller tries again.
    """
    key = _key(name, settings)
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = load_model(name, **settings)
        return model


def shared_tokenizer(
    name: str | Path | None = None,
    *,
    context_window: int | None = None,
    trust_remote_code: bool = False,
) -> ChatTokenizer:
    """The tokenizer of a model, without its weights; one for everybody who asks.

    Args:
        name: as for `load_model`.
        context_window: as for `load_model`.
        trust_remote_code: as for `load_model`.

    Raises:
        PaceLLMError: as for `load_tokenizer`.
    """
    settings = {"context_window": context_window, "trust_remote_code": trust_remote_code}
    key = _key(name, settings)
    with _guard:
        tokenizer = _tokenizers.get(key)
        if tokenizer is None:
            tokenizer = _tokenizers[key] = load_tokenizer(
                name, context_window=context_window, trust_remote_code=trust_remote_code
            )
        return tokenizer


def release_shared_models() -> None:
    """Lets all shared weights go; those in use stay with their users, and are shared no more."""
    with _guard:
        _models.clear()
        _tokenizers.clear()
        _locks.clear()


def _key(name: str | Path | None, settings: Mapping[str, Any]) -> object:
    told = {k: v for k, v in settings.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    if "adapter" in told:
        told["adapter"] = _place(told["adapter"])
    return _place(name), _frozen(told)


def _place(name: str | Path | None) -> str | None:
    """A path in its one form; a name that is none stays as it is."""
    if name is None:
        return None
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def _frozen(value: Any) -> object:
    """A value that is equal and hashable where the settings mean the same."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), _frozen(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value).__name__, _frozen(own)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
