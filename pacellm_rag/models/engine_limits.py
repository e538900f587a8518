"""What an engine may take of the machine. Knows nothing of engines."""

from __future__ import annotations

from dataclasses import dataclass

from pacellm_rag.errors import ConfigurationError, QueueFullError

__all__ = ["EngineLimits"]


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may take.

    Attributes:
        max_running: requests that are worked on at a time, and most rows of a forward pass. An
            answer whose caller takes no more of it, and has some pieces ahead, is not worked on: it
            leaves its place to others, though its branch stays in memory until it is closed.
        max_queue: requests that may wait for that. Together with `max_running` it is also the most
            that may be there at all, those that pause included.
        cache_bytes: of memory for what has been read and nobody uses; None for a quarter of what
            the device has.

    Raises:
        ConfigurationError: a value can not work.
    """

    max_running: int = 16
    max_queue: int = 256
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_running < 1 or self.max_queue < 0:
            raise ConfigurationError(
                f"max_running is {self.max_running} and max_queue {self.max_queue}; they must be "
                "at least 1 and 0."
            )
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise ConfigurationError(f"cache_bytes is {self.cache_bytes}; it must be 0 or more.")

    @property
    def most_alive(self) -> int:
        """Most requests that have been begun, or wait, and are not over."""
        return self.max_running + self.max_queue

    def check_room(self, waiting: int, begun: int, *, free: int) -> None:
        """Refuses a newcomer where there is no room.

        Args:
            waiting: requests in the queue.
            begun: requests that have been begun, those that pause included.
            free: places for those in the queue.

        Raises:
            QueueFullError: too many wait, or are there at all.
        """
        if waiting >= self.max_queue + free:
            raise QueueFullError(
                f"{waiting} requests wait for the model already, and no more than "
                f"{self.max_queue} may (max_queue). Try again later."
            )
        if waiting + begun >= self.most_alive:
            raise QueueFullError(
                f"{waiting + begun} requests are there already, of which {begun} have begun, and "
                f"no more than {self.most_alive} may be (max_running and max_queue together). Take "
                "what was begun to its end or close it, or try again later."
            )
