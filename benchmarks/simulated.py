"""Measure one command on 1,000, 5,000 and 10,000 simulated workstations.

    .venv/bin/python -m benchmarks.simulated      # SIZES=100,200: other numbers of workstations

Each is a real service agent without the command's process (see `benchmarks.crowd`). Four processes
of agents and one broker share the cores of this machine. The times to the last report are therefore
mostly the CPU time of thousands of agents on a few cores. In a fleet, only the broker's part of
that remains. It is measured separately: its CPU time, and the time until it confirms a job while
all workstations are stopped (SIGSTOP), as if they were on other machines.

The ledgers are in memory, since one disk cannot represent thousands. Fleets of this size have
classic queues (`PCM_QUEUE_TYPE`) and heartbeats of a minute (`?heartbeat=60` in `PCM_AMQP_URL`).
While a queue has jobs, the broker has three open files for the workstation: its connection, and two
of its queue. Where the limit of open files is too low, there are as many workstations as it allows.

Cold is the first job after the agents connected; warm are the following ones.
"""

import asyncio
import os
import resource
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from aio_pika.abc import AbstractConnection
from sqlalchemy import Engine

from benchmarks.bare_stream import PREFETCH
from benchmarks.history import bare
from benchmarks.measured import ROUNDS, Comparison, Series, plain
from broker import Dispatcher
from broker.amqp import topology
from broker.amqp.connection import BrokerError, connect
from broker.amqp.publisher import Publisher
from broker.history.collector import catch_up
from broker.history.engine import open_history
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import Command, Job, Report, State, everyone
from tests.support.rabbitmq import Node

SIZES = [int(size) for size in os.environ.get("SIZES", "1000,5000,10000").split(",")]
_PROCESSES = 4
_LIMIT = 600.0  # seconds for all workstations to connect
_JOB_LIMIT = 180.0
_HEARTBEAT = 60  # seconds
_JOBS = 1 + ROUNDS  # the first is the cold one
_QUIET = 5.0  # seconds between jobs
_PREFETCH = 8000
_TICK = os.sysconf("SC_CLK_TCK")
_MEMORY = Path("/dev/shm")
_FILES_EACH = 3
_FILES_BESIDES = 500  # of the broker


class Crowd:
    """The processes of simulated workstations."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    @classmethod
    @asynccontextmanager
    async def of(cls, url: str, folder: str) -> AsyncIterator["Crowd"]:
        """Start the processes, without workstations; end them at the end."""
        module = [sys.executable, "-m", "benchmarks.crowd", url, folder]
        crowd = cls(
            [
                await asyncio.create_subprocess_exec(
                    *module, f"simulated-{number}", stdin=PIPE, stdout=PIPE
                )
                for number in range(_PROCESSES)
            ]
        )
        try:
            yield crowd
        finally:
            for process in crowd._processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    async def become(self, size: int, limit: float = _JOB_LIMIT) -> float:
        """Start workstations up to a number; return the CPU seconds of their processes so far.

        Raises:
            TimeoutError: it takes longer than `limit` seconds.
        """
        each = [size // _PROCESSES + (number < size % _PROCESSES) for number in range(_PROCESSES)]
        answers = (
            self._ask(process, count) for process, count in zip(self._processes, each, strict=True)
        )
        async with asyncio.timeout(limit):
            return sum(await asyncio.gather(*answers))

    @staticmethod
    async def _ask(process: Process, count: int) -> float:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{count}\n".encode())
        answer = await process.stdout.readline()
        if not answer:
            raise RuntimeError("a process of simulated workstations has ended")
        return float(answer.split()[1])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stop all processes temporarily; their connections stay open."""
        try:
            for process in self._processes:
                process.send_signal(signal.SIGSTOP)
            yield
        finally:
            for process in self._processes:
                process.send_signal(signal.SIGCONT)

    def resident(self) -> float:
        """Return the resident memory of the processes in MiB."""
        return sum(resident(process.pid) for process in self._processes)


@dataclass(frozen=True)
class Measured:
    """The figures of one job.

    Attributes:
        dispatched: seconds until the broker had confirmed it.
        apart: the same for another job, while the workstations were stopped.
        probed: the same for a message that agents ignore and that is not recorded, afterwards.
        received: seconds until the last report of receipt was read.
        ended: seconds until the last final report was read.
        broker: CPU seconds of the broker.
        agents: CPU seconds of the workstations.
        bare: reports a second of a consumer that discards them.
        history: reports a second of the history.
        idle_broker: the idle broker's share of a core.
        idle_agents: the same for all idle workstations together.
    """

    dispatched: float
    apart: float
    probed: float
    received: float
    ended: float
    broker: float
    agents: float
    bare: float
    history: float
    idle_broker: float
    idle_agents: float


def resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICK


async def measure(
    crowd: Crowd, size: int, broker: int, settings: HistorySettings, engine: Engine
) -> Measured:
    """Send one job to all, wait for its end, and read it into the history."""
    await catch_up(settings, engine)  # earlier messages
    agents_idle, broker_idle = await crowd.become(size), cpu(broker)
    await asyncio.sleep(_QUIET)
    agents_before, broker_before = await crowd.become(size), cpu(broker)
    async with (
        asyncio.timeout(_JOB_LIMIT),
        Dispatcher.connect(settings) as dispatcher,
        connect(settings, "bench") as link,
    ):
        job, began, dispatched = await _dispatched(dispatcher)
        reported = await _reported(link, job, size)
    agents_after, broker_after = await crowd.become(size), cpu(broker)
    bare_rate = await asyncio.to_thread(bare, settings.amqp_url[0], reported.count, reported.first)
    asked = time.perf_counter()
    await catch_up(settings, engine)
    history = reported.count / (time.perf_counter() - asked)
    await asyncio.sleep(_QUIET)
    async with (
        asyncio.timeout(_JOB_LIMIT),
        Dispatcher.connect(settings) as dispatcher,
        connect(settings, "bench") as link,
    ):
        with crowd.held():
            other, _, apart = await _dispatched(dispatcher)
        await _reported(link, other, size)
    measured = Measured(
        dispatched,
        apart,
        await _probed(settings),
        reported.at[State.RECEIVED] - began,
        reported.at[State.SUCCEEDED] - began,
        broker_after - broker_before,
        agents_after - agents_before,
        bare_rate,
        history,
        (broker_before - broker_idle) / _QUIET,
        (agents_before - agents_idle) / _QUIET,
    )
    figures = (f"{name} {plain(figure)}" for name, figure in asdict(measured).items())
    print(f"  {', '.join(figures)}; MiB: broker {plain(resident(broker))}", flush=True)
    return measured


async def _dispatched(dispatcher: Dispatcher) -> tuple[Job, float, float]:
    """Send a job to all; return it, the start time, and the seconds until it was confirmed."""
    job = Job(command=Command(argv=("uname",), background=True), targets=(everyone,))
    began = time.perf_counter()
    await dispatcher.dispatch(job)
    return job, began, time.perf_counter() - began


@dataclass(frozen=True)
class _Reported:
    """The times of the last report of each state, and the reports' offset and number."""

    at: dict[State, float]
    first: int
    count: int


async def _reported(link: AbstractConnection, job: Job, size: int) -> _Reported:
    """Read the stream until all workstations have received a job and ended it."""
    missing = {State.RECEIVED: size, State.SUCCEEDED: size}
    at: dict[State, float] = {}
    first, count = 0, 0
    # Reading starts after the dispatch, so that it does not slow it down.
    since = job.created_at - timedelta(seconds=1)
    async with stream.read_stream(link, since, _PREFETCH) as entries:
        while any(missing.values()):
            for entry in await entries.batch(_PREFETCH):
                for record in entry.of_job(job.id):
                    if isinstance(record, Job):
                        first = entry.offset
                    elif isinstance(record, Report) and record.state in missing:
                        missing[record.state] -= 1
                        at[record.state] = time.perf_counter()
                count += bool(first)
    return _Reported(at, first, count)


async def _probed(settings: HistorySettings) -> float:
    """Return the seconds until the broker confirms a message to all agents, which ignore it."""
    async with connect(settings, "bench") as connection:
        publisher = await Publisher.open(connection)
        key = f"background.mandatory.{everyone.scope}"
        began = time.perf_counter()
        await publisher.publish(topology.JOBS, key, b"", kind="probe", unroutable_fails=True)
        return time.perf_counter() - began


