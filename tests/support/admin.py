"""An administrator for tests: the program `pcm`, and records as agents append them."""

import asyncio
import os
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika

from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.amqp.topology import AgentKind
from broker.settings import BrokerSettings
from broker.stream import stream
from schemas import AgentsRevoked, CheckIn, Facts, Job, Report, Result, State, WorkstationForgotten
from tests.support import programs
from tests.support.collected import collected
from tests.support.programs import BIN
from tests.support.terminal import OnTerminal

_WRITERS = 200
StreamRecord = Job | Report | CheckIn | WorkstationForgotten | AgentsRevoked
LINUX = Facts(os="linux", arch="x86_64", release="debian-12")


class Admin:
    """Runs `pcm` with a history of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._history = folder / "history.db"
        collected(url, self._history)
        self._read_at = self._history.stat().st_mtime_ns
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TZ": "Asia/Kolkata",
            "PCM_AMQP_URL": url,
            "PCM_SETTLE": "500ms",
            "PCM_HISTORY_URL": f"sqlite:///{self._history}",
        }

    def run(
        self, *words: str, given: str | None = None, **settings: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run pcm to its end; settings without PCM_."""
        extra = {f"PCM_{name.upper()}": value for name, value in settings.items()}
        return programs.run("pcm", words, {**self.environment, **extra}, given or "")

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start pcm with pipes to read from."""
        return subprocess.Popen(
            [BIN / "pcm", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def has_asked(self) -> bool:
        """Whether its history was ever brought up to date."""
        return self._history.stat().st_mtime_ns != self._read_at

    def on_terminal(self, *words: str, **settings: str) -> OnTerminal:
        """Start pcm on a terminal."""
        extra = {f"PCM_{name.upper()}": value for name, value in settings.items()}
        return OnTerminal([BIN / "pcm", *words], {**self.environment, **extra})

    async def append(self, records: Iterable[StreamRecord]) -> None:
        """Append to the stream, in no order if they are many."""
        left = iter(records)
        async with connect(BrokerSettings(amqp_url=(self.url,)), "test") as connection:
            await topology.ensure(connection)
            publisher = await Publisher.open(connection)

            async def write() -> None:
                for record in left:
                    message_id = record.id if isinstance(record, Job) else None
                    await stream.append(
                        publisher,
                        _key(record),
                        record.body(),
                        kind=record.kind,
                        message_id=message_id,
                    )

            await asyncio.gather(*(write() for _ in range(_WRITERS)))

    async def declare(self, name: str, *users: str, groups: Iterable[str] = ()) -> None:
        """Declare a workstation's queues, as its agents would."""
        kinds = [(AgentKind.SERVICE, ""), *((AgentKind.INTERACTIVE, user) for user in users)]
        connection = await aio_pika.connect(self.url)
        async with connection, connection.channel() as channel:
            await topology.ensure(connection)
            for kind, user in kinds:
                queue = topology.agent_queue(kind, name, user, groups, "quorum", 600_000)
                await topology.declare_queue(channel, queue)


def _key(record: StreamRecord) -> str:
    if isinstance(record, Job):
        return f"job.{record.id}"
    if isinstance(record, WorkstationForgotten):
        return f"departure.{record.workstation}"
    if isinstance(record, AgentsRevoked):
        return f"revocation.{record.workstation}"
    state = record.state if isinstance(record, Report) else "check_in"
    return topology.report_key(state, record.workstation, record.agent)


def check_in(name: str, *groups: str, agent: str = "service", **fields: Any) -> CheckIn:
    """Return an agent's check-in."""
    defaults: dict[str, Any] = {
        "at": datetime.now(UTC),
        "interval": 3600,
        "facts": LINUX,
        "program": "1.2.3",
    } | fields
    return CheckIn(workstation=name, agent=agent, groups=groups, **defaults)


def report(job: Job, name: str, state: State, **fields: Any) -> Report:
    """Return a report of a service agent."""
    return Report(job_id=job.id, workstation=name, agent="service", state=state, **fields)


def ended(job: Job, name: str, exit_code: int = 0, **fields: Any) -> Report:
    """Return the report of a command's end."""
    state = State.FAILED if exit_code else State.SUCCEEDED
    result = Result(exit_code=exit_code, duration=timedelta(seconds=1), max_memory=1, **fields)
    return report(job, name, state, result=result)
