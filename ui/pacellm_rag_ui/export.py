"""SIGNATURES FIRST (H2): conversations as Markdown. Another file than safe_text: export.export_markdown."""

from collections.abc import Sequence
from typing import Any, Protocol


class ExportedTurn(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def citations(self) -> Sequence[Any]: ...  # mappings with the keys of asdict(Citation)
    @property
    def time(self) -> float: ...


def export_markdown(title: str, turns: Sequence[ExportedTurn]) -> str:
    """A conversation (its title, its StoredTurns) as Markdown, citations as footnotes."""
    raise NotImplementedError
