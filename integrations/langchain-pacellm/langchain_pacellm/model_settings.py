"""What a chat model is told about its model and its answers, and the model behind it.

Knows which settings there are, how a model is loaded with them, and what an answer depends on.
Knows nothing of messages. Needs no torch before a model or its tokenizer is asked for.
"""

from __future__ import annotations

import uuid
import warnings
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from langchain_pacellm.call_settings import SAMPLING, both_stops, call_settings
from pacellm_rag import __version__
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import PromptTokenizer, TextModel

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PaceSettings"]

# The fields that are arguments of `load_model`, and of these those that no answer depends on.
_LOADING: Final = (
    "device",
    "dtype",
    "attention",
    "context_window",
    "window",
    "pace",
    "limits",
    "store_bytes",
    "kv_cache",
    "adapter",
    "trust_remote_code",
    "model_arguments",
)
_NOT_IN_THE_ANSWER: Final = ("limits", "store_bytes", "trust_remote_code")
# What remote models are constructed with and a local one has no use for.
_REMOTE: Final = ("api_key", "base_url", "organization", "default_headers")


class PaceSettings(BaseModel):
    """Settings, and the model that is loaded with them; the half of `ChatPaceLLM` without chat."""

    model_config = ConfigDict(protected_namespaces=())

    model: str = "default"
    """A folder, a .gguf file or an id of the model hub; "default" for the package's own model."""
    temperature: float = 0.0
    """0 always takes the likeliest token; above 0 samples."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together hold this probability."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 for all."""
    seed: int | None = None
    """Of the sampling; None draws a new one for each answer."""
    stop: list[str] | str | None = None
    """Strings that end an answer; those of a call come on top."""
    timeout: float | None = None
    """Seconds that an answer may take."""
    max_retries: int = Field(default=2, ge=0)
    """How often to try again while too many requests wait for the model. Nothing else is tried
    again: what fails on this machine for another reason fails again."""
    streaming: bool = False
    """Whether `invoke` tells callbacks every piece of the answer."""
    device: str = "auto"
    """As for `load_model`, as are all fields down to `model_arguments`."""
    dtype: Any = "auto"
    attention: str = "auto"
    context_window: int | None = None
    window: int = 1024
    pace: Any = "auto"
    """A `PaceConfig`, its fields as a dict, "auto", "on" or None."""
    limits: Any = None
    store_bytes: int | None = None
    """None for what `load_model` takes."""
    kv_cache: str = "auto"
    adapter: str | Path | None = "auto"
    """A folder or an id of the model hub; "auto" for the default model's own, None for none."""
    trust_remote_code: bool = False
    model_arguments: dict[str, Any] | None = None
    engine: Any = Field(default=None, exclude=True, repr=False)
    """A model that is loaded already (`load_model`, or any `TextModel`); the fields about loading
    are of no use then."""

    @model_validator(mode="before")
    @classmethod
    def _warn_of_unknown_arguments(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            aliases = {field.alias for field in cls.model_fields.values()}
            unknown = sorted(set(values) - set(cls.model_fields) - aliases - set(_REMOTE))
            if unknown:
                warnings.warn(
                    f"ChatPaceLLM has no argument named {', '.join(unknown)}.", stacklevel=4
                )
        return values

    @model_validator(mode="after")
    def _check_pacellm_settings(self) -> PaceSettings:
        call_settings(self._own(), both_stops(self.stop, None), {})
        if isinstance(self.pace, Mapping):
            from pacellm_rag import PaceConfig

            PaceConfig.from_dict(self.pace)
        return self

    @property
    def text_model(self) -> TextModel:
        """The model behind it; loads the weights where nobody has done so with equal settings.

        Raises:
            PaceLLMError: as for `load_model`.
        """
        if self.engine is not None:
            engine: TextModel = self.engine
            return engine
        from pacellm_rag import shared_model

        return shared_model(self._source, **self._loading())

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """The model's tokenizer; needs no weights.

        Raises:
            PaceLLMError: as for `load_tokenizer`.
        """
        if self.engine is not None:
            tokenizer: PromptTokenizer = self.engine.tokenizer
            return tokenizer
        from pacellm_rag import shared_tokenizer

        return shared_tokenizer(
            self._source,
            context_window=self.context_window,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def _source(self) -> str | None:
        return None if self.model == "default" else self.model

    def _loading(self) -> dict[str, Any]:
        """Arguments of `load_model`: those that differ from its own defaults."""
        fields = type(self).model_fields
        changed = {k: getattr(self, k) for k in _LOADING if getattr(self, k) != fields[k].default}
        if isinstance(changed.get("pace"), Mapping):
            from pacellm_rag import PaceConfig

            changed["pace"] = PaceConfig.from_dict(changed["pace"])
        return changed

    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SAMPLING}

    def _named(self, name: Any) -> Self:
        """This chat model, or one with the same settings for the model that a call names."""
        if name is None or name == (self.model if self.engine is None else self.engine.name):
            return self
        if not isinstance(name, str):
            raise ConfigurationError(f"model is {name!r}; it must be a name or path.")
        return self.model_copy(update={"model": name, "engine": None})

    @property
    def _model_name(self) -> str:
        """What `model=` would be told: as the user named it, where that says which it is."""
        if self.engine is not None:
            return str(self.engine.name)
        return self.model if self.model != "default" else self.prompt_tokenizer.name

    @property
    def _dependencies(self) -> dict[str, Any]:
        """Everything that an answer depends on: LangChain's cache goes by it."""
        params: dict[str, Any] = {"model": self.model, "version": __version__}
        if self.engine is not None:
            params.update(model=self.engine.name, engine=_mark(self.engine))
        else:
            params["model"] = _place(self.model)
            loading = {k: v for k, v in self._loading().items() if k not in _NOT_IN_THE_ANSWER}
            if loading.get("adapter") is not None:
                loading["adapter"] = _place(loading["adapter"])
            params.update({k: _plain(v) for k, v in loading.items()})
        params.update(self._own())
        params["stop"] = both_stops(self.stop, None)
        return params

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with the same `engine`: weights are not copied."""
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.engine is not None:
            raise ConfigurationError(
                "A ChatPaceLLM around a model that is loaded already can not be pickled. Name the "
                "model with model=... instead; it is loaded where it is unpickled."
            )
        return super().__getstate__()


def _place(name: str | Path) -> str:
    """A path in its one form; a name that is none stays as it is."""
    with suppress(OSError, ValueError):
        path = Path(name).expanduser()
        if path.exists():
            return str(path.resolve())
    return str(name)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


_marks: dict[int, tuple[weakref.ref[Any], str]] = {}


def _mark(engine: Any) -> str:
    """Tells loaded models apart; never the same for two, also when one has gone."""
    known = _marks.get(id(engine))
    if known is None or known[0]() is not engine:
        place = id(engine)
        gone = weakref.ref(engine, lambda ref: _forget(place, ref))
        known = _marks[place] = (gone, uuid.uuid4().hex)
    return known[1]


def _forget(place: int, ref: weakref.ref[Any]) -> None:
    if place in _marks and _marks[place][0] is ref:
        del _marks[place]
