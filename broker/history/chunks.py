"""Divide the values of long queries: databases limit the parameters of a statement."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

_SIZE = 500
_T = TypeVar("_T")


def chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield the values in their order, up to 500 at a time."""
    for start in range(0, len(values), _SIZE):
        yield values[start : start + _SIZE]
