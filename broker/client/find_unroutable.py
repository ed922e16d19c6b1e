"""Find routing keys that no queue is bound for."""

from collections.abc import Sequence

from broker.amqp import topology
from broker.amqp.publisher import Publisher

_BATCH = 500


async def find_unbound(publisher: Publisher, keys: Sequence[str]) -> list[int]:
    """Return the indexes of the keys that no queue is bound for.

    A probe that expires immediately is published under each key; the broker returns it if it is
    unroutable.

    Raises:
        Unreachable: the broker's answer is not known.
    """
    probes = [
        publisher.outgoing(
            topology.JOBS, key, b"", kind="probe", expiration=0, unroutable_fails=True
        )
        for key in keys
    ]
    unbound: list[int] = []
    for start in range(0, len(probes), _BATCH):
        errors = await publisher.publish_all(probes[start : start + _BATCH])
        unbound += (index for index, error in enumerate(errors, start) if error is not None)
    return unbound
