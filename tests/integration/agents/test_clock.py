"""A wall clock that jumps, and a machine that sleeps: each job runs once, at its time."""

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp.topology import AgentKind, queue_name
from schemas import Job, State, WallClock
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.counted import an_offer_runs, counted, ended, no_traceback, now, past
from tests.support.queues import until_queue
from tests.support.rabbitmq import Broker
from tests.support.steering import check_ins
from tests.support.waiting import Gate, until_there, until_true
from tests.support.workstation import Workstation

HOURS = 5
JUMP = HOURS * 3600.0


@pytest.mark.full
async def test_a_jump_ahead_makes_jobs_due_and_others_expire(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """A running command's timeout does not go by it."""
    clock = Clock(ws)
    service = clock.start("service")
    fields: dict[str, Any] = {"background": True, "mandatory_at": now(hours=HOURS - 1)}
    due = counted(ws, tmp_path / "due", **fields)
    late = counted(ws, tmp_path / "late", **fields, expires_at=now(hours=HOURS - 0.5))
    offer = counted(ws, tmp_path / "offer", expires_at=now(hours=HOURS - 1))
    later = counted(ws, tmp_path / "later", background=True, mandatory_at=now(hours=HOURS + 1))
    gate = Gate(tmp_path / "go")
    running = counted(
        ws, tmp_path / "running", gate.script, background=True, timeout=timedelta(hours=1)
    )
    for job in (due, late, offer, later, running):
        await dispatcher.dispatch(job)
    until_there(tmp_path / "running")
    service.wait_for("job.received", 5)
    clock.set(JUMP)
    assert (await ended(dispatcher, due)).state is State.SUCCEEDED
    for job in (late, offer):
        assert (await ended(dispatcher, job, starts=0)).state is State.EXPIRED
    gate.open()
    assert (await ended(dispatcher, running)).state is State.SUCCEEDED
    for job, state in ((due, "due"), (running, "running")):
        assert (tmp_path / state).read_text() == "x\n", job
    assert not (tmp_path / "late").exists()
    assert not (tmp_path / "later").exists()
    assert later.id in ws.run("pcm-agent", "pending").stdout


async def test_a_jump_back_runs_nothing_a_second_time(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """And what came by the wrong clock is not put off until that is right."""
    clock = Clock(ws, JUMP)
    clock.start("service", concurrency="1")
    once, gate = tmp_path / "once", Gate(tmp_path / "go")
    done = counted(ws, once, background=True, mandatory_at=now(seconds=-1))
    await dispatcher.dispatch(done)
    assert (await ended(dispatcher, done)).state is State.SUCCEEDED
    before = [
        counted(ws, tmp_path / "blocking", gate.script, background=True),
        counted(ws, tmp_path / "waiting", background=True),
        counted(ws, tmp_path / "users", mandatory_at=now()),
    ]
    for job in before:
        await dispatcher.dispatch(job)
    until_there(tmp_path / "blocking")
    clock.set(0)
    gate.open()
    for job in before:
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    for name in ("once", "blocking", "waiting", "users"):
        assert (tmp_path / name).read_text() == "x\n"


async def test_what_the_wrong_clock_received_runs_after_a_restart_by_the_right_one(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    clock = Clock(ws, JUMP)
    service = clock.start("service", concurrency="1")
    blocking = counted(ws, tmp_path / "blocking", "sleep 82.1", background=True)
    waiting = counted(ws, tmp_path / "waiting", background=True)
    for job in (blocking, waiting):
        await dispatcher.dispatch(job)
    service.wait_for("job.received", 2)
    until_there(tmp_path / "blocking")
    service.end(signal.SIGKILL)
    clock.set(0)
    clock.start("service", concurrency="1")
    assert (await ended(dispatcher, waiting)).state is State.SUCCEEDED
    assert (await ended(dispatcher, blocking)).state is State.INTERRUPTED
    for name in ("blocking", "waiting"):
        assert (tmp_path / name).read_text() == "x\n"


@pytest.mark.full
@pytest.mark.parametrize("answer", ["nothing", "postponed"])
async def test_a_users_countdown_is_whole_after_a_jump_back(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, answer: str
) -> None:
    clock = Clock(ws, JUMP)
    interactive = clock.start(
        "interactive", concurrency="1", countdown="1h", missing_after=LOOK_EVERY
    )
    ran = tmp_path / "ran"
    later = now(hours=HOURS, seconds=60)
    job = counted(ws, ran, mandatory_at=later if answer == "postponed" else now())
    await dispatcher.dispatch(job)
    interactive.wait_for("job.offered")
    if answer == "postponed":
        said = ws.run("pcm-agent", "postpone", job.id, "--until", later.isoformat())
        assert said.returncode == 0, said.stderr
        clock.set(0)
        interactive.wait_for("job.offered", 2)
        assert ws.run("pcm-agent", "run", job.id).returncode == 0
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
        return
    clock.set(JUMP + 1800)  # half of it is over
    clock.set(0)
    interactive.wait_for("job.offered", 2)
    clock.set(3600 - 60)
    await an_offer_runs(ws, dispatcher)
    assert not ran.exists()
    clock.set(3600 + 60)
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    no_traceback(interactive)


async def test_a_takeover_is_not_put_off_by_a_jump_back(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """The service waits for the user's agent, which ends: it looks again soon, by any clock."""
    clock = Clock(ws, JUMP)
    service = clock.start("service", concurrency="1", takeover_grace="0s")
    service.process.send_signal(signal.SIGSTOP)  # until the user's agent has the claim
    interactive = clock.start("interactive", countdown="1h")
    job = counted(ws, tmp_path / "ran", mandatory_at=now())
    await dispatcher.dispatch(job)
    until_true((ws.state_dir / "claims" / job.id).exists)
    service.process.send_signal(signal.SIGCONT)
    service.wait_for("job.received")
    # And its grace period: it found the claim taken.
    await past(ws, dispatcher, now(seconds=JUMP + 0.1))
    clock.set(0)
    interactive.end(signal.SIGKILL)
    assert (await ended(dispatcher, job)).agent == "service"
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_the_timeout_of_a_survivor_does_not_go_by_the_wall_clock(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    clock = Clock(ws)
    service = clock.start("service")
    ran, gate = tmp_path / "ran", Gate(tmp_path / "go")
    script = f"{gate.script}; echo done"
    job = counted(
        ws, ran, script, background=True, survives_agent=True, timeout=timedelta(minutes=10)
    )
    await dispatcher.dispatch(job)
    until_there(ran)
    service.end(signal.SIGKILL)
    clock.set(JUMP)
    clock.start("service").wait_for("job.found")
    await past(ws, dispatcher, now())  # and what is over by that clock
    gate.open()
    report = await ended(dispatcher, job)
    assert report.state is State.INTERRUPTED
    assert report.result is not None
    assert str(report.result.stdout) == "done\n"
    assert report.result.duration < timedelta(minutes=10)


async def test_a_machine_that_slept_does_what_was_due_in_its_order(
    ws: Workstation, node: Broker, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Q173388: longer than the broker waits for a sign of life."""
    ws.environment["PCM_AMQP_URL"] += "?heartbeat=1"
    clock = Clock(ws)
    service = clock.start("service", concurrency="1")
    ran = tmp_path / "ran"
    jobs: list[Job] = []
    for hours in (3, 1, 2):
        script = f"echo {hours} >> {ran}"
        fields: dict[str, Any] = {"background": True, "mandatory_at": now(hours=hours)}
        jobs.append(await dispatcher.dispatch(ws.job(script, shell=True, **fields)))
    service.wait_for("job.received", 3)
    os.kill(service.process.pid, signal.SIGSTOP)
    fields = {"background": True, "mandatory_at": now(seconds=-1)}
    jobs.append(await dispatcher.dispatch(ws.job(f"echo 0 >> {ran}", shell=True, **fields)))
    await until_queue(node, queue_name(AgentKind.SERVICE, ws.name), consumers=0)
    clock.set(4 * 3600)
    assert not ran.exists()
    os.kill(service.process.pid, signal.SIGCONT)
    service.wait_for("broker.connected", 2)
    for job in jobs:
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    lines = ran.read_text().split()
    assert sorted(lines) == ["0", "1", "2", "3"]
    # What came while it slept is taken in after it: the others are on their way by then.
    assert [line for line in lines if line != "0"] == ["1", "2", "3"]
    no_traceback(service)


@pytest.mark.parametrize("first", ["service", "interactive"])
async def test_after_sleep_the_user_has_a_whole_countdown(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, first: str
) -> None:
    """The machine sleeps through the mandatory time; either agent wakes first."""
    clock, ran = Clock(ws), tmp_path / "ran"
    options = {"missing_after": LOOK_EVERY, "concurrency": "1"}
    agents = {
        "service": clock.start("service", takeover_grace="10m", **options),
        "interactive": clock.start("interactive", countdown="1h", **options),
    }
    job = await dispatcher.dispatch(counted(ws, ran, mandatory_at=now(hours=2)))
    agents["service"].wait_for("job.received")
    agents["interactive"].wait_for("job.offered")
    for agent in agents.values():
        agent.process.send_signal(signal.SIGSTOP)
    clock.sleep(JUMP)
    agents[first].process.send_signal(signal.SIGCONT)
    agents[first].wait_for("clock.slept")
    second = "interactive" if first == "service" else "service"
    agents[second].process.send_signal(signal.SIGCONT)
    agents[second].wait_for("clock.slept")
    agents["interactive"].wait_for("job.offered", 2)
    until_true((ws.state_dir / "claims" / job.id).exists)
    clock.set(JUMP + 1800)  # the service's grace is over, and half of the countdown
    await an_offer_runs(ws, dispatcher)
    await past(ws, dispatcher, now(seconds=JUMP + 1800))
    assert not ran.exists()
    clock.set(JUMP + 3660)
    assert (await ended(dispatcher, job)).agent == "interactive-ada"
    assert ran.read_text() == "x\n"
    no_traceback(*agents.values())


async def test_after_sleep_the_services_grace_begins(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """Nobody is logged on; a user may log on within the grace. Administrators learn of it."""
    clock, ran = Clock(ws), tmp_path / "ran"
    service = clock.start("service", takeover_grace="1h", missing_after=LOOK_EVERY, concurrency="1")
    job = await dispatcher.dispatch(counted(ws, ran, mandatory_at=now(hours=2)))
    service.wait_for("job.received")
    async with check_ins(settings, ws) as heard:
        assert (await heard.next()).woke_at is None
        clock.sleep(JUMP)
        service.wait_for("clock.slept")
        while (await heard.next()).woke_at is None:
            pass
    await past(ws, dispatcher, now(seconds=JUMP))
    assert not ran.exists()
    clock.set(JUMP + 3660)
    assert (await ended(dispatcher, job)).agent == "service"
    assert ran.read_text() == "x\n"


@pytest.mark.full
async def test_a_new_time_zone_counts_at_once(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """For local times, for windows, and for administrators."""
    link, zones = tmp_path / "localtime", Path("/usr/share/zoneinfo/Etc")
    link.symlink_to(zones / "GMT+5")
    hour_ago, in_an_hour = (f"{now(hours=hours):%H:%M}" for hours in (-1, 1))
    async with check_ins(settings, ws) as heard:
        service = ws.start(
            "service", windows=f"daily {hour_ago}-{in_an_hour}", TZ=f":{link}", concurrency="1"
        )
        assert (await heard.next()).zone == "Etc/GMT+5"
        local = WallClock(local=now(hours=-1).replace(tzinfo=None))
        jobs = [
            ws.job("true", background=True, mandatory_at=local),
            ws.job("true", background=True, respects_windows=True, timeout=timedelta(minutes=1)),
        ]
        for job in jobs:
            await dispatcher.dispatch(job)
        await past(ws, dispatcher, now())
        assert len(service.events("job.started")) == 1
        other = tmp_path / "other"
        other.symlink_to(zones / "GMT")
        other.rename(link)
        for job in jobs:
            assert (await ended(dispatcher, job)).state is State.SUCCEEDED
        while (await heard.next()).zone != "Etc/GMT":
            pass
