"""Divide workstations into the waves of a rollout."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.errors import PcmError

_ITEM = re.compile(r"([0-9]{1,9})(%?)")
_ALL = 100


class WrongWaves(PcmError, ValueError):
    """The waves of a rollout are invalid, or leave workstations out."""


@dataclass(frozen=True)
class WaveSize:
    """The workstations of a wave and of all waves before it: a count or a percentage."""

    number: int
    percent: bool

    def __str__(self) -> str:
        return f"{self.number}{'%' * self.percent}"

    def of(self, total: int) -> int:
        """Return the count for a number of workstations; a percentage is rounded up."""
        return min(total, -(-self.number * total // _ALL) if self.percent else self.number)


def read_waves(text: str) -> tuple[WaveSize, ...]:
    """Parse waves such as 1,10%,50%,100%.

    Raises:
        WrongWaves: they are invalid, or do not increase.
    """
    sizes = tuple(map(_wave_size, text.split(",")))
    for percent in (False, True):
        numbers = [size.number for size in sizes if size.percent is percent]
        if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            raise WrongWaves(f"{text!r}: each wave must be larger than the one before it")
    if WaveSize(_ALL, percent=True) in sizes[:-1]:
        raise WrongWaves(f"{text!r}: no workstation is left after 100%")
    return sizes


def _wave_size(text: str) -> WaveSize:
    found = _ITEM.fullmatch(text.strip())
    if found is None or not (number := int(found[1])) or (found[2] and number > _ALL):
        raise WrongWaves(f"{text!r}: write counts or percentages, such as 1,10%,50%,100%")
    return WaveSize(number, percent=bool(found[2]))


def divide(names: Sequence[str], sizes: Iterable[WaveSize]) -> tuple[tuple[str, ...], ...]:
    """Divide names into waves; leave out waves without workstations.

    Raises:
        WrongWaves: the last wave leaves workstations out.
    """
    waves, start, last = [], 0, ""
    for size in sizes:
        end, last = size.of(len(names)), str(size)
        if end > start:
            waves.append(tuple(names[start:end]))
            start = end
    if start < len(names):
        raise WrongWaves(f"{last}: only {start} of {len(names)} workstations: end with 100%")
    return tuple(waves)


def shuffled(names: Iterable[str], rollout_id: str) -> list[str]:
    """Return names in an order that depends only on the rollout's id."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{rollout_id}\0{name}".encode()).digest())
