"""Lengths and depths from the command line."""

from __future__ import annotations

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.ranges import parse_depths, parse_lengths


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("1k..8k:8", (1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192)),
        ("1k..8k:4", (1024, 3413, 5803, 8192)),
        ("1k..200k:2", (1024, 204_800)),
        ("100..200:3", (100, 150, 200)),
        ("1k,2K,4k", (1024, 2048, 4096)),
        ("4k, 1k", (1024, 4096)),
        ("1.5k", (1536,)),
        ("1m", (1_048_576,)),
        ("300", (300,)),
    ],
)
def test_lengths_are_read_in_all_their_forms(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "depths"),
    [
        ("0:100:11", (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)),
        ("0:100:4", (0.0, 100 / 3, 200 / 3, 100.0)),
        ("25:75:3", (25.0, 50.0, 75.0)),
        ("0,50,100", (0.0, 50.0, 100.0)),
        ("100, 12.5", (12.5, 100.0)),
        ("50", (50.0,)),
    ],
)
def test_depths_are_read_in_all_their_forms(text: str, depths: tuple[float, ...]) -> None:
    assert parse_depths(text) == depths


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "can not be read at ''"),
        ("4q", "can not be read at '4q'"),
        ("1k,,2k", "can not be read at ''"),
        ("-1k", "can not be read at '-1k'"),
        ("٣k", "can not be read"),
        ("0", "1 token or more"),
        ("1k..8k", "do not say how many"),
        ("1k..8k:", "2 or more"),
        ("1k..8k:1", "asks? for '1' steps"),
        ("1k..8k:x", "ask for 'x' steps"),
        ("1k..8k:²", "2 or more"),
        ("8k..1k:4", "end before they have begun"),
        ("1k..1k:2", "end before they have begun"),
        ("10..12:9", "name a length twice"),
        ("1k,1024", "name a length twice"),
        ("..8k:2", "can not be read at ''"),
    ],
)
def test_lengths_that_can_not_be_read_are_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_lengths(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "can not be read at ''"),
        ("half", "can not be read at 'half'"),
        ("nan", "0 to 100"),
        ("0:100", "can not be read"),
        ("0:100:11:2", "can not be read"),
        ("0:100:1", "2 or more"),
        ("0:101:3", "0 to 100"),
        ("-1", "0 to 100"),
        ("100:0:3", "end before they have begun"),
        ("50,50.0", "name a depth twice"),
    ],
)
def test_depths_that_can_not_be_read_are_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_depths(text)
