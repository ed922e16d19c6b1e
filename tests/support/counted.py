"""Jobs that leave a line for each of their runs, and what is told of them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker import Dispatcher
from schemas import Job, Report, State
from tests.support.limit import LIMIT
from tests.support.workstation import AgentProcess, Workstation, final, follow


def now(**after: float) -> datetime:
    return datetime.now(UTC) + timedelta(**after)


def counted(ws: Workstation, ran: Path, script: str = "", **fields: Any) -> Job:
    """Return a job that writes a line to `ran`, then goes on by a script."""
    return ws.job(f"echo x >> {ran}; {script}", shell=True, **fields)


def until_there(path: Path) -> None:
    """Wait until a file has something in it."""
    deadline = time.monotonic() + LIMIT
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


async def told(dispatcher: Dispatcher, job: Job) -> list[Report]:
    """Return all reports of a job, once it has ended."""
    async with asyncio.timeout(LIMIT):
        return await follow(dispatcher, job)


async def ended(dispatcher: Dispatcher, job: Job, starts: int = 1) -> Report:
    """Return a job's final report, of which there is one, after so many starts."""
    reports = await told(dispatcher, job)
    assert [report.state for report in reports].count(State.STARTED) == starts
    return final(reports)


def no_traceback(*agents: AgentProcess) -> None:
    for agent in agents:
        text = agent.log.read_text()
        assert "Traceback" not in text
        assert "never retrieved" not in text
