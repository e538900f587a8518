"""Who may use the page: a file of names and password hashes.

    # made by `pacellm-rag-ui --hash-password`
    ada:scrypt$32768$8$3$...$...

There is no default account. Knows nothing of HTTP, cookies or pages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.password_hash import PasswordHash, ScryptCost

__all__ = ["Accounts", "account_line"]

_LONGEST_NAME = 64
_LONGEST_PASSWORD = 1_024
_SHORTEST_PASSWORD = 8
_FREE_FAILURES = 5  # a person mistypes a few times
_FIRST_WAIT = 1.0  # seconds; twice as long after each further failure
_LONGEST_WAIT = 300.0
_FORGOTTEN_AFTER = 900.0  # seconds without a failure
_MOST_NAMES = 10_000  # whose failures are remembered, known or not
_MARKS = ":#$/\\\"'<>&"  # of the file itself, of paths and of HTML
_DEFAULT_COST = ScryptCost()


def account_line(name: str, password: str, *, cost: ScryptCost = _DEFAULT_COST) -> str:
    """The line of an accounts file for a name and its password, without a line end.

    Raises:
        ConfigurationError: the name can not stand in the file, or the password is too short or
            too long.
    """
    if not _SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
        raise ConfigurationError(
            f"The password has {len(password)} characters; it needs {_SHORTEST_PASSWORD} to "
            f"{_LONGEST_PASSWORD:,}."
        )
    return f"{_checked_name(_normal(name))}:{PasswordHash.of(_normal(password), cost)}"


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0

    def free_again(self) -> float:
        if self.count < _FREE_FAILURES:
            return 0.0
        doublings = min(self.count - _FREE_FAILURES, 20)
        return self.last + min(_FIRST_WAIT * 2.0**doublings, _LONGEST_WAIT)


class Accounts:
    """Checks names and passwords. Safe for threads.

    An unknown name costs a caller the same time as a wrong password, and is locked after failures
    in the same way, so that neither tells which names there are.

    Args:
        hashes: by name.
        clock: seconds that only go forward.

    Raises:
        ConfigurationError: there are no accounts, or a name can not be one.
    """

    def __init__(
        self, hashes: Mapping[str, PasswordHash], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not hashes:
            raise ConfigurationError(
                "There are no accounts. Make a line with `pacellm-rag-ui --hash-password`."
            )
        self._hashes = {_checked_name(_normal(name)): each for name, each in hashes.items()}
        self._clock = clock
        self._decoys = list(self._hashes.values())
        self._decoy_key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    @classmethod
    def from_file(cls, path: Path) -> Accounts:
        """Reads a file of lines `name:scrypt$...`; empty lines and those with "#" are skipped.

        It is read once: a change takes a restart.

        Raises:
            ConfigurationError: there is no such file, it has no accounts, or a line is wrong.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"The accounts in {path} can not be read: {error}. Make a file of lines with "
                "`pacellm-rag-ui --hash-password`."
            ) from error
        hashes: dict[str, PasswordHash] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                name, _, text = line.strip().partition(":")
                name = _checked_name(_normal(name))
                if name in hashes:
                    raise ConfigurationError(f"{name} has an earlier line already")
                hashes[name] = PasswordHash.from_text(text)
            except ConfigurationError as error:
                reason = str(error).rstrip(".")
                raise ConfigurationError(
                    f"Line {number} of {path} is no account: {reason}. Make a line with "
                    "`pacellm-rag-ui --hash-password`."
                ) from error
        if not hashes:
            raise ConfigurationError(
                f"{path} has no accounts. Make a line with `pacellm-rag-ui --hash-password`."
            )
        return cls(hashes)

    @property
    def names(self) -> tuple[str, ...]:
        """All accounts, in the order of the file."""
        return tuple(self._hashes)

    def verify(self, name: str, password: str) -> str | None:
        """Checks a login.

        Returns:
            The account's name, as the file has it; None where name and password do not belong
            together, or while attempts for this name are not looked at (`wait_seconds`).
        """
        if len(name) > _LONGEST_NAME or len(password) > _LONGEST_PASSWORD:
            return None
        key = _normal(name)
        if not self._begin(key):
            return None
        known = self._hashes.get(key)
        matches = (known or self._decoy(key)).matches(_normal(password))
        if known is None or not matches:
            return None
        with self._lock:
            self._failures.pop(key, None)
        return key

    def wait_seconds(self, name: str) -> float:
        """How long attempts for this name are not looked at; 0.0 where they are."""
        with self._lock:
            failures = self._failures.get(_normal(name[:_LONGEST_NAME]))
            return max(failures.free_again() - self._clock(), 0.0) if failures else 0.0

    def _begin(self, key: str) -> bool:
        """Counts the attempt as a failure until it proves to be none: many at once gain nothing."""
        now = self._clock()
        with self._lock:
            failures = self._failures.setdefault(key, _Failures())
            self._failures.move_to_end(key)
            if now - failures.last > _FORGOTTEN_AFTER:
                failures.count = 0
            if now < failures.free_again():
                return False
            failures.count += 1
            failures.last = now
            while len(self._failures) > _MOST_NAMES:
                self._failures.popitem(last=False)
        return True

    def _decoy(self, key: str) -> PasswordHash:
        """For a name that there is not: always the same, so that its time tells nothing."""
        mark = hmac.new(self._decoy_key, key.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return self._decoys[int.from_bytes(mark.digest()[:8], "big") % len(self._decoys)]


def _normal(text: str) -> str:
    """The same for letters that keyboards make in different ways."""
    return unicodedata.normalize("NFC", text)


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise ConfigurationError(f"a name has 1 to {_LONGEST_NAME} characters, not {len(name)}")
    odd = next((c for c in name if c in _MARKS or _is_odd(c)), None)
    if odd is not None:
        raise ConfigurationError(
            f"the name {name!r} has {odd!r} in it; use letters, digits and marks like . _ - @"
        )
    if name != name.strip():
        raise ConfigurationError(f"the name {name!r} begins or ends with a space")
    return name


def _is_odd(character: str) -> bool:
    """Control characters, and spaces that look like another or like nothing."""
    return character != " " and unicodedata.category(character)[0] in "CZ"
