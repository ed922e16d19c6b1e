"""Bytes led by what of the code they reach, with atheris: a process that libFuzzer steers.

The first byte says which entrance, the others enter it.
"""

import random
import sys

import atheris

with atheris.instrument_imports(
    include=["schemas", "broker", "agents", "ruamel", "cronsim", "dotenv", "tests.fuzz.entrances"]
):
    from tests.fuzz.entrances import ENTRANCES

from tests.fuzz.mutation import mutated


def _enter(data: bytes) -> None:
    if data:
        ENTRANCES[data[0] % len(ENTRANCES)].takes(data[1:])


def _mutate(data: bytes, most: int, seed: int) -> bytes:
    """Half of the mutations follow the format, the others libFuzzer's comparisons."""
    choice = random.Random(seed)
    head, rest = data[:1] or bytes([choice.randrange(len(ENTRANCES))]), data[1:]
    by_format = choice.random() < 0.5
    rest = mutated(rest, choice) if by_format else atheris.Mutate(rest, most - 1)
    return (head + rest)[:most]


if __name__ == "__main__":
    atheris.Setup(sys.argv, _enter, custom_mutator=_mutate)
    atheris.Fuzz()
