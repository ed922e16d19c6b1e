"""Unreadable messages are never run, never lost, and block no others."""

import asyncio
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from broker import Dispatcher, DispatcherSettings, UnknownJob
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from schemas import State
from tests.support.clock import Clock
from tests.support.waiting import LIMIT, until
from tests.support.workstation import Workstation, final, follow, sabotaged


async def letters(
    connection: AbstractConnection, ws: Workstation, count: int
) -> list[AbstractIncomingMessage]:
    """Consume some dead letters of a workstation; those of others stay."""
    found: list[AbstractIncomingMessage] = []
    async with asyncio.timeout(LIMIT), connection.channel() as channel:
        queue = await channel.get_queue(topology.DEAD)
        async with queue.iterator() as arriving:
            async for letter in arriving:
                origin = letter.headers.get("workstation") or letter.headers.get(
                    "x-first-death-queue", ""
                )
                if ws.name in str(origin):
                    await letter.ack()
                    found.append(letter)
                if len(found) == count:
                    return found
    return found


@pytest.mark.parametrize(
    ("body", "key", "reason"),
    [
        (b"no json", None, "Invalid JSON"),
        (b'{"kind": "job"}', None, "command"),
        (b'{"kind": "jobs"}', None, "kind"),
        (b"{}", None, "kind"),
        (None, "background.mandatory.workstation.{name}", "routing key"),
        (None, "foreground.optional.workstation.{name}", "routing key"),
        (b"x" * (1024 * 1024 + 1), None, "over the limit"),
    ],
)
async def test_poison_is_set_aside_with_the_reason_and_others_go_on(
    dispatcher: Dispatcher,
    ws: Workstation,
    settings: DispatcherSettings,
    body: bytes | None,
    key: str | None,
    reason: str,
) -> None:
    """Q159201, Q161043: never run, never lost, never in the way."""
    ws.start("service")
    job = ws.job("true", background=True)
    good = "background.optional.workstation.{name}"
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(topology.REPORTS, f"job.{job.id}", job.body(), kind="job")
        await publisher.publish(
            topology.JOBS,
            (key or good).format(name=ws.name),
            job.body() if body is None else body,
            kind="job",
            message_id=job.id,
        )
        await follow(dispatcher, await dispatcher.dispatch(ws.job("true", background=True)))
        (letter,) = await letters(connection, ws, 1)
    assert letter.body == (job.body() if body is None else body)
    assert reason in str(letter.headers["reason"])
    assert letter.headers["workstation"] == ws.name
    refused = final([report async for report in dispatcher.follow(job.id)])
    assert refused.state is State.REFUSED
    assert reason in refused.reason


async def test_a_newer_major_version_is_refused_and_reported(
    dispatcher: Dispatcher, ws: Workstation, settings: DispatcherSettings
) -> None:
    ws.start("service")
    ws.start("interactive")
    job = ws.job("true")
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(topology.REPORTS, f"job.{job.id}", job.body(), kind="job")
        body = job.body().replace(b'"1.0"', b'"2.0"')
        await publisher.publish(topology.JOBS, topology.routing_keys(job)[0], body, kind="job")
    refused = final([report async for report in dispatcher.follow(job.id)])
    assert (refused.state, refused.reason) == (
        State.REFUSED,
        "version: major version 2 is not supported; 1 is",
    )


