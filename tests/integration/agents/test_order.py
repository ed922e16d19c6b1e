"""Q173388: overdue jobs run in the order of their mandatory times, however they come."""

import asyncio

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from schemas import Cancellation, State
from tests.support.clock import LOOK_EVERY, PROGRAM, Clock
from tests.support.counted import ended, now
from tests.support.rabbitmq import Broker
from tests.support.workstation import AgentProcess, Workstation

MINUTE = 60.0
PREFETCHED = 500  # messages that the broker delivers before any is acknowledged


def started(agent: AgentProcess) -> list[str]:
    return [event["job"] for event in agent.events("job.started")]


@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_an_overdue_job_that_comes_while_a_later_one_waits_runs_first(
    ws: Workstation, dispatcher: Dispatcher, kind: str
) -> None:
    """Each waits, for the user or for the user's agent, and the later one also for the earlier."""
    clock = Clock(ws)
    agent = clock.start(
        kind, concurrency="1", countdown="60m", takeover_grace="60m", missing_after=LOOK_EVERY
    )
    seen = "job.received" if kind == "service" else "job.offered"
    later = await dispatcher.dispatch(ws.job("true", mandatory_at=now(minutes=-10)))
    agent.wait_for(seen)
    clock.set(30 * MINUTE)
    earlier = await dispatcher.dispatch(ws.job("true", mandatory_at=now(minutes=-20)))
    agent.wait_for(seen, 2)

    clock.set(61 * MINUTE)  # the later one alone would run now, and before what comes next
    other = await dispatcher.dispatch(ws.job("true", background=kind == "service"))
    agent.wait_for(seen, 3)
    if kind == "interactive":
        assert ws.run("pcm-agent", "run", other.id).returncode == 0
    assert (await ended(dispatcher, other)).state is State.SUCCEEDED
    assert started(agent) == [other.id]

    clock.set(91 * MINUTE)
    for job in (later, earlier):
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert started(agent) == [other.id, earlier.id, later.id]


async def test_all_that_waits_for_an_agent_is_taken_in_before_anything_is_started(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    """More than the broker delivers at once: the order is that of all, and the last word counts."""
    ws.start("service").end()
    withdrawn, third, first, second = [
        ws.job("true", background=True, mandatory_at=now(minutes=-minutes))
        for minutes in (40, 10, 30, 20)
    ]
    for job in (withdrawn, third):
        await dispatcher.dispatch(job)
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        (key,) = topology.routing_keys(withdrawn)
        unknown = [Cancellation(job_id=f"unknown-{n}").body() for n in range(PREFETCHED + 100)]
        await asyncio.gather(
            *(publisher.publish(topology.JOBS, key, body, kind="cancellation") for body in unknown)
        )
    for job in (first, second):
        await dispatcher.dispatch(job)
    await dispatcher.cancel(withdrawn.id)

    service = ws.start("service", concurrency="1")
    for job in (first, second, third):
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert (await ended(dispatcher, withdrawn, starts=0)).state is State.CANCELLED
    assert started(service) == [first.id, second.id, third.id]


@pytest.mark.full
async def test_what_is_due_runs_where_what_waits_cannot_be_taken_in(
    ws: Workstation, dispatcher: Dispatcher, node: Broker
) -> None:
    """The broker tells how much waits, and then refuses the consumer: nothing of it is to come."""
    clock = Clock(ws)
    node.add_user(ws.name, "secret")
    url = node.url.replace("guest:guest", f"{ws.name}:secret")
    try:
        service = clock.start("service", amqp_url=url)
        await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(hours=1)))
        service.wait_for("job.received")
        service.end()
        await dispatcher.dispatch(ws.job("true", background=True))
        rights = (".*", ".*", r"^pcm\.(jobs|reports|dead)$")
        node.ctl("set_permissions", "-p", node.virtual_host, ws.name, *rights)
        service = ws.start("service", connected=False, program=PROGRAM, amqp_url=url)
        service.wait_for("broker.lost")
        clock.set(61 * MINUTE)
        service.wait_for("job.ended")
        assert not service.events("broker.connected")
    finally:
        node.ctl("delete_user", ws.name)
