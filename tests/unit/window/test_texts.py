"""Texts of others are harmless."""

import pytest

from agents.window.texts import clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00fc \u65e5\u672c", "plain \u00fc \u65e5\u672c"),
        ("\x1b[31m", "\u241b[31m"),
        ("a\nb\tc\x7f", "a\u240ab\u2409c\u2421"),
        ("a\u00a0b", "a b"),
        ("\u202egnp.exe\u200b", "\ufffdgnp.exe\ufffd"),
        ("\x9b2J", "\ufffd2J"),
    ],
)
def test_texts_of_others_are_made_harmless(text: str, shown: str) -> None:
    assert clean(text) == shown
