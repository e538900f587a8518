"""The page: its components and events put together, and mounted on the server.

Gradio is imported here, which takes seconds, and asked for nothing that leaves this machine: no
analytics, no fonts from elsewhere, no history of runs, no monitoring, no tools for agents.
"""

from __future__ import annotations

import os

for _name, _value in (
    ("GRADIO_ANALYTICS_ENABLED", "False"),
    ("GRADIO_RUN_HISTORY", "False"),
    ("DO_NOT_TRACK", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
):
    os.environ[_name] = _value  # read while Gradio is imported

import gradio as gr  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402

from pacellm_rag_ui.answer_events import AnswerEvents  # noqa: E402
from pacellm_rag_ui.gate import owner_of  # noqa: E402
from pacellm_rag_ui.layout import build_layout  # noqa: E402
from pacellm_rag_ui.page_parts import PageParts  # noqa: E402
from pacellm_rag_ui.program_events import ProgramEvents  # noqa: E402
from pacellm_rag_ui.side_events import SideEvents  # noqa: E402

__all__ = ["PageParts", "build_app", "mount_page"]

_HEAD = """
<meta name="referrer" content="no-referrer">
<link rel="icon" href="look/mark.svg">
<link rel="stylesheet" href="look/style.css">
<script src="look/page.js" defer></script>
<script src="look/viewer.js" defer></script>
"""
_UPLOADS_CHECKED, _UPLOADS_KEPT = 60, 300  # seconds


def build_app(parts: PageParts) -> gr.Blocks:
    """The page as a Gradio application."""
    blocks: gr.Blocks
    with gr.Blocks(
        title="PaceLLM-RAG",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_UPLOADS_CHECKED, _UPLOADS_KEPT),
    ) as blocks:
        ProgramEvents(parts).wire()  # first: its endpoints keep their names
        layout = build_layout(
            parts.handlers.models.names, parts.max_file_bytes, logged_in=parts.logged_in
        )
        SideEvents(parts, layout).wire(blocks)
        AnswerEvents(parts, layout).wire()
    blocks.queue(default_concurrency_limit=None, max_size=None)
    return blocks


def mount_page(server: FastAPI, parts: PageParts) -> FastAPI:
    """Puts the page at "/"; the server's own addresses win."""
    gr.mount_gradio_app(
        server,
        build_app(parts),
        path="/",
        auth_dependency=_owner,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
        max_file_size=parts.max_file_bytes,
        theme=_theme(),
        head=_HEAD,
    )
    return server


def _owner(request: Request) -> str:
    return owner_of(request)


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own machine: nothing is fetched."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=sans, font_mono=mono)
