"""Rubbish is told from text that only looks unusual."""

from __future__ import annotations

import pytest

from pacellm_rag.documents.quality import is_garbled

WORDS = "The quick brown fox jumps over the lazy dog. " * 10


@pytest.mark.parametrize(
    "rubbish",
    [
        "/g18/g152/g3" * 20,
        "(cid:12)(cid:7) " * 20,
        "\x03\x11\x14\x05" * 20,
        "\ue012\ue044\ue0a1" * 20,
        "\ufffd" * 30,
        WORDS + "/g18/g152/g3" * 10,
        "$%&/ (=)! §?*' " * 30,
    ],
)
def test_rubbish_is_found(rubbish: str) -> None:
    assert is_garbled(rubbish)


@pytest.mark.parametrize(
    "text",
    [
        "",
        WORDS,
        "1,234.50 (87.2%) -12 " * 40,
        "Introduction ................................................ 3\n" * 20,
        "Introduction . . . . . . . . . . . . . . . . . . . . . . . . 3\n" * 20,
        "\uf0b7 first\n\uf0b7 second\n\uf0b7 third\n" * 5,
        "क्षत्रिय हिन्दी में लिखा हुआ पाठ " * 20,
        "这是一个句子。" * 50,
        "See https://example.org/g12/g13 for more. " * 3 + WORDS * 3,
        "com\ufffepile " * 50,
        "__________________________ Name\n__________________________ Date\n" * 10,
    ],
)
def test_unusual_text_is_left_alone(text: str) -> None:
    assert not is_garbled(text)
