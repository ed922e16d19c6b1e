"""Errors of the connection to the broker are mapped to our own messages."""

import pytest

from broker.amqp.connection import Backoff, Unreachable, map_errors


def test_a_call_that_our_own_close_cuts_off_is_unreachable() -> None:
    """The library ends it with an exception of no kind; to who waits, the broker was lost."""
    closed = pytest.raises(Unreachable, match="publishing: the connection was closed")
    with closed, map_errors("publishing"):
        raise Exception  # noqa: TRY002 - just so does the library


def test_a_defect_stays_a_defect() -> None:
    with pytest.raises(KeyError), map_errors("publishing"):
        raise KeyError


def test_pauses_between_attempts_grow_to_a_limit_and_a_success_shortens_them() -> None:
    def longest(failures: int) -> float:
        """Return the longest of many pauses after so many failures."""
        pauses = []
        for _ in range(300):
            backoff = Backoff(longest=8)
            for _ in range(failures):
                backoff.failed()
            pauses.append(backoff.failed())
        return max(pauses)

    found = [longest(failures) for failures in (0, 1, 2, 3, 4, 20)]
    for pause, most in zip(found, (0.5, 1, 2, 4, 8, 8), strict=True):
        assert most / 2 < pause <= most
    backoff = Backoff()
    for _ in range(5):
        backoff.failed()
    backoff.reset(2)
    assert backoff.failures == 2
    backoff.reset(4)
    assert backoff.failures == 2
    backoff.reset()
    assert backoff.failures == 0
