"""`pacellm-rag cluster`: writes a model whose neurons are sorted into experts.

The copy gives the same answers; what it adds is a layout and a map of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacellm_rag.cli.opening import hush_libraries
from pacellm_rag.cli.options import adapter_option, debug_option
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.models.default_model import DEFAULT_MODEL, default_model_folder

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

__all__ = ["cluster"]


@click.command(short_help="Sort a model's neurons into experts.")
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--experts", default=64, show_default=True, type=click.IntRange(min=1), help="Per layer."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the clustering."
)
@adapter_option
@debug_option
@click.pass_obj
def cluster(
    terminal: Terminal, model: str, out: Path, experts: int, seed: int, adapter: str | None
) -> None:
    """Copies MODEL into the folder OUT with the neurons of each layer sorted into experts.

    MODEL is a folder, a .gguf file, a hub id, or SmolLM2-135M-Instruct for the default model. The
    neurons of an expert lie side by side in OUT, and experts.safetensors in OUT tells which they
    were. It is a permutation: the answers stay what they were, and are not better. An adapter
    becomes part of the copy; one that changes these neurons can not be laid on it later.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(
            f"{out} exists and is not an empty folder; name a new one. Nothing was written."
        )
    name = None if model == DEFAULT_MODEL else model
    if name is None:
        default_model_folder()  # refuses before the libraries load, which takes seconds
    hush_libraries()
    with terminal.steps() as say:
        layers = _cluster(
            name, adapter, out, experts, seed, say, each_layer=terminal.shows_progress
        )
    terminal.line(f"{layers} layers of {experts} experts each are in {out}")
    terminal.note(f"Its answers are those of {model}, but for rounding.")


def _cluster(
    name: str | None,
    adapter: str | None,
    out: Path,
    experts: int,
    seed: int,
    say: Callable[[str], None],
    *,
    each_layer: bool,
) -> int:
    """Writes the folder; returns the number of layers."""
    from pacellm_rag.models.loading import load_model
    from pacellm_rag.pace.clustering import apply_permutation, cluster_neurons
    from pacellm_rag.pace.expert_map import EXPERTS_FILE

    def tell(done: int, total: int) -> None:
        if each_layer:
            say(f"Clustering: {done} of {total} layers")

    say(f"Loading {name or 'the default model'}")
    # the number type of the checkpoint, so that the copy holds the same numbers
    loaded = load_model(name, adapter=adapter, model_arguments={"dtype": "auto"})
    say("Clustering")
    expert_map = cluster_neurons(loaded.module, experts, seeds=(seed,), progress=tell)
    apply_permutation(loaded.module, expert_map)
    say(f"Writing {out}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
        try:
            made = work / "model"
            _save(loaded, made)
            expert_map.save(made / EXPERTS_FILE)
            if out.exists():
                out.rmdir()
            os.replace(made, out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"The model could not be written to {out}: {error}. Make room or give write "
            "permission there, or name another folder."
        ) from error
    return len(expert_map.layers)


def _save(model: PaceModel, folder: Path) -> None:
    model.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
