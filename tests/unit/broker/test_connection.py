"""What can go wrong on the way to the broker is told in our own words."""

import pytest

from broker.amqp.connection import Unreachable, translated


def test_a_call_that_our_own_close_cuts_off_found_nobody() -> None:
    """The library ends it with an exception of no kind; to who waits, the broker was lost."""
    closed = pytest.raises(Unreachable, match="publishing: the connection was closed")
    with closed, translated("publishing"):
        raise Exception  # noqa: TRY002 - just so does the library


def test_a_defect_stays_a_defect() -> None:
    with pytest.raises(KeyError), translated("publishing"):
        raise KeyError
