"""The demonstration: send one job for each routing key, and show which agent ran it.

Starts a private RabbitMQ and the two agents of one workstation as processes, and removes
everything at the end. The exit status is 0 only if the rule for background jobs holds.
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
from schemas.reports.report import first_line
from tests.support.rabbitmq import Node, NoRabbitMQ

WORKSTATION, USER = "ws-042", "ada"
SERVICE, INTERACTIVE = "service", f"interactive-{USER}"
BIN = Path(sys.executable).parent


@dataclass
class Case:
    """A job of the demonstration, and its expected reports."""

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
    def as_expected(self) -> bool:
        """Whether the right agents received, offered and ran it, and it ended as expected."""
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
    hello = ("echo", "accepted by the user")
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
    """Run an agent as a process."""
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
    """Wait until an agent's log has an event."""
    deadline = time.monotonic() + 30
    while event not in log.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log.stem} agent: no {event}:\n{log.read_text()}")
        time.sleep(0.05)


async def run_case(case: Case, dispatcher: Dispatcher, environment: dict[str, str]) -> None:
    """Send a case's job, act as its user and administrator, and collect its reports."""
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


def show(completed: list[Case]) -> None:
    """Print the reports as a table."""
    row = "{:<22}{:<12}{:<22}{:<13}{:<13}{:<11}{:>4}  {}"
    print(
        row.format(
            "ROUTING KEY", "JOB", "RECEIVED BY", "OFFERED TO", "RUN BY", "END", "EXIT", "OUTPUT"
        )
    )
    for case in completed:
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
    """Return the kinds of agents as text."""
    kinds = sorted((agent.partition("-")[0] for agent in agents), reverse=True)
    return ", ".join(kinds) or "none"


def background_bindings(node: Node) -> list[str]:
    """Print the bindings of the interactive agent's queue; return those that break the rule."""
    queue = queue_name(AgentKind.INTERACTIVE, WORKSTATION, USER)
    listed = node.ctl("list_bindings", "source_name", "destination_name", "routing_key")
    rows = [line.split("\t") for line in listed.splitlines()]
    keys = [row[2] for row in rows if row[1] == queue and row[0]]
    print(f"Bindings of {queue} on the broker: {', '.join(keys)}")
    return [key for key in keys if not key.startswith("foreground.")]


async def demonstrate(node: Node, folder: Path) -> bool:
    """Run all cases; return whether all went as expected."""
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
        all_cases = cases()
        async with Dispatcher.connect(settings) as dispatcher, asyncio.timeout(60):
            await asyncio.gather(*(run_case(case, dispatcher, environment) for case in all_cases))
        show(all_cases)
        print()
        wrong_bindings = background_bindings(node)
    holds = not wrong_bindings and all(case.as_expected for case in all_cases)
    print(
        "The rule holds: the interactive agent never received, offered or ran a background job."
        if holds
        else "THE RULE IS BROKEN: see the table."
    )
    return holds


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
