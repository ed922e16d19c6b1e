"""Jobs that are withdrawn: cancelled before or after they come, or superseded by newer ones."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from schemas import Cancellation, Job, State
from tests.support.waiting import Gate
from tests.support.workstation import Workstation, agents_of, final, follow


def now(**after: float) -> datetime:
    return datetime.now(UTC) + timedelta(**after)


async def ended(dispatcher: Dispatcher, job: Job) -> tuple[State, str]:
    report = final(await follow(dispatcher, job))
    return report.state, report.reason


async def test_a_cancellation_that_comes_before_its_job(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    """Q140928: queues keep an order, but a job may be sent again after it was cancelled."""
    service = ws.start("service")
    ws.start("interactive", accept_offers="true")
    jobs = [ws.job("true", background=background) for background in (True, False)]
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        for job in jobs:
            cancellation = Cancellation(job_id=job.id, reason="not wanted")
            key = topology.routing_keys(job)[0]
            await publisher.publish(
                topology.JOBS, key, cancellation.body(), kind="cancellation", message_id=job.id
            )
    for job in jobs:
        await dispatcher.dispatch(job)
        assert await ended(dispatcher, job) == (State.CANCELLED, "not wanted")
    assert not service.events("job.started")


@pytest.mark.full
async def test_a_job_is_cancelled_once_however_often_it_is_said(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    service = ws.start("service")
    job = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(hours=1)))
    for reason in ("first", "second", "third"):
        await dispatcher.cancel(job.id, reason)
    assert await ended(dispatcher, job) == (State.CANCELLED, "first")
    await dispatcher.cancel(job.id, "too late")
    other = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, other))[0] is State.SUCCEEDED
    assert len(service.events("job.ended")) == 2
    assert await ended(dispatcher, job) == (State.CANCELLED, "first")


async def test_a_newer_job_replaces_older_ones_that_have_not_started(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service")
    ws.start("interactive")

    async def send(key: str | None, **fields: Any) -> Job:
        fields = {"mandatory_at": now(hours=1), "background": True, **fields}
        return await dispatcher.dispatch(ws.job("true", supersedes=key, **fields))

    gate = Gate(tmp_path / "go")
    running = await dispatcher.dispatch(
        ws.job(gate.script, shell=True, background=True, supersedes="update")
    )
    service.wait_for("job.started")
    older = [await send("update"), await send("update", background=False, mandatory_at=None)]
    others = [await send("another"), await send(None)]
    service.wait_for("job.received", count=5)
    newer = await send("update", mandatory_at=now())
    for job, by in zip(older, [older[1], newer], strict=True):
        assert await ended(dispatcher, job) == (State.CANCELLED, f"superseded by {by.id}")
    gate.open()
    for job in (running, newer):
        assert (await ended(dispatcher, job))[0] is State.SUCCEEDED
    waiting = {event["job"] for event in service.events("job.ended")}
    assert not waiting & {job.id for job in others}


async def test_an_older_job_that_comes_late_is_superseded_already(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Also by one that has ended, and after a restart of the agent."""
    service = ws.start("service")
    older = ws.job("true", background=True, supersedes="update", created_at=now(minutes=-5))
    newer = await dispatcher.dispatch(ws.job("true", background=True, supersedes="update"))
    assert (await ended(dispatcher, newer))[0] is State.SUCCEEDED
    service.end(9)
    ws.start("service")
    await dispatcher.dispatch(older)
    assert await ended(dispatcher, older) == (State.CANCELLED, f"superseded by {newer.id}")
    reports = await follow(dispatcher, older)
    assert not agents_of(reports, State.STARTED)


def test_the_key_is_an_option(ws: Workstation) -> None:
    ws.start("service")
    to = ["pcm", "send", "--to", str(ws.target), "--background", "--supersedes", "Update-1"]
    old = ws.run(*to, "--mandatory-at", "+1h", "--", "true").stdout.strip()
    done = ws.run(*to, "--wait", "--", "true")
    assert done.returncode == 0
    watched = ws.run("pcm", "watch", old)
    assert watched.returncode == 1
    assert "superseded by" in watched.stdout
    wrong = ws.run(*to[:-1], "a key", "--", "true")
    assert (wrong.returncode, wrong.stderr.split(":")[1]) == (2, " --supersedes")
