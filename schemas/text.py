"""Format lists and counts for texts."""

from collections.abc import Collection
from itertools import islice


def listed(names: Collection[str], most: int) -> str:
    """Return the first names, and the number of further ones."""
    more = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 job` or `2,000 jobs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
