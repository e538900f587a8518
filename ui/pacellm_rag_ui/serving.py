"""One process that serves the page: the models, the files named, the socket.

Everything the page does is elsewhere; here it is put together with real models, once, and runs
until it is told to end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacellm_rag import GenerationOptions, PaceLLMError, forget_readings
from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.auth import Accounts
from pacellm_rag_ui.disk import clear_errors
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.library import Library, LibraryLimits
from pacellm_rag_ui.offered_models import KeptModel, OfferedModel, OfferedModels
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.process_folder import ProcessFolder
from pacellm_rag_ui.shelf import Shelf

if TYPE_CHECKING:
    from pacellm_rag.protocols import TextModel

__all__ = ["ModelSource", "Serving", "offered_models", "serve"]

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class ModelSource:
    """A model that answers, and how it is loaded.

    Attributes:
        model: a folder, a .gguf file or an id of the hub; None for the default model.
        device: where to compute.
        dtype: what to compute in.
        pace: "auto", "on" or "off".
        context_window: most tokens; None for the model's own.
        adapter: a folder or id of the hub of a LoRA adapter laid on it; "auto" for the default
            model's own and none on others, "none" for the model as it is.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    pace: str = "auto"
    context_window: int | None = None
    adapter: str = "auto"

    @property
    def name(self) -> str:
        """For people."""
        model = Path(self.model).name if self.model else "default model"
        return model if self._laid is None else f"{model}+{Path(self._laid).name}"

    @property
    def whole_name(self) -> str:
        """For people who have to tell it from another of the same name."""
        return str(self.model) if self._laid is None else f"{self.model}+{self._laid}"

    @property
    def on_this_machine(self) -> bool:
        """Whether loading it asks nobody."""
        names = (name for name in (self.model, self._laid) if name is not None)
        return all(Path(name).expanduser().exists() for name in names)

    @property
    def _laid(self) -> str | None:
        """The adapter that was named."""
        return None if self.adapter in ("auto", "none") else self.adapter

    def load(self) -> TextModel:
        """The model, loaded now."""
        return self._load({"on": "on", "off": None}.get(self.pace, "auto"))

    def load_plain(self) -> TextModel:
        """The same model without memory banks, loaded now."""
        return self._load(None)

    def _load(self, pace: str | None) -> TextModel:
        from pacellm_rag import load_model  # brings torch

        settings: dict[str, Any] = {
            "pace": pace,
            "context_window": self.context_window,
            "adapter": None if self.adapter == "none" else self.adapter,
        }
        return load_model(self.model, device=self.device, dtype=self.dtype, **settings)


@dataclass(frozen=True)
class Serving:
    """What to serve.

    Attributes:
        folder: for everything that is kept.
        models: who answers; pages begin with the first.
        options: how answers are decoded until a page says otherwise.
        max_file_bytes: largest file that is taken.
        accounts: who may log in; None makes everybody a guest.
        hosts: names that the server answers to; None for any.
        files: documents that everybody finds in their list.
        limits: how much is kept; the largest file is `max_file_bytes`.
    """

    folder: Path
    models: Sequence[ModelSource]
    options: GenerationOptions
    max_file_bytes: int
    accounts: Accounts | None
    hosts: frozenset[str] | None
    files: tuple[Path, ...] = ()
    limits: LibraryLimits = field(default_factory=LibraryLimits)


def serve(serving: Serving, host: str, port: int) -> None:
    """Serves until the process is told to end.

    Raises:
        PaceLLMError: a file can not be read, or the port is taken.
    """
    with clear_errors():  # first, so that all within is nobody else's from the beginning
        serving.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        _ended_in_order(),
        contextlib.closing(ProcessFolder(serving.folder / "gradio")) as uploads,
    ):
        _prepare_environment(serving, uploads.path)
        _serve(serving, host, port)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Leaves the block by an exception when the process is asked to end.

    uvicorn ends itself first, and then by the signal that it got, which would leave all else as it
    is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(serving: Serving, host: str, port: int) -> None:
    import uvicorn

    from pacellm_rag_ui.server import build_server

    limits = replace(serving.limits, file_bytes=serving.max_file_bytes)
    with Library(serving.folder, limits=limits) as library, _listen(host, port) as listener:
        shelf = Shelf(library, serving.files)
        for name in shelf.locked:
            _say(f"{name} is protected by a password. Add it on the page, which asks for it.")
        settings = PageSettings(
            options=serving.options,
            document_limits=DocumentLimits(file_bytes=serving.max_file_bytes),
            forget_readings=forget_readings,
        )
        models = offered_models(serving.models)
        handlers = Handlers(library, models, settings)
        threading.Thread(target=_load_first, args=(models,), daemon=True).start()
        server = build_server(
            library,
            handlers,
            serving.folder,
            max_file_bytes=serving.max_file_bytes,
            accounts=serving.accounts,
            hosts=serving.hosts,
            ready=lambda: models.is_loaded(models.default),
            welcome=shelf.offer,
        )
        address = f"[{host}]" if ":" in host else host
        _say(f"Listening on http://{address}:{listener.getsockname()[1]} (Ctrl-C ends it)")
        config = uvicorn.Config(
            server, log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])


def offered_models(sources: Sequence[ModelSource]) -> OfferedModels:
    """The models that pages choose from; those of the same name get their whole names.

    Raises:
        ConfigurationError: there is none, or one is named twice.
    """
    seen = Counter(source.name for source in sources)
    names = [each.name if seen[each.name] == 1 else each.whole_name for each in sources]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"--model names a model twice: {', '.join(names)}. Name each of them once."
        )
    return OfferedModels([_offer(*each) for each in zip(names, sources, strict=True)])


def _offer(name: str, source: ModelSource) -> OfferedModel:
    kept = [KeptModel(source.load)]
    if source.pace != "off":
        kept.append(KeptModel(source.load_plain))

    def let_go() -> None:
        for each in kept:
            each.let_go()

    return OfferedModel(name, kept[0], kept[1] if len(kept) > 1 else None, let_go)


def _prepare_environment(serving: Serving, uploads: Path) -> None:
    """What has to be set before Gradio and the hub's library are imported."""
    for name, value in _QUIET.items():
        os.environ[name] = value
    if all(source.on_this_machine for source in serving.models):
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PaceLLMError(
            f"Port {port} of {host} can not be listened on ({error.strerror}). Name another one "
            "with --port, or --port 0 for a free one."
        ) from error
    return listener


def _load_first(models: OfferedModels) -> None:
    """Loads the default while nobody waits for it; whoever asks gets the error of their own."""
    models.begin(models.default).join()
    if failure := models.failure(models.default):
        _say(f"The model can not be loaded: {failure}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
