"""How a fleet is cut into the waves of a rollout."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.errors import PcmError

_ITEM = re.compile(r"([0-9]{1,9})(%?)")
_ALL = 100


class WrongWaves(PcmError, ValueError):
    """The waves of a rollout cannot be read, or do not fit its workstations."""


@dataclass(frozen=True)
class Item:
    """How many workstations a rollout has reached when a wave is over: a count, or a part."""

    number: int
    percent: bool

    def __str__(self) -> str:
        return f"{self.number}{'%' * self.percent}"

    def of(self, total: int) -> int:
        """Return how many that is of a fleet; a part of a workstation is a whole one."""
        return min(total, -(-self.number * total // _ALL) if self.percent else self.number)


def read_waves(text: str) -> tuple[Item, ...]:
    """Read what people write, such as 1,10%,50%,100%.

    Raises:
        WrongWaves: it is not that, or does not rise.
    """
    items = tuple(map(_item, text.split(",")))
    for percent in (False, True):
        numbers = [item.number for item in items if item.percent is percent]
        if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            raise WrongWaves(f"{text!r}: each wave must go further than the one before it")
    if Item(_ALL, percent=True) in items[:-1]:
        raise WrongWaves(f"{text!r}: nobody is left after 100%")
    return items


def _item(text: str) -> Item:
    found = _ITEM.fullmatch(text.strip())
    if found is None or not (number := int(found[1])) or (found[2] and number > _ALL):
        raise WrongWaves(f"{text!r}: write counts or parts, such as 1,10%,50%,100%")
    return Item(number, percent=bool(found[2]))


def cut(names: Sequence[str], items: Iterable[Item]) -> tuple[tuple[str, ...], ...]:
    """Cut names into waves; where a small fleet leaves a wave nobody, there is none.

    Raises:
        WrongWaves: the last one leaves somebody out: who wants that names other targets.
    """
    waves, done, last = [], 0, ""
    for item in items:
        until, last = item.of(len(names)), str(item)
        if until > done:
            waves.append(tuple(names[done:until]))
            done = until
    if done < len(names):
        raise WrongWaves(f"{last}: only {done} of {len(names)} workstations: end with 100%")
    return tuple(waves)


def mixed(names: Iterable[str], rollout_id: str) -> list[str]:
    """Return names in an order that is another for each rollout, and the same for everyone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{rollout_id}\0{name}".encode()).digest())
