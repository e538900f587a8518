"""One process that serves the page: the model in the background, the files named, the socket.

Everything the page does is elsewhere; here it is put together with a real model, once, and runs
until it is told to end.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacellm_rag import GenerationOptions, PaceLLMError
from pacellm_rag.documents import DocumentLimits
from pacellm_rag_ui.auth import Accounts
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.library import Library, LibraryLimits
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.shelf import Shelf

if TYPE_CHECKING:
    from pacellm_rag.protocols import TextModel

__all__ = ["ModelSource", "Serving", "serve"]

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class ModelSource:
    """Which model answers, and how it is loaded; loading happens on the first call.

    Attributes:
        model: a folder, a .gguf file or an id of the hub; None for the default model.
        device: where to compute.
        dtype: what to compute in.
        pace: "auto", "on" or "off".
        context_window: most tokens; None for the model's own.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    pace: str = "auto"
    context_window: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return Path(self.model).name if self.model else "default model"

    @property
    def on_this_machine(self) -> bool:
        """Whether loading it asks nobody."""
        return self.model is None or Path(self.model).expanduser().exists()

    def load(self) -> TextModel:
        """The model, loaded once a process."""
        return self._load({"on": "on", "off": None}.get(self.pace, "auto"))

    def load_plain(self) -> TextModel:
        """The same model without memory banks."""
        return self._load(None)

    def _load(self, pace: str | None) -> TextModel:
        from pacellm_rag import shared_model  # brings torch

        settings: dict[str, Any] = {"pace": pace, "context_window": self.context_window}
        return shared_model(self.model, device=self.device, dtype=self.dtype, **settings)


@dataclass(frozen=True)
class Serving:
    """What to serve.

    Attributes:
        folder: for everything that is kept.
        model: who answers.
        options: how answers are decoded until a page says otherwise.
        max_file_bytes: largest file that is taken.
        accounts: who may log in; None makes everybody a guest.
        hosts: names that the server answers to; None for any.
        files: documents that everybody finds in their list.
    """

    folder: Path
    model: ModelSource
    options: GenerationOptions
    max_file_bytes: int
    accounts: Accounts | None
    hosts: frozenset[str] | None
    files: tuple[Path, ...] = ()


def serve(serving: Serving, host: str, port: int) -> None:
    """Serves until the process is told to end.

    Raises:
        PaceLLMError: a file can not be read, or the port is taken.
    """
    _prepare_environment(serving)
    import uvicorn

    from pacellm_rag_ui.server import build_server

    limits = LibraryLimits(file_bytes=serving.max_file_bytes)
    with Library(serving.folder, limits=limits) as library, _listen(host, port) as listener:
        shelf = Shelf(library, serving.files)
        settings = PageSettings(
            options=serving.options,
            document_limits=DocumentLimits(file_bytes=serving.max_file_bytes),
            plain_model=serving.model.load_plain if serving.model.pace != "off" else None,
        )
        handlers = Handlers(library, serving.model.load, settings)
        loaded = threading.Event()
        threading.Thread(target=_warm, args=(serving.model.load, loaded), daemon=True).start()
        server = build_server(
            library,
            handlers,
            serving.folder,
            model_name=serving.model.name,
            max_file_bytes=serving.max_file_bytes,
            accounts=serving.accounts,
            hosts=serving.hosts,
            ready=loaded.is_set,
            welcome=shelf.offer,
        )
        address = f"[{host}]" if ":" in host else host
        _say(f"Listening on http://{address}:{listener.getsockname()[1]} (Ctrl-C ends it)")
        config = uvicorn.Config(
            server, log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])


def _prepare_environment(serving: Serving) -> None:
    """What has to be set before Gradio and the hub's library are imported."""
    for name, value in _QUIET.items():
        os.environ[name] = value
    if serving.model.on_this_machine:
        os.environ["HF_HUB_OFFLINE"] = "1"
    uploads = serving.folder / "gradio"
    uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
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


def _warm(load: Callable[[], object], loaded: threading.Event) -> None:
    """Loads the model while nobody waits for it yet; whoever asks gets the error of their own."""
    try:
        load()
    except PaceLLMError as error:
        _say(f"The model can not be loaded: {error}")
    else:
        loaded.set()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
