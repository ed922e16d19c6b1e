"""Format lists, counts and suggestions for texts."""

from collections.abc import Collection, Iterable
from itertools import islice


def listed(names: Collection[str], most: int) -> str:
    """Return the first names, and the number of further ones."""
    more = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 job` or `2,000 jobs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known word nearest to a misspelt one; None if none has this likeness (0 to 1)."""
    from difflib import get_close_matches  # only wrong input needs it

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def did_you_mean(near: str | None) -> str:
    """Return what a misspelt word could mean, as the end of a message; empty without a near one."""
    return f"; did you mean {near}?" if near else ""
