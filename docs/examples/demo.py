"""The demonstration: one job for each routing key, and who received, was offered and ran it.

Starts a private RabbitMQ and the two agents of one workstation as processes of their own, and
leaves nothing behind. Exit status 0 only if everything went as the rule says.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker import Dispatcher, DispatcherSettings
from broker.amqp.topology import AgentKind, queue_name
from broker.cli.command_line import Parser
from schemas import Command, Job, Report, State, workstation
from schemas.report import first_line
from tests.support.rabbitmq import Node, NoRabbitMQ

WORKSTATION, USER = "ws-042", "ada"
SERVICE, INTERACTIVE = "service", f"interactive-{USER}"
BIN = Path(sys.executable).parent


@dataclass
class Case:
    """A job of the demonstration, and what the rule says of it."""

    title: str
    job: Job
    received: set[str]
    offered: set[str]
    ran: str
    user_runs_it: bool = False
    cancel: bool = False
    reports: list[Report] = field(default_factory=list)

    def by(self, state: State) -> set[str]:
        """Return the agents that reported a state."""
        return {report.agent for report in self.reports if report.state is state}

    @property
    def final(self) -> Report | None:
        """The final report."""
        return next((report for report in self.reports if report.state.final), None)

    @property
    def as_ruled(self) -> bool:
        """Whether it was received, offered and run by the right agents, and ended well."""
        end = State.CANCELLED if self.cancel else State.SUCCEEDED
        return (
            self.final is not None
            and self.final.state is end
            and self.by(State.RECEIVED) == self.received
            and self.by(State.OFFERED) == self.offered
            and self.by(State.STARTED) == ({self.ran} if self.ran else set())
        )


def cases() -> list[Case]:
    """Return one case for each routing key, and a cancelled one."""
    now = datetime.now(UTC)
    soon = now + timedelta(seconds=1)

    def job(name: str, *argv: str, background: bool, mandatory_at: datetime | None = None) -> Job:
        return Job(
            name=name,
            command=Command(argv=argv, background=background),
            targets=(workstation(WORKSTATION),),
            mandatory_at=mandatory_at,
        )

    both = {SERVICE, INTERACTIVE}
    hello = ("echo", "a user said yes")
    return [
        Case(
            "background.mandatory",
            job("kernel", "uname", "-sr", background=True, mandatory_at=soon),
            received={SERVICE},
            offered=set(),
            ran=SERVICE,
        ),
        Case(
            "background.optional",
            job("processors", "nproc", background=True),
            received={SERVICE},
            offered=set(),
            ran=SERVICE,
        ),
        Case(
            "foreground.mandatory",
            job("disk", "df", "-h", "/", background=False, mandatory_at=soon),
            received=both,
            offered={INTERACTIVE},
            ran=INTERACTIVE,
        ),
        Case(
            "foreground.optional",
            job("greeting", *hello, background=False),
            received=both,
            offered={INTERACTIVE},
            ran=INTERACTIVE,
            user_runs_it=True,
        ),
        Case(
            "background.mandatory",
            job("too late", "false", background=True, mandatory_at=now + timedelta(hours=1)),
            received={SERVICE},
            offered=set(),
            ran="",
            cancel=True,
        ),
    ]


@contextmanager
def agent(kind: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run an agent as a process of its own."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "pcm-agent", kind], env=environment, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(log: Path, event: str) -> None:
    """Wait until an agent's log tells of an event."""
    deadline = time.monotonic() + 30
    while event not in log.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log.stem} agent: no {event}:\n{log.read_text()}")
        time.sleep(0.05)


async def play(case: Case, dispatcher: Dispatcher, environment: dict[str, str]) -> None:
    """Send a case's job, do the user's and the administrator's part, take its reports."""
    await dispatcher.dispatch(case.job)
    if case.cancel:
        await dispatcher.cancel(case.job.id, "no longer wanted")
    async for report in dispatcher.follow(case.job.id):
        case.reports.append(report)
        if case.user_runs_it and report.state is State.OFFERED:
            user = await asyncio.create_subprocess_exec(
                BIN / "pcm-agent",
                "run",
                case.job.id,
                env=environment,
                stdout=asyncio.subprocess.DEVNULL,
            )
            await user.wait()


def show(played: list[Case]) -> None:
    """Print what happened as a table."""
    row = "{:<22}{:<12}{:<22}{:<13}{:<13}{:<11}{:>4}  {}"
    print(
        row.format(
            "ROUTING KEY", "JOB", "RECEIVED BY", "OFFERED TO", "RUN BY", "END", "EXIT", "OUTPUT"
        )
    )
    for case in played:
        final = case.final
        result = final.result if final else None
        print(
            row.format(
                case.title,
                case.job.name,
                names(case.by(State.RECEIVED)),
                names(case.by(State.OFFERED)),
                names(case.by(State.STARTED)),
                str(final.state) if final else "-",
                "-" if result is None or result.exit_code is None else result.exit_code,
                first_line(final) if final else "",
            ).rstrip()
        )


def names(agents: set[str]) -> str:
    """Return agents by their kind, as people say it."""
    kinds = sorted((agent.partition("-")[0] for agent in agents), reverse=True)
    return ", ".join(kinds) or "nobody"


def background_bindings(node: Node) -> list[str]:
    """Print what the interactive agent's queue is bound to, as the broker tells it."""
    queue = queue_name(AgentKind.INTERACTIVE, WORKSTATION, USER)
    listed = node.ctl("list_bindings", "source_name", "destination_name", "routing_key")
    rows = [line.split("\t") for line in listed.splitlines()]
    keys = [row[2] for row in rows if row[1] == queue and row[0]]
    print(f"The broker says: {queue} is bound to {', '.join(keys)}")
    return [key for key in keys if not key.startswith("foreground.")]


async def demonstrate(node: Node, folder: Path) -> bool:
    """Play all cases; return whether everything went as the rule says."""
    environment = {
        **os.environ,
        "PCM_AMQP_URL": node.url,
        "PCM_WORKSTATION": WORKSTATION,
        "PCM_USER": USER,
        "PCM_STATE_DIR": str(folder / "state"),
        "PCM_COUNTDOWN": "2s",
    }
    with ExitStack() as stack:
        for kind in AgentKind:
            stack.enter_context(agent(kind, environment, folder / f"{kind}.log"))
        for kind in AgentKind:
            wait_for(folder / f"{kind}.log", "broker.connected")
        print(f"a service agent and an interactive agent (user {USER}) run on {WORKSTATION}\n")
        settings = DispatcherSettings(amqp_url=(node.url,))
        played = cases()
        async with Dispatcher.connect(settings) as dispatcher, asyncio.timeout(60):
            await asyncio.gather(*(play(case, dispatcher, environment) for case in played))
        show(played)
        print()
        wrong = background_bindings(node)
    good = not wrong and all(case.as_ruled for case in played)
    print(
        "The rule holds: the interactive agent never received, was offered or ran a background job."
        if good
        else "THE RULE IS BROKEN: the table is not what it should be."
    )
    return good


def main() -> int:
    """Run the demonstration."""
    Parser(prog="demo.py", description=__doc__).parse_args()
    print("starting a private RabbitMQ (a few seconds)", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="pcm-demo-") as folder, Node() as node:
            return 0 if asyncio.run(demonstrate(node, Path(folder))) else 1
    except NoRabbitMQ as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
