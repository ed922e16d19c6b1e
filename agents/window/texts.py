"""Text of others, made harmless for a terminal."""

import unicodedata

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_CONTROL_PICTURES = 0x2400
_DELETE = "\x7f"


def clean(text: str) -> str:
    """Return text of others as one line that a terminal shows and never obeys.

    Control characters become pictures of themselves; what is invisible or turns the direction of
    writing becomes a replacement character.
    """
    return text if text.isprintable() else "".join(map(_harmless, text))


def _harmless(char: str) -> str:
    if char.isprintable():
        return char
    if char < " ":
        return chr(_CONTROL_PICTURES + ord(char))
    if char == _DELETE:
        return "\N{SYMBOL FOR DELETE}"
    return " " if unicodedata.category(char) == "Zs" else _UNKNOWN
