from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.auth import Accounts, account_line
from pacellm_rag_ui.password_hash import PasswordHash, ScryptCost

CHEAP = ScryptCost(n=2, r=1, p=1)


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def accounts(clock: Callable[[], float] | None = None, **passwords: str) -> Accounts:
    hashes = {name: PasswordHash.of(each, CHEAP) for name, each in passwords.items()}
    return Accounts(hashes, clock=clock or Clock())


def test_a_line_made_here_lets_its_owner_in_and_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    file.write_text(account_line("ada", "correct horse") + "\n", encoding="utf-8")
    read = Accounts.from_file(file)
    assert read.names == ("ada",)
    assert read.verify("ada", "correct horse") == "ada"
    assert read.verify("ada", "correct horse ") is None
    assert "correct horse" not in file.read_text(encoding="utf-8")


def test_the_same_password_has_another_hash_each_time() -> None:
    first, second = (account_line("ada", "correct horse", cost=CHEAP) for _ in range(2))
    assert first != second
    assert first.startswith("ada:scrypt$2$1$1$")


def test_hashes_are_those_of_scrypt() -> None:
    # the second test vector of RFC 7914, cut to 32 bytes
    digest = bytes.fromhex("fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162")
    assert hashlib.scrypt(b"password", salt=b"NaCl", n=1024, r=8, p=16, dklen=32) == digest
    assert PasswordHash(ScryptCost(1024, 8, 16), b"NaCl", digest).matches("password")
    assert not PasswordHash(ScryptCost(1024, 8, 16), b"NaCl", digest).matches("Password")


def test_a_hash_survives_being_text() -> None:
    made = PasswordHash.of("a:b$c\ud800", CHEAP)
    read = PasswordHash.from_text(str(made))
    assert read == made
    assert read.matches("a:b$c\ud800")


