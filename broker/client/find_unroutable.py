"""Finds out which routing keys lead nowhere."""

from collections.abc import Sequence

from broker.amqp import topology
from broker.amqp.publisher import Publisher

_AT_ONCE = 500


async def unbound(publisher: Publisher, keys: Sequence[str]) -> list[int]:
    """Return the places of the keys under which nothing reaches a queue.

    A probe is published under each; it is gone at once, but the broker says whether it had
    somewhere to go.

    Raises:
        Unreachable: the broker's answer is not known.
    """
    probes = [
        publisher.outgoing(
            topology.JOBS, key, b"", kind="probe", expiration=0, unroutable_fails=True
        )
        for key in keys
    ]
    lost: list[int] = []
    for start in range(0, len(probes), _AT_ONCE):
        errors = await publisher.publish_all(probes[start : start + _AT_ONCE])
        lost += (place for place, error in enumerate(errors, start) if error is not None)
    return lost
