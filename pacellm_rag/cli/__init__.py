"""The shell: `pacellm-rag ask | chat | models`. Importing it loads no torch, no transformers."""

from pacellm_rag.cli.app import main, shell

__all__ = ["main", "shell"]
