"""Pause, resume and forget workstations."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aio_pika.abc import AbstractConnection, HeadersType
from aio_pika.exceptions import ChannelNotFoundEntity

from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Unroutable, map_errors
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from broker.client.find_unroutable import find_unbound
from broker.stream import stream
from schemas import Pause, WorkstationForgotten
from schemas.errors import PcmError

if TYPE_CHECKING:
    from broker.history.queries.workstations import WorkstationRow

_BATCH = 500


class NotForgettable(PcmError):
    """A workstation cannot be forgotten: it is not known, or an agent of it is up."""


def interactive_users(
    names: Iterable[str], known: "Iterable[WorkstationRow]"
) -> dict[str, list[str]]:
    """Return the users of each workstation whose interactive agents have checked in."""
    rows = {row.name: row for row in known}
    return {
        name: [
            agent.agent.removeprefix("interactive-")
            for agent in (rows[name].agents if name in rows else ())
            if agent.agent != "service"
        ]
        for name in names
    }


async def send_pauses(
    publisher: Publisher, orders: Sequence[Pause], sign: Callable[[Pause], HeadersType]
) -> None:
    """Send orders to pause or resume; return when the broker has stored them in all queues.

    `sign` returns the signature headers of an order.

    Raises:
        Unroutable: a workstation has no queue; nothing was sent.
        Unreachable: the broker's answer is not known; send them again.
    """
    keys = [topology.pause_key(order.workstation) for order in orders]
    if unbound := await find_unbound(publisher, keys):
        names = ", ".join(orders[index].workstation for index in unbound)
        raise Unroutable(f"no such workstation: {names}; nothing was sent")
    for start in range(0, len(orders), _BATCH):
        messages = [
            publisher.outgoing(
                topology.JOBS,
                topology.pause_key(order.workstation),
                order.body(),
                kind=order.kind,
                headers=sign(order),
                unroutable_fails=True,
            )
            for order in orders[start : start + _BATCH]
        ]
        for error in await publisher.publish_all(messages):
            if error is not None:
                raise error


async def check_forgettable(
    publisher: Publisher, users: Mapping[str, Sequence[str]], known: Collection[str] = ()
) -> None:
    """Check that workstations can be forgotten.

    Args:
        publisher: to the broker.
        users: for each workstation, the users whose interactive agents have queues.
        known: workstations that can be forgotten even without queues.

    Raises:
        NotForgettable: one of them is not known, or an agent of it is up.
        Unreachable: the broker could not be asked.
    """
    consumers = {
        name: await _consumers(publisher.connection, _queues(name, users[name])) for name in users
    }
    if unknown := [name for name in users if consumers[name] is None and name not in known]:
        raise NotForgettable(f"no such workstation: {', '.join(unknown)}; nothing was done")
    if up := [name for name in users if consumers[name]]:
        raise NotForgettable(
            f"{', '.join(up)}: an agent is up, and would check in again: stop it first;"
            " nothing was done"
        )


async def forget(publisher: Publisher, users: Mapping[str, Sequence[str]]) -> None:
    """Delete the queues of workstations, and record that they are forgotten; idempotent.

    Raises:
        Unreachable: the broker's answer is not known; forget them again.
    """
    for name in users:
        await _delete(publisher.connection, _queues(name, users[name]))
        # After the queues: a job sent in between is among those that waited in them.
        forgotten = WorkstationForgotten(workstation=name, created_at=datetime.now(UTC))
        key = f"departure.{name}"
        await stream.append(publisher, key, forgotten.body(), kind=forgotten.kind)


def _queues(name: str, users: Sequence[str]) -> list[str]:
    interactive = (topology.queue_name(AgentKind.INTERACTIVE, name, user) for user in users)
    return [topology.queue_name(AgentKind.SERVICE, name), *interactive]


async def _consumers(connection: AbstractConnection, queues: Iterable[str]) -> int | None:
    """Return the number of consumers of queues; None if no queue exists."""
    counts = [await _consumers_of(connection, queue) for queue in queues]
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


async def _consumers_of(connection: AbstractConnection, queue: str) -> int | None:
    """Return the number of consumers of a queue; None if it does not exist."""
    with map_errors(f"looking for {queue}"):
        try:
            async with timeout(CALL_LIMIT), connection.channel() as channel:
                declared = await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity as error:
            if "no queue" in str(error):
                return None
            raise  # the queue exists, its node is down
    return declared.declaration_result.consumer_count or 0


async def _delete(connection: AbstractConnection, queues: Iterable[str]) -> None:
    # Without if_unused: for a quorum queue it closes the connection.
    for queue in queues:
        with map_errors(f"deleting {queue}"):
            async with timeout(CALL_LIMIT), connection.channel() as channel:
                await channel.queue_delete(queue)
