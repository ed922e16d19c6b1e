"""Lists and counts in what people read."""

from collections.abc import Collection
from itertools import islice


def listed(names: Collection[str], most: int) -> str:
    """Return names in a sentence: the first few, and how many there are besides."""
    more = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return how many of something there are, such as `1 job` or `2,000 jobs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
