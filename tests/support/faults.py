"""Checks after each fault of the broker."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.stream import stream
from schemas import Job, Report, State
from tests.support.waiting import LIMIT, Gate
from tests.support.workstation import AgentProcess, Workstation, final, follow

_REASONS = 4  # lost; then, as a broker comes up: reset, refused, not there yet


def logged_once(agent: AgentProcess) -> None:
    """Each reason is logged once per outage, and there are few: no loop."""
    outage: list[str] = []
    for event in agent.events():
        if event["event"] == "broker.connected":
            outage = []
        elif event["event"] == "broker.lost":
            assert event["reason"] not in outage, agent.log.read_text()
            outage.append(event["reason"])
            assert len(outage) <= _REASONS, agent.log.read_text()


async def works(ws: Workstation, dispatcher: Dispatcher) -> None:
    """A job sent now succeeds."""
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED


def counting(ws: Workstation, ran: Path, number: int = 0) -> Job:
    """Return a job that leaves a line wherever it runs."""
    return ws.job(f"echo {number} >> {ran}", shell=True, background=True)


def held(ws: Workstation, ran: Path, gate: Gate, number: int = 1) -> Job:
    """Return a job that leaves its line only when the gate is open."""
    return ws.job(f"{gate.script}; echo {number} >> {ran}", shell=True, background=True)


def ran_once(ran: Path, numbers: Iterable[int]) -> None:
    """Check that each job ran exactly once."""
    assert Counter(map(int, ran.read_text().split())) == Counter(numbers)


async def succeeded_once(settings: DispatcherSettings, jobs: Iterable[Job]) -> None:
    """Wait until each job has one final report, of a success."""
    wanted = {job.id for job in jobs}
    deadline = time.monotonic() + LIMIT
    while wanted - (ended := await _final_reports(settings)).keys():
        assert time.monotonic() < deadline, wanted - ended.keys()
        await asyncio.sleep(0.3)
    for job_id in wanted:
        (state,) = ended[job_id].values()
        assert state is State.SUCCEEDED


async def _final_reports(settings: DispatcherSettings) -> dict[str, dict[str, State]]:
    """Return the final reports that the stream holds, by their job and their own id."""
    found: dict[str, dict[str, State]] = {}
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        async for entry in stream.read_all(connection, publisher, None):
            for record in entry.records():
                if isinstance(record, Report) and record.state.final:
                    found.setdefault(record.job_id, {})[record.id] = record.state
    return found