def main() -> None:
    """Measure, and store the figures."""
    place = _MEMORY if _MEMORY.is_dir() else None
    needed = max(SIZES) * _FILES_EACH + _FILES_BESIDES
    files = min(needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    most = (files - _FILES_BESIDES) // _FILES_EACH
    sizes = sorted({min(size, most) for size in SIZES})
    if sizes[-1] < max(SIZES):
        print(f"at most {most:,} workstations: {files:,} files may be open (ulimit -Hn)")
    with Node(files=files) as node, tempfile.TemporaryDirectory(dir=place) as folder:
        settings = HistorySettings(
            amqp_url=(f"{node.url}?heartbeat={_HEARTBEAT}",),
            history_url=f"sqlite:///{folder}/history.db",
        )
        broker = int(node.ctl("eval", "os:getpid().").strip().strip('"'))
        figures = asyncio.run(_measure_all(sizes, settings, folder, broker))
    keep(figures)


@dataclass(frozen=True)
class Figures:
    """The figures of one number of workstations; the first job is the cold one."""

    jobs: list[Measured]
    broker: float
    agents: float


async def _measure_all(
    sizes: list[int], settings: HistorySettings, folder: str, broker: int
) -> dict[int, Figures]:
    found: dict[int, Figures] = {}
    engine = open_history(settings.history_url)
    async with Crowd.of(settings.amqp_url[0], folder) as crowd:
        left = _LIMIT
        for size in sizes:
            began = time.perf_counter()
            try:
                await crowd.become(size, left)
                came = time.perf_counter() - began
                left -= came
                print(f"{size:,} workstations; the last of them came in {came:.0f} s", flush=True)
                jobs = [await measure(crowd, size, broker, settings, engine) for _ in range(_JOBS)]
            except (TimeoutError, BrokerError) as error:
                reason = str(error) or "not in time"
                print(f"{size:,} workstations: left out: {reason}", flush=True)
                break
            found[size] = Figures(jobs, resident(broker), crowd.resident())
    engine.dispose()
    return found


def keep(found: dict[int, Figures]) -> None:
    """Store the figures as comparisons."""
    about = (
        "service agents with classic durable queues and persistent messages, a ledger each, synced"
        " before each start, in memory; 4 processes of them on the cores that the broker has, too"
    )
    axis = "simulated workstations"
    dispatch, reports, cost, idle, memory, history = [], [], [], [], [], []
    for size, figures in found.items():
        cold, *warm = figures.jobs
        dispatch += [
            Series("ours, warm", [job.dispatched for job in warm], about, size),
            Series(
                "ours, warm, workstations stopped",
                [job.apart for job in warm],
                f"as if they were on other machines; {about}",
                size,
            ),
            Series("ours, cold", [cold.dispatched], f"the first job; {about}", size),
            Series(
                "limit: one message, confirmed",
                [job.probed for job in warm],
                "empty, to the same queues, and nothing recorded",
                size,
            ),
        ]
        reports += [
            Series("ours, all have received it", [job.received for job in warm], about, size),
            Series("ours, all have ended it", [job.ended for job in warm], about, size),
            Series("ours, all have ended it, cold", [cold.ended], about, size),
        ]
        cost += [
            Series("broker", [job.broker for job in warm], "RabbitMQ", size),
            Series("ours", [job.agents for job in warm], about, size),
        ]
        idle += [
            Series("broker", [job.idle_broker * 100 for job in warm], "RabbitMQ", size),
            Series(
                "ours",
                [job.idle_agents * 100 for job in warm],
                f"heartbeats of {_HEARTBEAT} s; {about}",
                size,
            ),
        ]
        memory += [
            Series("broker", [figures.broker], "RabbitMQ, resident, after the jobs", size),
            Series("ours", [figures.agents], f"resident, all processes; {about}", size),
        ]
        history += [
            Series("ours", [job.history for job in warm], "pcm's history, SQLite in memory", size),
            Series(
                "limit: bare consumer",
                [job.bare for job in warm],
                f"aiormq, prefetch {PREFETCH}",
                size,
            ),
        ]
    for comparison in (
        Comparison(
            "simulated-dispatch",
            "One command to all, until the broker has confirmed it",
            "seconds",
            dispatch,
            more_is_better=False,
            axis=axis,
        ),
        Comparison(
            "simulated-reports",
            "One command to all, until all have reported",
            "seconds",
            reports,
            more_is_better=False,
            axis=axis,
        ),
        Comparison(
            "simulated-cpu",
            "One command to all, CPU time",
            "CPU seconds",
            cost,
            more_is_better=False,
            axis=axis,
        ),
        Comparison(
            "simulated-idle",
            "An idle fleet, CPU time",
            "% of a core",
            idle,
            more_is_better=False,
            axis=axis,
        ),
        Comparison(
            "simulated-memory", "A fleet, memory", "MiB", memory, more_is_better=False, axis=axis
        ),
        Comparison(
            "simulated-history",
            "The reports of one command, read to the last",
            "reports a second",
            history,
            baseline="ours",
            axis=axis,
        ),
    ):
        comparison.keep()


if __name__ == "__main__":
    main()
