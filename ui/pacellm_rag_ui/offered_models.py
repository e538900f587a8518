"""The models that pages choose from: loaded when first wanted, let go when nobody wants them.

A laptop seldom has the memory of two. So a model stays while an open page has chosen it, and before
another one is loaded, those that nobody has chosen go. Knows nothing of pages, of the library, or
of how a model is loaded.
"""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.protocols import TextModel
from pacellm_rag_ui.job import told

__all__ = ["KeptModel", "OfferedModel", "OfferedModels"]

logger = logging.getLogger(__name__)

_LOADING = "The model is being loaded. Questions can be asked already; they wait for it."


class KeptModel:
    """Gives a model: loads it when it is first asked for, and keeps it until told to let go.

    Who still works with one that was let go is not disturbed, and until they are done, whoever
    asks gets the same one: there are never two of it.

    Args:
        load: loads the model.
    """

    def __init__(self, load: Callable[[], TextModel]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._kept: TextModel | None = None
        self._seen: weakref.ref[TextModel] | None = None

    def __call__(self) -> TextModel:
        """The model.

        Raises:
            PaceLLMError: it can not be loaded; the next call tries again.
        """
        with self._lock:
            model = self._kept
            if model is None and self._seen is not None:
                model = self._seen()
            if model is None:
                model = self._load()
                self._seen = weakref.ref(model)
            self._kept = model
            return model

    def let_go(self) -> None:
        """Keeps it no longer. Safe to repeat."""
        with self._lock:
            self._kept = None


@dataclass(frozen=True)
class OfferedModel:
    """One model that a page may choose.

    Attributes:
        name: for people.
        load: gives the model; called whenever it is needed, so it should keep it.
        plain: the same model without memory banks, to compare with; None where there is none.
        let_go: called when nobody has chosen it and the memory is wanted for another.
    """

    name: str
    load: Callable[[], TextModel]
    plain: Callable[[], TextModel] | None = None
    let_go: Callable[[], None] = lambda: None


@dataclass
class _State:
    """What is known of an offered model; guarded by the lock of `OfferedModels`, but for `turn`."""

    loaded: bool = False
    failure: str = ""
    loader: threading.Thread | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)  # one loads, the others wait


class OfferedModels:
    """Several models by name, the first of which is everybody's until they choose another.

    Safe to use from several threads.

    Args:
        offered: the models.
        wanted: names of those that open pages have chosen.

    Raises:
        ConfigurationError: there is none, or two have the same name.
    """

    def __init__(
        self,
        offered: Sequence[OfferedModel],
        wanted: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._offered = {each.name: each for each in offered}
        if not offered or len(self._offered) < len(offered):
            names = ", ".join(repr(each.name) for each in offered) or "none"
            raise ConfigurationError(f"The models are {names}; name each once, and at least one.")
        self.wanted = wanted
        self._states = {name: _State() for name in self._offered}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, the default first."""
        return tuple(self._offered)

    @property
    def default(self) -> str:
        """The name of the first."""
        return self.names[0]

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of those that are in memory."""
        with self._lock:
            return tuple(name for name, state in self._states.items() if state.loaded)

    def is_loaded(self, name: str) -> bool:
        """Whether a model is in memory."""
        return name in self.loaded

    def is_loading(self, name: str) -> bool:
        """Whether `soon` or `begin` is loading a model right now."""
        with self._lock:
            return self._states[name].loader is not None

    def failure(self, name: str) -> str:
        """Why a model could not be loaded when that was last tried; "" where it could."""
        with self._lock:
            return self._states[name].failure

    def __getitem__(self, name: str) -> OfferedModel:
        """A model by name.

        Raises:
            ConfigurationError: there is none of this name.
        """
        if name not in self._offered:
            raise ConfigurationError(
                f"There is no model {name[:80]!r} here. Choose one of: {', '.join(self.names)}."
            )
        return self._offered[name]

    def get(self, name: str) -> TextModel:
        """A model; loaded by whoever comes first, while others wait.

        Raises:
            PaceLLMError: it can not be loaded.
        """
        state = self._states[name]
        with state.turn:
            if not state.loaded:
                self._make_room(name)
            try:
                model = self[name].load()
            except Exception as error:
                with self._lock:
                    state.failure = told(error)
                raise
            with self._lock:
                state.loaded, state.failure = True, ""
        return model

    def soon(self, name: str, seconds: float = 1.0) -> TextModel:
        """A model, for those who have something to show without it meanwhile.

        Raises:
            ModelError: it is being loaded, and that takes longer than `seconds`.
            PaceLLMError: it can not be loaded.
        """
        if not self.is_loaded(name):
            loader = self.begin(name)
            loader.join(seconds)
            if loader.is_alive():
                raise ModelError(_LOADING)
        return self.get(name)  # which, where that failed, tells why

    def begin(self, name: str) -> threading.Thread:
        """Loads a model in the background; returns the thread that does."""
        with self._lock:
            state = self._states[name]
            if state.loader is None:
                state.loader = threading.Thread(
                    target=self._load, args=(name,), name="pacellm-page-model", daemon=True
                )
                state.loader.start()
            return state.loader

    def _load(self, name: str) -> None:
        try:
            self.get(name)
        except Exception:
            logger.debug("The model was not loaded; whoever needs it is told.", exc_info=True)
        finally:
            with self._lock:
                self._states[name].loader = None

    def _make_room(self, name: str) -> None:
        """Lets those go that no open page has chosen."""
        kept = {name, *self.wanted()}
        with self._lock:
            gone = [n for n, state in self._states.items() if state.loaded and n not in kept]
            for each in gone:
                self._states[each].loaded = False
        for each in gone:
            self[each].let_go()
        if gone:
            gc.collect()  # hooks and caches of a model refer to each other
