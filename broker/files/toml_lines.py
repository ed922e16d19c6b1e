"""Find the lines of headers and keys in TOML."""

import re
from collections.abc import Iterator
from itertools import islice

from broker.files.problems import DEEPEST, TOO_DEEP, Place, Unreadable

_MAX_DOTS = 5000  # in a line: tomllib's time for a key grows with the square of its dots
_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_WORDS = rf"\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*"
_HEADER = re.compile(rf"\s*(\[\[?){_WORDS}\]")
_SETTING = re.compile(rf"{_WORDS}=")
_QUOTES = re.compile(r'"""|' + "'''")


def toml_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Yield the places of a TOML file's headers and keys, with their lines; the first counts.

    Raises:
        Unreadable: a key is so long that tomllib would not end.
    """
    table: Place = ()
    counts: dict[Place, int] = {}
    quoted = False
    for number, line in enumerate(text.split("\n"), 1):
        if quoted:
            pass
        elif header := _HEADER.match(line):
            table = _table(_words(header[2], number), counts, begins=header[1] == "[[")
            # The tables around it have their first line.
            yield from ((table[:end], number) for end in range(1, len(table) + 1))
        elif setting := _SETTING.match(line):
            words = _words(setting[1], number)
            yield from ((table + words[: end + 1], number) for end in range(len(words)))
        if line.count(".") > _MAX_DOTS:
            raise Unreadable(number, f"has more than {_MAX_DOTS:,} dots")
        if len(_QUOTES.findall(line)) % 2:
            quoted = not quoted


def _words(text: str, line: int) -> tuple[str, ...]:
    words = [word[0].strip("\"'") for word in islice(re.finditer(_WORD, text), DEEPEST + 1)]
    if len(words) > DEEPEST:
        raise Unreadable(line, TOO_DEEP)
    return tuple(words)


def _table(words: tuple[str, ...], counts: dict[Place, int], *, begins: bool) -> Place:
    """Return the place of a table; in an array of tables, in its newest."""
    place: Place = ()
    for word in words[:-1]:
        place += (word,)
        if place in counts:
            place += (counts[place] - 1,)
    place += (words[-1],)
    if begins:
        counts[place] = counts.get(place, 0) + 1
        place += (counts[place] - 1,)
    return place
