"""Passwords as hashes that are slow to guess by: scrypt, with a salt of their own.

    scrypt$<n>$<r>$<p>$<salt, base64>$<hash, base64>

Knows nothing of names or files.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
from dataclasses import dataclass

from pacellm_rag.errors import ConfigurationError

__all__ = ["PasswordHash", "ScryptCost"]

_SALT_BYTES = 16
_HASH_BYTES = 32
_MOST_MEMORY = 256 * 1024**2  # of one hash; a line in a file must not be able to ask for more
_MOST_PASSES = 16
_at_once = threading.BoundedSemaphore(2)  # so that a crowd of logins takes no crowd of memory


@dataclass(frozen=True)
class ScryptCost:
    """What a guess costs.

    Attributes:
        n: steps, a power of two.
        r: block size; a guess takes 128 * n * r bytes.
        p: passes. The defaults take 32 MiB and a quarter of a second, as OWASP recommends.

    Raises:
        ConfigurationError: it costs nothing, or more than a server should spend on a login.
    """

    n: int = 2**15
    r: int = 8
    p: int = 3

    def __post_init__(self) -> None:
        if self.n < 2 or self.n & (self.n - 1) or self.r < 1 or self.p < 1:
            raise ConfigurationError(
                f"scrypt can not work with n={self.n}, r={self.r}, p={self.p}: n must be a power "
                "of two, r and p 1 or more."
            )
        if self.memory > _MOST_MEMORY or self.p > _MOST_PASSES:
            raise ConfigurationError(
                f"scrypt with n={self.n}, r={self.r}, p={self.p} takes too long or too much "
                f"memory; the limits are {_MOST_MEMORY:,} bytes (128 * n * r) and "
                f"{_MOST_PASSES} passes."
            )

    @property
    def memory(self) -> int:
        """Bytes that a guess takes."""
        return 128 * self.n * self.r


_DEFAULT_COST = ScryptCost()


@dataclass(frozen=True)
class PasswordHash:
    """The hash of a password, which can be compared with a password but not turned back into it.

    Attributes:
        cost: of a comparison.
        salt: random bytes.
        digest: the hash.
    """

    cost: ScryptCost
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str, cost: ScryptCost = _DEFAULT_COST) -> PasswordHash:
        """Hashes a password with a new salt."""
        salt = secrets.token_bytes(_SALT_BYTES)
        return cls(cost, salt, _scrypt(password, salt, cost, _HASH_BYTES))

    @classmethod
    def from_text(cls, text: str) -> PasswordHash:
        """Reads what `str` made.

        Raises:
            ConfigurationError: it is no such hash.
        """
        kind, *numbers_and_rest = text.split("$")
        if kind != "scrypt" or len(numbers_and_rest) != 5:
            raise ConfigurationError("a hash reads scrypt$n$r$p$salt$hash")
        *numbers, salt, digest = numbers_and_rest
        if not all(re.fullmatch("[0-9]{1,15}", number) for number in numbers):
            raise ConfigurationError("n, r and p of a hash must be whole numbers")
        cost = ScryptCost(*(int(number) for number in numbers))
        try:
            found = cls(cost, _decoded(salt), _decoded(digest))
        except ValueError as error:
            raise ConfigurationError(f"the hash is damaged: {error}") from error
        if len(found.salt) < _SALT_BYTES or len(found.digest) != _HASH_BYTES:
            raise ConfigurationError("the hash is damaged: a part of it is missing")
        return found

    def matches(self, password: str) -> bool:
        """Whether it is the hash of this password; takes the same time either way."""
        found = _scrypt(password, self.salt, self.cost, len(self.digest))
        return hmac.compare_digest(found, self.digest)

    def __str__(self) -> str:
        cost = self.cost
        salt, digest = (base64.b64encode(each).decode() for each in (self.salt, self.digest))
        return f"scrypt${cost.n}${cost.r}${cost.p}${salt}${digest}"


def _scrypt(password: str, salt: bytes, cost: ScryptCost, length: int) -> bytes:
    with _at_once:
        return hashlib.scrypt(
            password.encode("utf-8", "surrogatepass"),
            salt=salt,
            n=cost.n,
            r=cost.r,
            p=cost.p,
            maxmem=cost.memory + 128 * cost.r * cost.p + 1024**2,
            dklen=length,
        )


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
