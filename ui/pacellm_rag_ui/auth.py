"""Who may use the page: a file of names and password hashes. SIGNATURES; being filled in."""

from __future__ import annotations

from pathlib import Path


def account_line(name: str, password: str) -> str:
    """The line of an accounts file, `name:scrypt$...`, without a line end.

    Raises:
        ConfigurationError: a name with ":" or control characters, or a password under 8 characters.
    """


class Accounts:
    """Names and password hashes; `bool(accounts.verify)` can be Gradio's `auth` callable."""

    @classmethod
    def from_file(cls, path: Path) -> Accounts:
        """Raises ConfigurationError naming file and line."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def verify(self, name: str, password: str) -> str | None:
        """The account's name (use this as owner), or None. Also None while the name is locked."""

    def wait_seconds(self, name: str) -> float:
        """How long no attempt for this name is looked at, after too many failures; 0.0 if not."""
