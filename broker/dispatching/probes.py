"""Finds out which routing keys lead nowhere."""

import asyncio
import uuid
from collections.abc import Sequence

from broker import topology
from broker.connection import Publisher, Unroutable

_AT_ONCE = 500


async def unbound(publisher: Publisher, keys: Sequence[str]) -> list[int]:
    """Return the places of the keys under which nothing reaches a queue.

    A probe is published under each; it is gone at once, but the broker says whether it had
    somewhere to go.

    Raises:
        Unreachable: the broker's answer is not known.
    """
    lost: list[int] = []
    for start in range(0, len(keys), _AT_ONCE):
        probes = (_leads_nowhere(publisher, key) for key in keys[start : start + _AT_ONCE])
        results = await asyncio.gather(*probes, return_exceptions=True)
        for place, result in enumerate(results, start):
            if isinstance(result, BaseException):
                raise result
            if result:
                lost.append(place)
    return lost


async def _leads_nowhere(publisher: Publisher, key: str) -> bool:
    try:
        await publisher.publish(
            topology.JOBS,
            key,
            b"",
            kind="probe",
            message_id=uuid.uuid4().hex,
            expiration=0,
            unroutable_fails=True,
        )
    except Unroutable:
        return True
    return False
