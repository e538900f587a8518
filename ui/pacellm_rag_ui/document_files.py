"""Where the files of documents stay, and how they go.

    owners/<random>/<document id>       the file as it was given
    owners/<random>/<document id>.json  its parsed pages

No name that a user gave is ever a path. Knows nothing of the database: the caller says which
documents there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from pacellm_rag_ui.disk import clear_errors, is_ours, settle_names

__all__ = ["DocumentFiles"]

logger = logging.getLogger(__name__)

_REMAINS = "What could not be removed goes when the server starts next."


class DocumentFiles:
    """Files by owner's folder and document id.

    Args:
        folder: where the owners' folders lie.

    Raises:
        StorageError: it can not be written.
    """

    def __init__(self, folder: Path) -> None:
        self._owners = folder
        with clear_errors():
            folder.mkdir(mode=0o700, exist_ok=True)

    def original(self, folder: str, document_id: str) -> Path:
        """Where a document's file lies."""
        return self._owners / folder / document_id

    def pages(self, folder: str, document_id: str) -> Path:
        """Where its parsed pages lie."""
        return self._owners / folder / f"{document_id}.json"

    def place(self, original: Path, pages: Path, folder: str, document_id: str) -> None:
        """Renames both files, which lie whole on the same disk, to where they stay.

        Raises:
            StorageError: they can not be placed; one of them may be: `remove` both.
        """
        with clear_errors():
            home = self._owners / folder
            home.mkdir(mode=0o700, exist_ok=True)
            os.replace(pages, self.pages(folder, document_id))
            os.replace(original, self.original(folder, document_id))
            settle_names(home)
            settle_names(self._owners)

    def remove(self, folder: str, document_id: str) -> None:
        """Removes a document's files; those that are gone already are no error.

        Raises:
            StorageError: they can not be removed.
        """
        with clear_errors(_REMAINS):
            self.original(folder, document_id).unlink(missing_ok=True)
            self.pages(folder, document_id).unlink(missing_ok=True)

    def remove_owner(self, folder: str) -> None:
        """Removes all files of an owner.

        Raises:
            StorageError: some can not be removed.
        """
        with clear_errors(_REMAINS):
            _clear(self._owners / folder, keep=())

    def sweep(self, known: Mapping[str, Collection[str]]) -> None:
        """Removes files that no document has: left by a crash, or when removing them failed.

        Args:
            known: ids of the documents by owner's folder. Nobody may place files meanwhile.
        """
        for home in self._owners.iterdir():
            if not is_ours(home.name):
                continue
            try:
                _clear(home, keep=known.get(home.name, ()))
            except OSError:
                logger.warning("Left-over files in %s could not be removed.", home, exc_info=True)


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Removes our files but those of some documents, and the folder if it is then empty."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if is_ours(path.name) and path.name.partition(".")[0] not in keep:
            path.unlink(missing_ok=True)
    if not keep:
        with suppress(OSError):  # something that is not ours lies there
            folder.rmdir()
