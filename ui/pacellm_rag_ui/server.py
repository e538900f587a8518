"""The whole server as one ASGI application: the gate, the own addresses, and the page behind them.

Nothing is read from the environment and nothing listens here; `command` does both.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from pacellm_rag_ui.auth import Accounts
from pacellm_rag_ui.gate import LOOPBACK_NAMES, Gate
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.identity import Identities
from pacellm_rag_ui.incoming import Incoming
from pacellm_rag_ui.library import Library
from pacellm_rag_ui.pages import PageImages
from pacellm_rag_ui.routes import RouteParts, build_router

__all__ = ["build_server"]


def build_server(
    library: Library,
    handlers: Handlers,
    folder: Path,
    *,
    max_file_bytes: int,
    accounts: Accounts | None = None,
    hosts: Iterable[str] | None = LOOPBACK_NAMES,
    ready: Callable[[], bool] = lambda: True,
    welcome: Callable[[str], None] = lambda owner: None,
) -> FastAPI:
    """Puts the server together.

    Args:
        library: what is kept; its signing key signs the cookies.
        handlers: what the page can do; closed when the server ends.
        folder: for uploads on their way.
        max_file_bytes: largest file that is taken.
        accounts: who may log in; None makes everybody a guest with documents of their own.
        hosts: names that this server answers to; None for any.
        ready: whether the model is loaded, for /healthz.
        welcome: called with the owner whenever a page is opened, before it is drawn.
    """
    from pacellm_rag_ui.app import PageParts, mount_page  # Gradio takes seconds to import

    identities = Identities(library.signing_key())
    incoming = Incoming(folder / "incoming", max_bytes=max_file_bytes)
    images = PageImages()
    library.when_removed(images.forget)

    @contextlib.asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with contextlib.ExitStack() as ending:  # each, even where one before it fails
                ending.callback(incoming.close)
                ending.callback(images.close)
                ending.callback(handlers.close)

    names = frozenset(accounts.names) if accounts is not None else frozenset()
    gate: dict[str, Any] = {
        "identities": identities,
        "guests": accounts is None,
        "knows": lambda owner: accounts is None or owner.removeprefix("user:") in names,
        "hosts": hosts,
    }
    server = FastAPI(
        title="pacellm-rag-ui",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=[Middleware(Gate, **gate)],
    )
    parts = RouteParts(library, images, incoming, identities, accounts, ready)
    server.include_router(build_router(parts))
    page = PageParts(
        handlers,
        incoming,
        max_file_bytes=max_file_bytes,
        logged_in=accounts is not None,
        welcome=welcome,
    )
    return mount_page(server, page)
