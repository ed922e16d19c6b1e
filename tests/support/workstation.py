"""A workstation for tests: a state directory, and agents as real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker import Dispatcher, Progress
from broker.amqp.connection import connect
from broker.settings import BrokerSettings
from broker.stream import stream
from schemas import CheckIn, Command, Job, Report, State, Target
from schemas import workstation as workstation_target
from tests.support import programs
from tests.support.programs import BIN
from tests.support.waiting import LIMIT

Program = Sequence[str | Path]
PCM_AGENT: Program = (BIN / "pcm-agent",)
_EVER = datetime.min.replace(tzinfo=UTC)
_SABOTAGE = Path(__file__).with_name("sabotage.py")


def sabotaged(*words: str) -> Program:
    """Return a program that is `pcm-agent` and kills itself, as tests/support/sabotage.py says."""
    return (sys.executable, "-P", _SABOTAGE, *words, "--")


class AgentProcess:
    """A `pcm-agent` process and its log."""

    def __init__(
        self, kind: str, environment: dict[str, str], log: Path, program: Program = PCM_AGENT
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*program, kind],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return what it logged, or the events of one name."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["event"])]

    def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until it logged so many events of a name."""
        deadline = time.monotonic() + LIMIT
        while len(self.events(name)) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {name}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT)


class Workstation:
    """A workstation's name, state directory and agents."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name = name
        self.state_dir = folder / "state"
        self.folder = folder
        self.agents: list[AgentProcess] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PCM_AMQP_URL": url,
            "PCM_WORKSTATION": name,
            "PCM_USER": "ada",
            "PCM_STATE_DIR": str(self.state_dir),
            "PCM_COUNTDOWN": "1s",
            "PCM_TAKEOVER_GRACE": "1s",
            "PCM_STOP_GRACE": "1s",
            "PCM_DRAIN": "1s",
        }

    @property
    def target(self) -> Target:
        """The target that is this workstation alone."""
        return workstation_target(self.name)

    def start(
        self, kind: str, *, connected: bool = True, program: Program = PCM_AGENT, **settings: str
    ) -> AgentProcess:
        """Start an agent and wait until it consumes; settings without PCM_, and TZ."""
        extra = {
            name if name == "TZ" else f"PCM_{name.upper()}": value
            for name, value in settings.items()
        }
        agent = AgentProcess(
            kind,
            {**self.environment, **extra},
            self.folder / f"{kind}-{len(self.agents)}.log",
            program,
        )
        self.agents.append(agent)
        if connected:
            agent.wait_for("broker.connected")
        return agent

    def job(self, *argv: str, **fields: Any) -> Job:
        """Return a job for this workstation; fields of the command are recognised by name."""
        command = {name: fields.pop(name) for name in list(fields) if name in Command.model_fields}
        return Job(command=Command(argv=argv, **command), targets=(self.target,), **fields)

    def run(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run pcm or pcm-agent to its end, as an administrator or the user would."""
        extra = {f"PCM_{name.upper()}": value for name, value in settings.items()}
        return programs.run(words[0], words[1:], {**self.environment, **extra})

    def stop(self) -> None:
        """End all agents."""
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()


async def follow(dispatcher: Dispatcher, job: Job) -> list[Report]:
    """Return all reports of a job, once it has ended."""
    progress = Progress(job.id)
    return [report async for report in dispatcher.follow(job.id, progress)]


async def until_state(dispatcher: Dispatcher, job: Job, state: State, agent: str = "") -> None:
    """Wait until a job is reported to be in a state, by any agent or by one."""
    async with asyncio.timeout(LIMIT):
        async for report in dispatcher.follow(job.id):
            if report.state is state and agent in ("", report.agent):
                return
    raise AssertionError(f"{job.id} ended, and was never {state}")


async def checked_in(
    settings: BrokerSettings, ws: Workstation, agents: int = 1, since: datetime = _EVER
) -> None:
    """Wait until so many agents of a workstation have checked in since then."""
    seen = set()
    async with (
        asyncio.timeout(LIMIT),
        connect(settings, "test") as connection,
        stream.read_stream(connection, None) as entries,
    ):
        async for entry in entries:
            for record in entry.records():
                if (
                    isinstance(record, CheckIn)
                    and record.workstation == ws.name
                    and record.up
                    and record.at >= since
                ):
                    seen.add(record.agent)
            if len(seen) == agents:
                return


def agents_of(reports: list[Report], state: State) -> set[str]:
    """Return the agents that reported a state."""
    return {report.agent for report in reports if report.state is state}


def final(reports: list[Report]) -> Report:
    """Return the final report, of which there is one."""
    (found,) = [report for report in reports if report.state.final]
    return found
