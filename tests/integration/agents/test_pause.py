"""A paused workstation starts nothing, forgets nothing, and goes on in order."""

import asyncio
import json
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from schemas import Cancellation, Pause, State
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.counted import ended, now, told
from tests.support.steering import pause, publish
from tests.support.waiting import LIMIT, Gate
from tests.support.workstation import Workstation, agents_of, final, follow


@pytest.mark.full
async def test_a_paused_workstation_starts_nothing_and_goes_on_in_order(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """Q173388: what is overdue then runs in order of mandatory time; also after a restart."""
    clock = Clock(ws)
    service = clock.start("service", concurrency="1")
    interactive = clock.start("interactive", concurrency="1")
    gate = Gate(tmp_path / "go")
    running = await dispatcher.dispatch(ws.job(gate.script, shell=True, background=True))
    service.wait_for("job.started")
    queued = await dispatcher.dispatch(ws.job("true", background=True))
    service.wait_for("job.received", 2)
    await pause(settings, ws, reason="exams")
    for agent in ws.agents:
        agent.wait_for("agent.paused")
    gate.open()
    assert final(await follow(dispatcher, running)).state is State.SUCCEEDED

    overdue = [
        await dispatcher.dispatch(
            ws.job("true", background=True, mandatory_at=now(seconds=-seconds))
        )
        for seconds in (10, 30, 20)
    ]
    users = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    offer = await dispatcher.dispatch(ws.job("true"))
    late = await dispatcher.dispatch(ws.job("true", background=True, expires_at=now(hours=1)))
    service.wait_for("job.received", 8)
    clock.set(2 * 3600)
    unwanted = await dispatcher.dispatch(ws.job("true", background=True))
    await dispatcher.cancel(unwanted.id, "no")
    assert (await ended(dispatcher, late, starts=0)).state is State.EXPIRED
    assert (await ended(dispatcher, unwanted, starts=0)).state is State.CANCELLED
    interactive.wait_for("job.offered", 2)
    assert len(service.events("job.started")) == 1
    said = ws.run("pcm-agent", "run", offer.id).stdout
    assert said == "true: is accepted; it runs when this workstation is no longer paused\n"

    text = ws.run("pcm-agent", "pending").stdout
    assert "service has been paused since" in text
    assert text.count(": exams\n") == 2
    rows = json.loads(ws.run("pcm-agent", "pending", "--json").stdout)
    assert {row["paused"] for row in rows} == {True}

    assert service.end(9) == -9
    assert interactive.end() == 0
    service = clock.start("service", concurrency="1")
    interactive = clock.start("interactive", concurrency="1")
    # What comes after it in the queue is taken in, and not started.
    last = await dispatcher.dispatch(ws.job("true", background=True))
    service.wait_for("job.received")
    assert service.events("agent.started")[0]["paused"]
    assert not service.events("job.started")
    assert not interactive.events("job.started")

    await pause(settings, ws, paused=False)
    assert (await ended(dispatcher, last)).state is State.SUCCEEDED
    for job in (*overdue, queued, users, offer):
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    by = [agents_of(await told(dispatcher, job), State.STARTED) for job in (users, offer)]
    assert by == [{"interactive-ada"}, {"interactive-ada"}]
    started = [event["job"] for event in service.events("job.started")]
    assert started == [overdue[1].id, overdue[2].id, overdue[0].id, queued.id, last.id]
    assert "paused" not in ws.run("pcm-agent", "pending").stdout


async def test_a_pause_waits_for_a_workstation_that_is_off(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    clock = Clock(ws)
    clock.start("service").end()
    await pause(settings, ws)
    await dispatcher.dispatch(ws.job("true", background=True))
    service = clock.start("service", missing_after=LOOK_EVERY)
    service.wait_for("job.received")
    service.wait_for("agent.paused")
    older = Pause(workstation=ws.name, paused=False, created_at=now(hours=-1))
    await publish(settings, topology.pause_key(ws.name), older.body(), "pause")
    other = await dispatcher.dispatch(ws.job("true", expires_at=now(hours=1)))
    service.wait_for("job.received", 2)
    clock.set(2 * 3600)
    assert (await ended(dispatcher, other, starts=0)).state is State.EXPIRED
    assert not service.events("agent.resumed")


@pytest.mark.parametrize("place", ["all", "group", "another"])
async def test_a_pause_that_came_by_another_way_is_poison(
    ws: Workstation, settings: DispatcherSettings, place: str
) -> None:
    """Nobody who may speak to a group only can hold back what others sent."""
    service = ws.start("service", groups="lab")
    said = Pause(workstation="another" if place == "another" else ws.name, paused=True)
    key = {
        "all": "foreground.mandatory.all",
        "group": "foreground.mandatory.group.lab",
        "another": topology.pause_key(ws.name),
    }[place]
    await publish(settings, key, said.body(), "pause")
    service.wait_for("message.refused")
    (refused,) = service.events("message.refused")
    assert "pause" in refused["reason"]
    assert not service.events("agent.paused")


async def test_a_cancellation_on_other_workstations_is_nothing_here(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    service = ws.start("service")
    jobs = [ws.job("true", background=True) for _ in range(2)]
    names = (("another",), ("another", ws.name))
    for job, workstations in zip(jobs, names, strict=True):
        said = Cancellation(job_id=job.id, reason="there only", workstations=workstations)
        await publish(settings, topology.routing_keys(job)[0], said.body(), "cancellation")
        await dispatcher.dispatch(job)  # after it: what is remembered would end it
    async with asyncio.timeout(LIMIT):
        states = [final(await follow(dispatcher, job)).state for job in jobs]
    assert states == [State.SUCCEEDED, State.CANCELLED]
    assert not service.events("message.refused")
