"""Make untrusted text safe for a terminal."""

import unicodedata

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_CONTROL_PICTURES = 0x2400
_DELETE = "\x7f"


def clean(text: str) -> str:
    """Return untrusted text as one line without control characters.

    Control characters are replaced by their Unicode symbols. Invisible characters, and those that
    change the writing direction, become the replacement character.
    """
    return text if text.isprintable() else "".join(map(_clean_char, text))


def _clean_char(char: str) -> str:
    if char.isprintable():
        return char
    if char < " ":
        return chr(_CONTROL_PICTURES + ord(char))
    if char == _DELETE:
        return "\N{SYMBOL FOR DELETE}"
    return " " if unicodedata.category(char) == "Zs" else _UNKNOWN