def test_comments_empty_lines_and_a_byte_order_mark_are_no_accounts(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    lines = [account_line(name, "long enough", cost=CHEAP) for name in ("ada", "Bob Müller")]
    file.write_text(f"\ufeff# people\r\n\r\n  {lines[0]}  \r\n{lines[1]}", encoding="utf-8")
    read = Accounts.from_file(file)
    assert read.names == ("ada", "Bob Müller")
    assert read.verify("Bob Müller", "long enough") == "Bob Müller"


def test_letters_are_the_same_however_they_are_typed(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    file.write_text(account_line("ju\u0308rgen", "pa\u0308sswort", cost=CHEAP), encoding="utf-8")
    assert Accounts.from_file(file).verify("j\u00fcrgen", "p\u00e4sswort") == "j\u00fcrgen"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ada", "a hash reads scrypt"),
        ("ada:secret", "a hash reads scrypt"),
        (":scrypt$2$1$1$x$y", "1 to 64 characters, not 0"),
        ("a/b:scrypt$2$1$1$x$y", "has '/' in it"),
        ("<b>:scrypt$2$1$1$x$y", "has '<' in it"),
        ("ada\u202e:scrypt$2$1$1$x$y", "letters, digits and marks"),
        ("ada\u00a0b:scrypt$2$1$1$x$y", "letters, digits and marks"),
        ("ada :scrypt$2$1$1$x$y", "ends with a space"),
        ("a" * 65 + ":scrypt$2$1$1$x$y", "1 to 64 characters, not 65"),
        ("ada:scrypt$two$1$1$x$y", "whole numbers"),
        ("ada:scrypt$²$1$1$x$y", "whole numbers"),
        ("ada:scrypt$3$1$1$x$y", "power of two"),
        ("ada:scrypt$2$0$1$x$y", "1 or more"),
        ("ada:scrypt$1099511627776$8$1$x$y", "too much memory"),
        ("ada:scrypt$" + "9" * 5000 + "$8$1$x$y", "whole numbers"),
        ("ada:scrypt$2$1$17$x$y", "16 passes"),
        ("ada:scrypt$2$1$1$x$y", "damaged"),
        ("ada:scrypt$2$1$1$ü$y", "damaged"),
        ("ada:scrypt$2$1$1$YQ==$YQ==", "a part of it is missing"),
        ("ada:bcrypt$2$1$1$x$y", "a hash reads scrypt"),
    ],
)
def test_a_line_that_is_no_account_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "accounts"
    file.write_text(f"# first\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=reason) as error:
        Accounts.from_file(file)
    assert f"Line 2 of {file}" in str(error.value)
    assert "--hash-password" in str(error.value)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    line = account_line("ada", "long enough", cost=CHEAP)
    file.write_text(f"{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"Line 2 .* ada has an earlier line"):
        Accounts.from_file(file)


@pytest.mark.parametrize("content", [None, b"", b"# nobody\n\n", b"\xff\xfe"])
def test_a_file_without_accounts_lets_nobody_in_but_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "accounts"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"accounts.*--hash-password"):
        Accounts.from_file(file)
    with pytest.raises(ConfigurationError, match="no accounts"):
        Accounts({})


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1_025])
def test_a_password_that_is_too_short_or_too_long_makes_no_line(password: str) -> None:
    with pytest.raises(ConfigurationError, match=r"characters; it needs 8 to 1,024"):
        account_line("ada", password)


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "a\0b", "#a", "x" * 65, " a", "a\ud800"])
def test_a_name_that_can_not_stand_in_the_file_makes_no_line(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        account_line(name, "long enough", cost=CHEAP)


@pytest.mark.parametrize("name", ["eve", "ADA", "ada ", "", "\0", "\ud800", "x" * 10_000, "ada:x"])
def test_a_name_without_an_account_is_let_in_by_no_password(name: str) -> None:
    known = accounts(ada="right")
    for password in ("right", "", "\0", "\ud800", "x" * 100_000):
        assert known.verify(name, password) is None


def test_an_unknown_name_costs_the_same_work_as_a_wrong_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = accounts(ada="right", bob="right")
    work: list[tuple[int, int, int]] = []
    original = hashlib.scrypt

    def count(password: bytes, *, n: int, r: int, p: int, **more: object) -> bytes:
        work.append((n, r, p))
        return original(password, n=n, r=r, p=p, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "scrypt", count)
    for name in ("ada", "eve"):
        work.clear()
        assert known.verify(name, "wrong") is None
        assert work == [(2, 1, 1)]


def test_the_decoy_of_an_unknown_name_is_always_the_same() -> None:
    hashes = {f"u{n}": PasswordHash.of("right", ScryptCost(2**n, 1, 1)) for n in range(1, 9)}
    known = Accounts(hashes)
    decoys = {name: {known._decoy(name).cost.n for _ in range(5)} for name in map(str, range(50))}
    assert {len(costs) for costs in decoys.values()} == {1}
    assert len(set.union(*decoys.values())) > 3  # and not the same for all
    assert known.verify("unknown", "right") is None


def test_after_five_failures_a_name_waits_longer_and_longer() -> None:
    clock = Clock()
    known = accounts(clock, ada="right", bob="right")
    for _ in range(4):
        assert known.verify("ada", "wrong") is None
        assert known.wait_seconds("ada") == 0
    waits = []
    for _ in range(12):
        assert known.verify("ada", "wrong") is None
        waits.append(known.wait_seconds("ada"))
        assert known.verify("ada", "right") is None  # not looked at
        assert known.wait_seconds("ada") == waits[-1]  # and not counted
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert known.wait_seconds("bob") == 0
    assert known.verify("bob", "right") == "bob"
    assert known.verify("ada", "right") == "ada"
    assert known.wait_seconds("ada") == 0
    assert known.verify("ada", "wrong") is None
    assert known.wait_seconds("ada") == 0


def test_an_unknown_name_is_locked_as_a_known_one_is() -> None:
    known = accounts(ada="right")
    waits = {}
    for name in ("ada", "eve"):
        for _ in range(5):
            known.verify(name, "wrong")
        waits[name] = known.wait_seconds(name)
    assert waits == {"ada": 1.0, "eve": 1.0}


def test_failures_are_forgotten_after_a_quarter_of_an_hour() -> None:
    clock = Clock()
    known = accounts(clock, ada="right")
    for _ in range(4):
        known.verify("ada", "wrong")
    clock.now += 901
    known.verify("ada", "wrong")
    assert known.wait_seconds("ada") == 0


def test_many_attempts_at_once_are_not_looked_at_more_often_than_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = accounts(ada="right")
    looked = []
    original = PasswordHash.matches

    def count(self: PasswordHash, password: str) -> bool:
        looked.append(password)
        return original(self, password)

    monkeypatch.setattr(PasswordHash, "matches", count)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: known.verify("ada", f"guess {n}"), range(64)))
    assert found == [None] * 64
    assert len(looked) == 5


def test_failures_of_names_without_end_take_no_memory_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pacellm_rag_ui.auth._MOST_NAMES", 20)
    known = accounts(ada="right")
    for number in range(50):
        known.verify(f"name {number}", "wrong")
    assert len(known._failures) == 20
