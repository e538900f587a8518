"""`pacellm-rag-ui`: reads the command line, makes the server and listens.

Knows the settings; what the page can do is in `handlers`, how it looks in `app`.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import platformdirs

from pacellm_rag import GenerationOptions, PaceLLMError, __version__
from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.auth import Accounts, account_line
from pacellm_rag_ui.gate import LOOPBACK_NAMES
from pacellm_rag_ui.records import LibraryLimits
from pacellm_rag_ui.serving import ModelSource, Serving, serve

__all__ = ["check_exposure", "command", "main"]

_LIMITS = LibraryLimits()
_EPILOG = """\b
Examples:
  pacellm-rag-ui report.pdf contract.pdf
  pacellm-rag-ui --hash-password ann >> accounts.txt
  pacellm-rag-ui --model ./small-model --model ./large-model
  pacellm-rag-ui --host 0.0.0.0 --auth accounts.txt --model ./my-model
"""


def main() -> None:
    """Runs the command line of this process."""
    try:
        command.main(prog_name="pacellm-rag-ui")
    except KeyboardInterrupt:
        sys.exit(130)


@click.command(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    default=7860,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A folder, a .gguf file or an id of the hub; else the default model. Repeatable: people "
    "then choose in the page's settings, and begin with the first.",
)
@click.option(
    "--adapter",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Folder or hub id of a LoRA adapter to lay on the model, of several --model on the first "
    "alone; none: the models as they are; auto: the default model's own, and none on any other.",
)
@click.option("--device", default="auto", show_default=True, help="Where to compute.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="What to compute in.",
)
@click.option(
    "--pace",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "on", "off"]),
    help="PaceLLM's activation memory banks: as the checkpoint says, on, or off.",
)
@click.option("--context-window", type=click.IntRange(min=1), help="Most tokens, answer included.")
@click.option(
    "--max-new-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most tokens of an answer, until a page says otherwise.",
)
@click.option(
    "--auth",
    "accounts_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of accounts (see --hash-password); needed to listen beyond this machine.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for documents and conversations.",
)
@click.option(
    "--max-file-mb",
    default=200,
    show_default=True,
    type=click.IntRange(1, 2000),
    help="Largest file that is taken.",
)
@click.option(
    "--max-guests",
    default=_LIMITS.guests,
    show_default=True,
    type=click.IntRange(min=1),
    help="Without --auth: most guests whose things are kept.",
)
@click.option(
    "--guest-gb",
    default=_LIMITS.guest_bytes // 1_000_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Without --auth: most that the documents of all guests may take.",
)
@click.option(
    "--guest-days",
    default=_LIMITS.guest_days,
    show_default=True,
    type=click.IntRange(min=1),
    help="How long a guest must have stayed away to give way when one of these limits is met.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    help="Another name by which browsers reach this server, such as behind a proxy. Repeatable.",
)
@click.option("--hash-password", metavar="NAME", help="Ask for a password, print its line, end.")
@click.version_option(__version__, prog_name="pacellm-rag-ui")
def command(hash_password: str | None, **settings: Any) -> None:
    """A page for questions about FILES and whatever else is dropped on it.

    Documents are read whole by a local model; answers name their pages, and a click shows the
    passage. Nothing leaves this machine.
    """
    try:
        if hash_password is not None:
            secret = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
            click.echo(account_line(hash_password, secret))
            return
        _serve(**settings)
    except PaceLLMError as error:
        raise click.ClickException(str(error)) from error


def _serve(
    *,
    files: tuple[Path, ...],
    host: str,
    port: int,
    accounts_file: Path | None,
    data: Path | None,
    max_file_mb: int,
    hosts: tuple[str, ...],
    max_new_tokens: int,
    models: tuple[str, ...],
    adapter: str,
    max_guests: int,
    guest_gb: int,
    guest_days: int,
    **model_settings: Any,
) -> None:
    check_exposure(host, accounts_file)
    accounts = Accounts.from_file(accounts_file) if accounts_file is not None else None
    folder = data if data is not None else Path(platformdirs.user_data_dir("pacellm-rag"))
    serve(
        Serving(
            folder=folder.expanduser().resolve(),
            models=[
                ModelSource(name, adapter="auto" if later else adapter, **model_settings)
                for later, name in enumerate(models or (None,))
            ],
            options=GenerationOptions(max_new_tokens=max_new_tokens),
            max_file_bytes=max_file_mb * 1_000_000,
            accounts=accounts,
            hosts=None if accounts is not None and not hosts else LOOPBACK_NAMES | set(hosts),
            files=files,
            limits=LibraryLimits(
                guests=max_guests, guest_bytes=guest_gb * 1_000_000_000, guest_days=guest_days
            ),
        ),
        host,
        port,
    )


def check_exposure(host: str, accounts_file: Path | None) -> None:
    """Refuses to listen where others reach it while nobody has to log in.

    Raises:
        ConfigurationError: it would.
    """
    if accounts_file is None and not _is_loopback(host):
        raise ConfigurationError(
            f"--host {host} can be reached from other machines, so people must log in: name a file "
            "of accounts with --auth (--hash-password makes its lines), or leave --host away."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name may point anywhere
        return False
