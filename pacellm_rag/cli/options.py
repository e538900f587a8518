"""The options that commands share, and where their values come from (`settings`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.settings import (
    DTYPES,
    KV_CHOICES,
    PACE_CHOICES,
    Settings,
    load_settings,
    variable_name,
)

__all__ = [
    "ADAPTER_HELP",
    "adapter_option",
    "debug_option",
    "document_options",
    "setting_options",
    "wants_traceback",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DEBUG = "pacellm_rag.debug"
ADAPTER_HELP = (
    "Folder or hub id of a LoRA adapter to lay on the model; none: the model as it is; auto: the "
    "default model's own, and none on any other."
)


def _setting(name: str, help: str, **arguments: Any) -> Callable[[_Command], _Command]:
    """An option for a field of `Settings`; None when it is not given."""
    flag = f"--{name.replace('_', '-')}"
    default = next(field.default for field in fields(Settings) if field.name == name)
    notes = [f"variable: {variable_name(name)}"]
    if isinstance(default, bool):
        flag = f"{flag}/--no-{name}"
        default = "on" if default else "off"
    if default is not None:
        notes.append(f"default: {default}")
    return click.option(flag, name, default=None, help=f"{help} [{'; '.join(notes)}]", **arguments)


_SETTINGS = (
    _setting("model", "Folder, .gguf file or hub id, if not the default model.", metavar="NAME"),
    _setting("adapter", ADAPTER_HELP, metavar="NAME"),
    _setting("device", "auto, cpu, cuda, cuda:1 or mps.", metavar="NAME"),
    _setting("dtype", "Number type to compute in.", type=click.Choice(DTYPES)),
    _setting("max_new_tokens", "Most tokens of an answer.", type=int, metavar="N"),
    _setting("temperature", "0 takes the likeliest words; more draws them.", type=float),
    _setting("seed", "Seed for drawing words.", type=int, metavar="N"),
    _setting("context_window", "Most tokens of prompt and answer together, if not the model's own "
             "limit; more than that stretches its positions (YaRN).", type=int, metavar="N"),
    _setting("window", "Tokens read at once; fewer save memory.", type=int, metavar="N"),
    _setting("pace", "PaceLLM's activation memory banks: as the checkpoint says, on, or off.",
             type=click.Choice(PACE_CHOICES)),
    _setting("kv_cache", "How what was read is held in memory: as computed, in 8 bits (half the "
             "memory, less exact), or beside the GPU.", type=click.Choice(KV_CHOICES)),
    _setting("store_gb", "Most GiB on disk for what was read, so that it need not be read again; 0 "
             "keeps nothing.", type=float, metavar="N"),
    _setting("citations", "Find the pages that an answer rests on."),
    _setting("quiet", "No progress, receipts and notes; warnings and errors stay."),
)  # fmt: skip


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `Settings`, and calls it with `settings` and `terminal`."""

    @functools.wraps(command)
    @click.pass_obj
    def run(terminal: Terminal, /, **parameters: Any) -> Any:
        options = {field.name: parameters.pop(field.name, None) for field in fields(Settings)}
        settings = load_settings(options)
        terminal.quiet = settings.quiet
        return command(settings=settings, terminal=terminal, **parameters)

    for option in reversed(_SETTINGS):
        run = option(run)
    return debug_option(run)


def document_options(command: _Command) -> _Command:
    """Gives a command the files to read and their password."""
    command = click.option(
        "--password",
        metavar="TEXT",
        envvar="PACELLM_RAG_PASSWORD",
        help="For encrypted PDFs. Other users of this machine can see options while the command "
        "runs, but not variables. [variable: PACELLM_RAG_PASSWORD]",
    )(command)
    return click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())(
        command
    )


def adapter_option(command: _Command) -> _Command:
    """Gives a command that takes no `Settings` the adapter, as `load_model` takes it."""

    def named(_: click.Context, __: click.Parameter, value: str) -> str | None:
        return None if value == "none" else value

    return click.option(
        "--adapter",
        default="auto",
        show_default=True,
        metavar="NAME",
        callback=named,
        help=ADAPTER_HELP,
    )(command)


def debug_option(command: _Command) -> _Command:
    """Gives a command `--debug`."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_DEBUG] = value or ctx.meta.get(_DEBUG, False)

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show where errors come from. [variable: PACELLM_RAG_DEBUG]",
    )(command)


def wants_traceback(ctx: click.Context) -> bool:
    """Whether errors are to be shown with their traceback."""
    named = os.environ.get("PACELLM_RAG_DEBUG", "").strip().lower()
    return bool(ctx.meta.get(_DEBUG)) or named not in ("", "0", "false", "no", "off")
