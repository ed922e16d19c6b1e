"""What programs load, and how often an agent that has nothing to do wakes up: both cost all."""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import DispatcherSettings
from tests.support.programs import BIN
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, checked_in

NEVER = {"rich", "pygments", "textual", "ruamel", "sqlalchemy", "pydantic_settings", "html"}
TRACED = (sys.executable, "-v")
_IMPORTED = re.compile(r"^import '([\w.]+)' #", re.MULTILINE)
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)
_SECONDS = 4.0
_ASKED_FOR = 2  # a second: heartbeats, both ways, are less than one


def loaded(told: str) -> set[str]:
    """Return the packages that Python says it has loaded, and our own modules."""
    modules = set(_IMPORTED.findall(told))
    return modules | {module.partition(".")[0] for module in modules}


def woken(pid: int) -> int:
    """Return how often a process has waited for something, in all of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int(_SWITCHES.findall((task / "status").read_text())[0]) for task in tasks)


def test_sending_loads_nothing_that_it_does_not_need(ws: Workstation) -> None:
    ws.start("service").end()
    done = subprocess.run(
        [*TRACED, BIN / "pcm", "send", "--to", str(ws.target), "--background", "--", "true"],
        env=ws.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    found = loaded(done.stderr)
    assert {"aio_pika", "schemas.orders.job"} <= found
    unused = {
        "agents",
        "nacl",
        "sqlite3",
        "dotenv",
        "schemas.orders.rollout",
        "schemas.orders.schedule",
    }
    assert found & (NEVER | unused) == set()


def test_telling_of_the_settings_loads_no_amqp() -> None:
    done = subprocess.run(
        [*TRACED, BIN / "pcm", "--help"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert loaded(done.stderr) & (NEVER | {"aio_pika", "asyncio", "ssl", "yarl"}) == set()


@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_an_idle_agent_loads_little_and_sleeps(
    ws: Workstation, settings: DispatcherSettings, kind: str
) -> None:
    agent = ws.start(kind, program=(*TRACED, BIN / "pcm-agent"))
    await checked_in(settings, ws)
    found = loaded(agent.log.read_text())
    assert {"aio_pika", "agents.jobs.executor"} <= found
    unused = {
        "dotenv",
        "broker.history",
        "schemas.orders.rollout",
        # for jobs with packages only
        "agents.content.fetcher",
        "agents.packages.package_run",
        "backports.zstd",
        "broker.content",
        "http.client",
    }
    assert found & (NEVER | unused) == set()
    before, began = woken(agent.process.pid), time.monotonic()
    await asyncio.sleep(_SECONDS)
    count = woken(agent.process.pid) - before
    assert count < _ASKED_FOR * (time.monotonic() - began)
