"""Who a request belongs to: a signed cookie, for guests and for people who logged in.

An owner is a string, "guest:<random>" or "user:<name>". The cookie holds it together with the time
it ends and a keyed hash of both; the key is kept beside the library, so that a restart logs nobody
out. Knows nothing of requests, of passwords and of documents.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time

__all__ = ["GUEST_SECONDS", "USER_SECONDS", "Identities", "is_guest"]

GUEST_SECONDS = 400 * 24 * 3600
"""As long as browsers keep a cookie at all: a guest has no other way back to their documents."""
USER_SECONDS = 7 * 24 * 3600

_KEY_BYTES = 32
_GUEST = "guest:"


def is_guest(owner: str) -> bool:
    """Whether an owner is somebody who has not logged in."""
    return owner.startswith(_GUEST)


class Identities:
    """Makes the cookies' values, and reads them again.

    Args:
        key: at least 32 secret bytes.

    Raises:
        ValueError: the key is too short.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _KEY_BYTES:
            raise ValueError(f"The key has {len(key)} bytes; it needs {_KEY_BYTES} at least.")
        self._key = key
        # Browsers send the cookies of one host to all of its ports: two servers must not take
        # each other's cookie for a forged one and replace it.
        self.cookie = f"pacellm_rag_{hashlib.sha256(key).hexdigest()[:12]}"

    def new_guest(self) -> str:
        """An owner that nobody has been before."""
        return f"{_GUEST}{secrets.token_urlsafe(24)}"

    def user(self, name: str) -> str:
        """The owner that a name logs in as."""
        return f"user:{name}"

    def seconds(self, owner: str) -> int:
        """How long a cookie of this owner is good for."""
        return GUEST_SECONDS if is_guest(owner) else USER_SECONDS

    def seal(self, owner: str) -> str:
        """The value of a cookie that says so, from now on."""
        ends = int(time.time()) + self.seconds(owner)
        content = base64.urlsafe_b64encode(f"{ends}:{owner}".encode()).decode().rstrip("=")
        return f"{content}.{self._mark(content)}"

    def header(self, owner: str, *, secure: bool) -> str:
        """The Set-Cookie header that makes a browser this owner's."""
        return (
            f"{self.cookie}={self.seal(owner)}; Path=/; Max-Age={self.seconds(owner)}; HttpOnly; "
            f"SameSite=Strict{'; Secure' if secure else ''}"
        )

    def open(self, value: str) -> str | None:
        """The owner in a cookie; None where it is forged, damaged or too old."""
        content, _, mark = value.partition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(content).encode()):
            return None
        try:
            text = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)).decode()
            ends, _, owner = text.partition(":")
            return owner if int(ends) > time.time() else None
        except (ValueError, binascii.Error):  # signed by us, but by a later or earlier version
            return None

    def _mark(self, content: str) -> str:
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()
