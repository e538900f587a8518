"""The interface for programs: `/upload`, `/ask` and `/stop`, named endpoints for `gradio_client`.

A client is a page of its own: what it uploads is ticked, what it asks is one conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from pacellm_rag_ui.page_parts import PageParts
from pacellm_rag_ui.session import BusyError
from pacellm_rag_ui.views import AskView, FileReport

__all__ = ["ProgramEvents"]


class ProgramEvents:
    """Wires the endpoints.

    Args:
        parts: what the events work with.
    """

    def __init__(self, parts: PageParts) -> None:
        self._parts = parts
        self._handlers = parts.handlers

    def wire(self) -> None:
        """Binds the events; called while the Blocks is open. Nothing of it is seen."""
        files = gr.File(file_count="multiple", visible=False, label="Files")
        password = gr.Textbox("", visible=False, label="Password", type="password")
        question = gr.Textbox(visible=False, label="Question")
        reply = gr.JSON(visible=False, label="Reply")
        button = gr.Button(visible=False)
        work: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
        button.click(self.upload, [files, password], reply, api_name="upload", **work)
        button.click(self.ask, question, reply, api_name="ask", **work)
        button.click(self.stop, None, reply, api_name="stop", queue=False, show_progress="hidden")

    def upload(
        self, files: list[str] | None, password: str, request: gr.Request
    ) -> list[dict[str, Any]]:
        """Reads files; tells of each what has become of it: "ready", "refused" or "locked".

        Args:
            files: `handle_file(path)` of each.
            password: tried on encrypted files; never kept.
            request: who asks.
        """
        session = self._parts.session(request)
        # Gradio keeps uploads under their content's hash, where another client may have put the
        # same file: it is copied, not moved, and the left-overs are deleted in time.
        copies = [
            (Path(file).name, self._parts.incoming.copy(session.owner, Path(file)))
            for file in files or []
        ]
        reports: dict[int, FileReport] = {}
        for report in self._handlers.add_files(session, copies, password or ""):
            reports[report.index] = report
        return [
            {
                "name": report.name,
                "state": report.state,
                "message": report.message,
                "id": report.document.id if report.document else None,
                "pages": report.document.pages if report.document else None,
                "warnings": list(report.document.warnings) if report.document else [],
            }
            for report in reports.values()
        ]

    def ask(self, question: str, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Answers a question from the uploaded files, with what goes on before that.

        Args:
            question: what to answer.
            request: who asks.
        """
        session = self._parts.session(request)
        try:
            for view in self._handlers.ask(session, question):
                yield _as_json(view)
        except BusyError as error:
            yield _as_json(AskView("failed", "Not sent", error=str(error)))

    def stop(self, request: gr.Request) -> dict[str, bool]:
        """Stops the answer that this client is waiting for."""
        return {"stopped": self._handlers.stop(self._parts.session(request))}


def _as_json(view: AskView) -> dict[str, Any]:
    return {
        "state": view.state,
        "status": view.status,
        "percent": round(view.percent, 1),
        "text": view.text,
        "citations": [citation.as_dict() for citation in view.citations],
        "note": view.note,
        "error": view.error,
    }
