"""The page's components and where they stand; what they do is wired in `app`.

Only this module and `app` know Gradio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pacellm_rag_ui.markup import action, escape
from pacellm_rag_ui.panel_view import every_html

__all__ = ["Layout", "build_layout", "top_html"]

_HIDDEN = "hidden-value"
# Sends the page's own events to Python; the names must stand here in quotes.
_BRIDGE = """
const events = ["upload", "document", "conversation", "retry", "about"];
window.pacellmTrigger = (name, data) => events.includes(name) && trigger(name, data);
"""


@dataclass(frozen=True)
class Layout:
    """The components that events read and write, named by what they show."""

    top: gr.HTML
    bridge: gr.HTML
    reports: gr.HTML
    documents: gr.HTML
    meter: gr.HTML
    conversations: gr.HTML
    new_chat: gr.Button
    settings: gr.Accordion
    model: gr.Dropdown
    model_note: gr.HTML
    answer_tokens: gr.Number
    temperature: gr.Slider
    seed: gr.Number
    settings_note: gr.HTML
    history: gr.HTML
    live: gr.HTML
    aside: gr.HTML
    status: gr.HTML
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    export: gr.Button
    every_question: gr.Textbox
    every_send: gr.Button
    every_stop: gr.Button
    every: gr.HTML
    every_csv: gr.Button
    every_markdown: gr.Button
    every_view: gr.State
    compare_question: gr.Textbox
    compare_send: gr.Button
    compare_stop: gr.Button
    compare: gr.HTML
    memory: gr.HTML
    watch: gr.HTML
    watch_send: gr.Button
    watch_stop: gr.Button
    memory_tab: gr.Tab
    exported: gr.Textbox


def build_layout(models: Sequence[str], max_file_bytes: int, *, logged_in: bool) -> Layout:
    """Places everything in the Blocks that is open.

    Args:
        models: names of the models to choose from, the first of which is chosen.
        max_file_bytes: of one file.
        logged_in: whether people log in, and so can log out.
    """
    made: dict[str, object] = {}
    with gr.Column(elem_id="frame"):
        made["top"] = _html(top_html(models[0], logged_in), elem_id="top")
        made["bridge"] = _html("", elem_id="bridge", js_on_load=_BRIDGE)
        with gr.Row(elem_id="panes"):
            with gr.Column(elem_id="left", min_width=0):
                made |= _left(models, max_file_bytes)
            with gr.Column(elem_id="middle", min_width=0), gr.Tabs():
                with gr.Tab("Chat", id="chat"):
                    made |= _chat()
                with gr.Tab("Every document", id="every"):
                    made |= _every()
                with gr.Tab("Memory", id="memory") as tab:
                    made |= _memory()
            with gr.Column(elem_id="right", min_width=0):
                _html(_VIEWER, elem_id="viewer-box")
        _html(_PANES, elem_id="panes-box")
        made["every_view"] = gr.State(None)
        made["exported"] = gr.Textbox(elem_classes=_HIDDEN, label="Exported text", container=False)
    return Layout(**made, memory_tab=tab)  # type: ignore[arg-type]


def _html(value: str, **more: Any) -> gr.HTML:
    """HTML that only our own style sheet touches."""
    return gr.HTML(value, apply_default_css=False, **more)


def _left(models: Sequence[str], max_file_bytes: int) -> dict[str, object]:
    made: dict[str, object] = {}
    _html(_drop_zone(max_file_bytes), elem_id="drop")
    made["reports"] = _html("", elem_id="reports")
    made["documents"] = _html("", elem_id="documents")
    made["meter"] = _html("", elem_id="meter")
    with gr.Column(elem_id="conversations-box", min_width=0):
        _html('<h2 class="section">Conversations</h2>')
        made["new_chat"] = gr.Button("New chat", size="sm", elem_id="new-chat")
        made["conversations"] = _html("", elem_id="conversations")
    with gr.Accordion("Settings", open=False, elem_id="settings") as settings:
        made["settings"] = settings
        choice = len(models) > 1
        if not choice:
            _html(f'<p class="facts">Model: {escape(models[0])}</p>')
        made["model"] = gr.Dropdown(
            list(models),
            value=models[0],
            label="Model of the next question",
            filterable=False,
            visible=choice,
            elem_id="model",
        )
        made["model_note"] = _html("", elem_id="model-note")
        made["answer_tokens"] = gr.Number(
            label="Answer length, in tokens", precision=0, minimum=1, elem_id="answer-tokens"
        )
        made["temperature"] = gr.Slider(
            0,
            2,
            step=0.05,
            label="Temperature",
            info="0: the same answer every time",
            elem_id="temperature",
        )
        made["seed"] = gr.Number(
            label="Seed (-1: another one each time)", precision=0, minimum=-1, elem_id="seed"
        )
        made["settings_note"] = _html("", elem_id="settings-note")
        _html(_DELETE_ALL, elem_id="delete-all")
    return made


def _chat() -> dict[str, object]:
    made: dict[str, object] = {}
    with gr.Column(min_width=0):
        with gr.Column(elem_id="talk", min_width=0):
            made["history"] = _html("", elem_id="history")
            made["live"] = _html("", elem_id="live")
            made["aside"] = _html("", elem_id="aside")
        with gr.Column(elem_id="compose", min_width=0):
            made["status"] = _html("", elem_id="status")
            made["question"], made["send"], made["stop"] = _ask_row(
                "", "Ask about the ticked documents"
            )
            with gr.Row(elem_id="below"):
                _html(_KEYS)
                made["export"] = gr.Button("Export chat", size="sm", elem_id="export")
    return made


def _every() -> dict[str, object]:
    made: dict[str, object] = {}
    with gr.Column(elem_classes="side-panel", min_width=0):
        made["every_question"], made["every_send"], made["every_stop"] = _ask_row(
            "every-", "The same question for every ticked document"
        )
        made["every"] = _html(every_html(None), elem_id="every")
        with gr.Row(elem_classes="buttons"):
            made["every_csv"] = gr.Button("Export as CSV", size="sm", visible=False)
            made["every_markdown"] = gr.Button("Export as Markdown", size="sm", visible=False)
    return made


def _memory() -> dict[str, object]:
    made: dict[str, object] = {}
    with gr.Column(elem_classes="side-panel", min_width=0):
        made["memory"] = _html("", elem_id="memory")
        made["watch"] = _html("", elem_id="watch")
        with gr.Row(elem_classes="buttons"):
            made["watch_send"] = gr.Button(
                "Watch page by page", size="sm", elem_id="watch-send", visible=False
            )
            made["watch_stop"] = gr.Button(
                "Stop", size="sm", variant="stop", elem_id="watch-stop", visible=False
            )
        _html('<h2 class="section">PaceLLM on and off</h2>')
        made["compare_question"], made["compare_send"], made["compare_stop"] = _ask_row(
            "compare-", "Ask with banks and without"
        )
        made["compare"] = _html("", elem_id="compare")
    return made


def _ask_row(prefix: str, placeholder: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    with gr.Row(elem_classes="ask-row"):
        question = gr.Textbox(
            lines=1,
            max_lines=8,
            label="Question",
            show_label=False,
            container=False,
            placeholder=placeholder,
            elem_id=f"{prefix}question",
        )
        send = gr.Button("Ask", variant="primary", elem_id=f"{prefix}send")
        stop = gr.Button("Stop", variant="stop", elem_id=f"{prefix}stop", visible=False)
    return question, send, stop


def top_html(model_name: str, logged_in: bool) -> str:
    """The bar at the top: what this is, who answers, light or dark, the way out."""
    theme = action("local", "Light or dark", kind="theme", shows="◐", classes="small")
    leave = (
        '<form method="post" action="logout"><button class="act soft" type="submit">Log out'
        "</button></form>"
    )
    return (
        '<header class="top"><img src="look/mark.svg" alt=""><h1>PaceLLM-RAG</h1>'
        f'<span class="model" title="The model that answers">{escape(model_name)}</span>'
        f"{theme}{leave if logged_in else ''}</header>"
    )


def _drop_zone(max_file_bytes: int) -> str:
    return (
        '<h2 class="section">Documents</h2><label id="drop-zone">'
        '<input type="file" id="file-input" class="visually-hidden" multiple '
        'accept=".pdf,.docx,.html,.htm,.md,.markdown,.txt">'
        "<strong>Drop files here, or choose</strong>PDF, Word, HTML, Markdown, text · up to "
        f'{max_file_bytes / 1e6:,.0f} MB each</label><ul id="sending"></ul>'
    )


_KEYS = (
    '<p class="keys"><kbd>Enter</kbd> asks · <kbd>Shift</kbd> <kbd>Enter</kbd> new line · '
    "<kbd>Esc</kbd> stops · <kbd>/</kbd> to the question</p>"
)
_DELETE_ALL = action(
    "conversation",
    "Delete all my documents and chats",
    kind="everything",
    classes="danger",
    confirm="Delete all your documents and conversations from this server for good?",
)
_PANES = (
    '<nav class="panes" aria-label="Parts of the page">'
    + "".join(
        f'<button type="button" data-act="local" data-kind="pane" data-pane="{pane}">'
        f"{label}</button>"
        for pane, label in (("documents", "Documents"), ("chat", "Chat"), ("page", "Page"))
    )
    + "</nav>"
)
_VIEWER = (Path(__file__).parent / "look" / "viewer.html").read_text(encoding="utf-8")
