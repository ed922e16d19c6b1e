"""Jobs that leave a line for each of their runs, and their reports."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker import Dispatcher
from schemas import Job, Report, State
from tests.support.waiting import LIMIT
from tests.support.workstation import AgentProcess, Workstation, final, follow, until_state


def now(**after: float) -> datetime:
    return datetime.now(UTC) + timedelta(**after)


def counted(ws: Workstation, ran: Path, script: str = "", **fields: Any) -> Job:
    """Return a job that writes a line to `ran`, then goes on by a script."""
    return ws.job(f"echo x >> {ran}; {script}", shell=True, **fields)


async def reports_until_end(dispatcher: Dispatcher, job: Job) -> list[Report]:
    """Return all reports of a job, once it has ended."""
    async with asyncio.timeout(LIMIT):
        return await follow(dispatcher, job)


async def ended(dispatcher: Dispatcher, job: Job, starts: int = 1) -> Report:
    """Return a job's final report, of which there is one, after so many starts."""
    reports = await reports_until_end(dispatcher, job)
    assert [report.state for report in reports].count(State.STARTED) == starts
    return final(reports)


async def past(ws: Workstation, dispatcher: Dispatcher, at: datetime) -> None:
    """Wait until the service has done what is due before a time, by a job that is due then.

    Of a service with one worker: what is due before comes first.
    """
    later = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=at))
    assert (await ended(dispatcher, later)).state is State.SUCCEEDED


async def an_offer_runs(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Wait until the user's agent has started what is due, by an offer that the user runs then.

    Of an agent with one worker: what is due comes first.
    """
    offer = await dispatcher.dispatch(ws.job("true"))
    await until_state(dispatcher, offer, State.OFFERED)
    assert ws.run("pcm-agent", "run", offer.id).returncode == 0
    assert (await ended(dispatcher, offer)).state is State.SUCCEEDED


def no_traceback(*agents: AgentProcess) -> None:
    for agent in agents:
        text = agent.log.read_text()
        assert "Traceback" not in text
        assert "never retrieved" not in text
