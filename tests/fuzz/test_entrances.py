"""Bytes from outside are taken or refused as documented; nothing else comes of them."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.entrances import ENTRANCES, Entrance
from tests.fuzz.mutation import mutated

entrances = pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda entrance: entrance.name)


@entrances
def test_what_is_right_is_taken(entrance: Entrance) -> None:
    """At least one is valid; otherwise the others would be refused for another reason."""
    assert any(map(entrance.takes, entrance.seeds))


@entrances
@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_any_bytes(entrance: Entrance, data: bytes) -> None:
    entrance.takes(data)


@entrances
@settings(max_examples=100)
@given(choice=st.integers(0, 2**32))
def test_almost_right_bytes(entrance: Entrance, choice: int) -> None:
    random = Random(choice)
    entrance.takes(mutated(random.choice(entrance.seeds), random))
