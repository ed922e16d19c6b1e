"""Check-ins, groups by facts, and jobs that exclude workstations."""

import asyncio
from datetime import timedelta
from importlib.metadata import version

import pytest

from agents import facts
from broker import Dispatcher, DispatcherSettings
from schemas import Target, group
from schemas.reports.report import State
from tests.support.counted import now
from tests.support.rabbitmq import Broker
from tests.support.steering import check_ins, pause
from tests.support.workstation import Workstation, agents_of, final, follow

AUTOMATIC = facts.gather_facts().groups


def test_groups_by_facts_cannot_be_given(ws: Workstation) -> None:
    for name in ("os-linux", "Arch-x86_64", "release-debian-12"):
        done = ws.run("pcm-agent", "service", groups=f"lab,{name}")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"pcm-agent: PCM_GROUPS: {name.lower()}: ")


async def test_an_agent_checks_in_and_says_when_it_leaves(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    async with check_ins(settings, ws) as heard:
        service = ws.start(
            "service",
            groups="lab",
            windows="daily 00:00-24:00",
            check_in="2s",
            countdown="30m",
            missing_after="2h",
        )
        first = await heard.next()
        assert (first.up, first.paused, first.waiting, first.running) == (True, False, 0, 0)
        assert first.groups == ("lab", *AUTOMATIC)
        assert first.facts == facts.gather_facts()
        assert first.program == version("package-command-manager")
        assert (first.windows, first.zone) == ("daily 00:00-24:00", facts.zone())
        assert (first.countdown, first.takeover_grace) == (
            timedelta(minutes=30),
            timedelta(seconds=1),
        )
        assert first.missing_after == timedelta(hours=2)
        assert not first.accept_offers
        assert first.interval == timedelta(seconds=2)
        await dispatcher.dispatch(ws.job("sleep", "30", background=True))
        await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(hours=1)))
        service.wait_for("job.received", 2)
        service.wait_for("job.started")
        asked = now()
        while (later := await heard.next()).at < asked:
            pass
        assert (later.waiting, later.running) == (1, 1)
        assert service.end() == 0
        while (last := await heard.next()).up:
            pass
        assert (last.agent, last.waiting, last.running) == ("service", 1, 0)


async def test_an_agent_checks_in_when_its_pause_changes_and_after_each_connect(
    ws: Workstation, settings: DispatcherSettings, node: Broker
) -> None:
    async with check_ins(settings, ws) as heard:
        ws.start("service")
        interactive = ws.start("interactive")
        for agent in ("service", "interactive-ada"):
            assert not (await heard.next(agent)).paused
        for paused in (True, True, False):
            await pause(settings, ws, paused=paused)
    async with check_ins(settings, ws) as heard:
        said = [(await heard.next()).paused for _ in range(3)]
        assert said == [False, True, False]
    interactive.wait_for("agent.resumed")
    interactive.end()
    async with check_ins(settings, ws) as heard:
        received = [await heard.next("interactive-ada") for _ in range(4)]
        assert [(one.paused, one.up) for one in received] == [
            (False, True),
            (True, True),
            (False, True),
            (False, False),
        ]
    await asyncio.to_thread(node.close_connections)
    ws.agents[0].wait_for("broker.connected", 2)
    async with check_ins(settings, ws) as heard:
        for _ in range(4):
            assert (await heard.next()).up


def test_without_a_broker_an_agent_stops_at_once(ws: Workstation) -> None:
    service = ws.start("service", connected=False, amqp_url="amqp://guest:guest@127.0.0.1:1/")
    service.wait_for("broker.lost")
    assert service.end() == 0
    assert not service.events("outbox.unsent")


@pytest.mark.full
async def test_a_job_reaches_the_groups_by_facts(ws: Workstation, dispatcher: Dispatcher) -> None:
    ws.start("service")
    ws.start("interactive")
    for name in AUTOMATIC:
        targets = (group(name),)
        job = ws.job("true", background=True).model_copy(update={"targets": targets})
        await dispatcher.dispatch(job)
        assert State.SUCCEEDED in {report.state for report in await follow(dispatcher, job)}


@pytest.mark.full
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("left_out", ["workstation", "group", "facts"])
async def test_who_is_left_out_says_so_at_once(
    ws: Workstation,
    dispatcher: Dispatcher,
    left_out: str,
    background: bool,  # noqa: FBT001
) -> None:
    ws.start("service", groups="lab")
    interactive = ws.start("interactive", groups="lab", accept_offers="true")
    target = {
        "workstation": ws.target,
        "group": group("lab"),
        "facts": group(AUTOMATIC[1]),
    }[left_out]
    elsewhere = Target.parse("group:elsewhere")
    later = now(hours=1)
    job = ws.job("true", background=background, excluded=(elsewhere, target), mandatory_at=later)
    await dispatcher.dispatch(job)
    reports = await follow(dispatcher, job)
    ended = final(reports)
    assert (ended.state, ended.reason) == (State.NOT_APPLICABLE, f"left out: {target}")
    assert not agents_of(reports, State.OFFERED)
    assert not interactive.events("job.offered")
    other = await dispatcher.dispatch(ws.job("true", background=background, excluded=(elsewhere,)))
    assert final(await follow(dispatcher, other)).state is State.SUCCEEDED
