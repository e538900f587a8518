"""Guests: how many, how much, and who gives way to whom."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from library_cases import add, files_of, kept_files

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui import schema
from pacellm_rag_ui.identity import GUEST_SECONDS
from pacellm_rag_ui.library import Library, LibraryLimitError, LibraryLimits

DAY = 24 * 3600.0


def away(folder: Path, days: float, *owners: str) -> None:
    """Lets owners have stayed away for so long."""
    connection = sqlite3.connect(folder / "library.sqlite3")
    with connection:
        for owner in owners:
            connection.execute(
                "UPDATE owners SET used = ? WHERE owner = ?", (time.time() - days * DAY, owner)
            )
    connection.close()


def owners(library: Library) -> set[str]:
    with library._database.reading() as connection:
        return {row["owner"] for row in connection.execute("SELECT owner FROM owners")}


def test_more_guests_than_may_be_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with Library(tmp_path, limits=LibraryLimits(guests=2)) as library:
        one = add(library, "guest:1")
        library.create_conversation("guest:2")
        for refused in (add, Library.create_conversation):
            with pytest.raises(LibraryLimitError, match=r"2 guests.*limit is 2.*--max-guests"):
                refused(library, "guest:3")
        two = add(library, "guest:2")  # those who are known are not new
        add(library, "user:ann")
        assert owners(library) == {"guest:1", "guest:2", "user:ann"}
        library.delete_owner("guest:1")
        assert add(library, "guest:3").owner == "guest:3"
        assert kept_files(tmp_path).isdisjoint(files_of(one))
        assert kept_files(tmp_path) >= files_of(two)


def test_guests_who_come_at_once_are_no_more_than_may_be(tmp_path: Path) -> None:
    with (
        Library(tmp_path, limits=LibraryLimits(guests=3)) as library,
        ThreadPoolExecutor(8) as pool,
    ):

        def come(number: int) -> int:
            try:
                add(library, f"guest:{number}")
            except LibraryLimitError:
                return 0
            return 1

        assert sum(pool.map(come, range(12))) == 3
        assert len(owners(library)) == 3


def test_who_stayed_away_longest_gives_way_and_nobody_who_was_here_lately(tmp_path: Path) -> None:
    limits = LibraryLimits(guests=3, guest_days=30)
    with Library(tmp_path, limits=limits) as library:
        kept = [add(library, f"guest:{number}") for number in range(3)]
        away(tmp_path, 40, "guest:1")
        away(tmp_path, 50, "guest:2")
        away(tmp_path, 29, "guest:0")
        add(library, "guest:new")
        assert owners(library) == {"guest:0", "guest:1", "guest:new"}
        assert kept_files(tmp_path).isdisjoint(files_of(kept[2]))
        add(library, "guest:newer")
        assert owners(library) == {"guest:0", "guest:new", "guest:newer"}
        with pytest.raises(LibraryLimitError, match="30 days"):
            add(library, "guest:newest")


def test_nobody_gives_way_where_there_is_room(tmp_path: Path) -> None:
    with Library(tmp_path, limits=LibraryLimits(guests=3)) as library:
        add(library, "guest:old")
        away(tmp_path, 300, "guest:old")
        add(library, "guest:new")
    with Library(tmp_path) as library:
        assert owners(library) == {"guest:old", "guest:new"}


def test_whose_cookie_can_not_be_good_any_more_is_removed_at_the_start(tmp_path: Path) -> None:
    days = GUEST_SECONDS / DAY
    with Library(tmp_path) as library:
        for name in ("guest:gone", "guest:back", "user:ann"):
            add(library, name)
    away(tmp_path, days + 1, "guest:gone", "user:ann")
    away(tmp_path, days - 1, "guest:back")
    with Library(tmp_path) as library:
        assert owners(library) == {"guest:back", "user:ann"}
        assert len(kept_files(tmp_path)) == 4


def test_what_all_guests_keep_together_is_limited(tmp_path: Path) -> None:
    with Library(tmp_path, limits=LibraryLimits(guest_bytes=10_000)) as library:
        first = add(library, "guest:1", b"1" * 5_000)
        with pytest.raises(LibraryLimitError, match=r"limit is 10,000 bytes.*--guest-gb"):
            add(library, "guest:2", b"2" * 5_000)
        assert kept_files(tmp_path) == files_of(first)
        add(library, "user:ann", b"3" * 9_000)  # those with accounts have limits of their own
        away(tmp_path, 31, "guest:1")
        second = add(library, "guest:2", b"2" * 5_000)
        assert "guest:1" not in owners(library)
        assert kept_files(tmp_path) >= files_of(second)
        with pytest.raises(LibraryLimitError, match="--guest-gb"):
            add(library, "guest:2", b"4" * 5_000)  # nobody gives way to themselves
        assert library.documents("guest:2") == [second]


def test_coming_back_is_noted(tmp_path: Path) -> None:
    with Library(tmp_path, limits=LibraryLimits(guests=1)) as library:
        add(library, "guest:1")
        away(tmp_path, 31, "guest:1")
        library.note_use("guest:1")
        library.note_use("guest:unknown")
        with pytest.raises(LibraryLimitError):
            add(library, "guest:2")
        assert owners(library) == {"guest:1"}


def test_guests_of_an_older_library_count_from_now_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        connection = sqlite3.connect(tmp_path / "library.sqlite3", isolation_level=None)
        schema.migrate(connection)
        connection.execute("INSERT INTO owners VALUES ('guest:1', 'folder', 1.0)")
        connection.close()
    (tmp_path / "owners").mkdir()
    with Library(tmp_path, limits=LibraryLimits(guests=1)) as library:
        assert owners(library) == {"guest:1"}
        with pytest.raises(LibraryLimitError):
            add(library, "guest:2")


def test_limits_of_guests_are_whole_numbers() -> None:
    for name in ("guests", "guest_bytes", "guest_days"):
        with pytest.raises(ConfigurationError, match=name):
            LibraryLimits(**{name: 0})


# what is noted of removed documents


def test_a_content_is_noted_as_removed_once_nobody_keeps_it(tmp_path: Path) -> None:
    with Library(tmp_path) as library:
        one, two = add(library, "guest:1"), add(library, "guest:2")
        library.remove_document("guest:1", one.id)
        assert library.removed_contents() == {}, "Another has the same document."
        library.remove_document("guest:2", two.id)
        assert set(library.removed_contents()) == {one.content_id}
        again = add(library, "guest:1")
        assert library.removed_contents() == {}
        library.delete_owner("guest:1")
        assert set(library.removed_contents()) == {again.content_id}
    with Library(tmp_path) as library:
        known = library.removed_contents()
        assert set(known) == {again.content_id}, "It was lost with the process."
        third = add(library, "guest:1")
        library.remove_document("guest:1", third.id)
        library.contents_forgotten(known)
        assert set(library.removed_contents()) == {again.content_id}, "It was removed since."
        library.contents_forgotten(library.removed_contents())
        assert library.removed_contents() == {}


def test_whoever_asked_is_told_of_every_removed_file(tmp_path: Path) -> None:
    with Library(tmp_path, limits=LibraryLimits(guests=1)) as library:
        told: list[Path] = []
        library.when_removed(told.append)
        one, two = add(library, "guest:1", b"1"), add(library, "guest:1", b"2")
        places = [library.file("guest:1", each.id) for each in (one, two)]
        library.remove_document("guest:1", one.id)
        assert told == places[:1]
        away(tmp_path, 31, "guest:1")
        add(library, "guest:2")
        assert told == places
