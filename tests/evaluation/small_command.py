"""A shell with one command that evaluates the small suite with a tiny model; also a program."""

from __future__ import annotations

import signal
from typing import Any

import click
from small_suite import SmallSuite

from pacellm_rag.cli import opening
from pacellm_rag.cli.app import Shell
from pacellm_rag.cli.evaluating import EvaluationOptions, evaluate, evaluation_options
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.settings import Settings

__all__ = ["shell"]


@click.group(cls=Shell)
def shell() -> None:
    """The shell."""


@shell.command()
@click.option("--texts", default=3)
@click.option("--words", default=100)
@click.option("--pause", default=0.0)
@evaluation_options
def small(terminal: Terminal, evaluation: EvaluationOptions, **more: Any) -> None:
    """Evaluates the small suite."""
    evaluate(SmallSuite(seed=evaluation.seed, **more), evaluation, terminal)


def main() -> None:
    import torch

    from pacellm_rag.testing import tiny_model

    torch.set_num_threads(1)

    def open_tokenizer(_: Settings) -> Any:
        return tiny_model("llama").tokenizer

    def open_model(_: Settings) -> Any:
        return tiny_model("llama")

    # test runners that were started in the background ignore it, and their children with them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    opening.open_tokenizer = open_tokenizer
    opening.open_model = open_model
    shell.main()


if __name__ == "__main__":
    main()