async def test_a_refused_id_has_one_final_report_and_poison_harms_no_neighbour(
    dispatcher: Dispatcher, ws: Workstation, settings: DispatcherSettings
) -> None:
    """The reason can be too long for a header; a later job of the same id is refused."""
    ws.start("service").end()
    jobs = [ws.job("true", background=True) for _ in range(6)]
    poisoned = ws.job("true", background=True)
    key = topology.routing_keys(poisoned)[0]
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        for job in jobs[:3]:
            await dispatcher.dispatch(job)
        body = poisoned.body().replace(str(ws.target).encode(), b"x" * 200_000)
        await publisher.publish(topology.JOBS, key, body, kind="job", message_id=poisoned.id)
        for job in jobs[3:]:
            await dispatcher.dispatch(job)
    service = ws.start("service")
    service.wait_for("message.refused")
    async with asyncio.timeout(LIMIT):
        while True:  # until its refusal is known
            with suppress(UnknownJob):
                assert final(await follow(dispatcher, poisoned)).state is State.REFUSED
                break
            await asyncio.sleep(0.05)
    await dispatcher.dispatch(poisoned)
    for job in jobs:
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    reports = await follow(dispatcher, poisoned)
    assert final(reports).state is State.REFUSED
    assert not service.events("broker.lost")


@pytest.mark.full
async def test_good_jobs_go_through_among_ten_thousand_bad_messages(
    dispatcher: Dispatcher, ws: Workstation, settings: DispatcherSettings
) -> None:
    """Q245170: each bad one is set aside with its reason, and no good one waits for it."""
    service = ws.start("service")
    key = f"background.optional.workstation.{ws.name}"
    jobs = []
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        for _ in range(20):
            for _ in range(5):
                await asyncio.gather(
                    *(publisher.publish(topology.JOBS, key, b"bad", kind="job") for _ in range(100))
                )
            jobs.append(await dispatcher.dispatch(ws.job("true", background=True)))
        for job in jobs:
            assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        found = await letters(connection, ws, 10_000)
    assert {letter.headers["reason"] for letter in found} == {
        "Invalid JSON: expected value at line 1 column 1"
    }
    assert not service.events("broker.lost")


@pytest.mark.full
async def test_a_message_that_crashes_the_agent_each_time_is_rejected_and_the_others_are_kept(
    dispatcher: Dispatcher, ws: Workstation, settings: DispatcherSettings
) -> None:
    """A queue gives up what came back too often; the good jobs beside it run, once each."""
    ws.start("service").end()
    ran = ws.folder / "ran"
    clock = Clock(ws)
    due = datetime.now(UTC) + timedelta(hours=1)  # when the agent ends no more
    jobs = [
        ws.job(f"echo {n} >> {ran}", shell=True, background=True, mandatory_at=due)
        for n in range(10)
    ]
    deadly = ws.job("true", background=True, name="deadly")
    for job in [*jobs[:5], deadly, *jobs[5:]]:
        await dispatcher.dispatch(job)
    async with connect(settings, "test") as connection:
        given_up = asyncio.create_task(letters(connection, ws, 1))
        ends = 0
        while not given_up.done():
            service = ws.start("service", connected=False, program=sabotaged("reading", "deadly"))
            await until(lambda service=service: given_up.done() or service.process.poll())  # type: ignore[misc]
            ends += service.end() == -signal.SIGKILL
        (letter,) = given_up.result()
    assert 1 < ends <= 30
    clock.set(2 * 3600)
    clock.start("service")
    for job in jobs:
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert sorted(ran.read_text().split()) == sorted(str(n) for n in range(10))
    assert letter.body == deadly.body()
    assert letter.headers["x-first-death-reason"] == "delivery_limit"


async def test_a_key_that_does_not_match_is_no_way_to_an_interactive_agent(
    dispatcher: Dispatcher, ws: Workstation, settings: DispatcherSettings
) -> None:
    """Q165147: a background job under a foreground key is refused by each agent that gets it."""
    ws.start("service")
    interactive = ws.start("interactive", accept_offers="true")
    job = ws.job("touch", str(ws.folder / "ran"), background=True)
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(topology.REPORTS, f"job.{job.id}", job.body(), kind="job")
        key = f"foreground.mandatory.workstation.{ws.name}"
        await publisher.publish(topology.JOBS, key, job.body(), kind="job", message_id=job.id)
    assert final(await follow(dispatcher, job)).state is State.REFUSED
    interactive.wait_for("message.refused")
    assert not (ws.folder / "ran").exists()
