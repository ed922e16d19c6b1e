"""Measure whether an agent is stable: for MINUTES (10) at half of its maximum rate.

    MINUTES=60 .venv/bin/python -m benchmarks.steady

First it measures the agent's maximum rate for some seconds. Then it sends jobs with mixed outputs
at half that rate. For each tenth of the run it measures the time from a job's dispatch to the start
of its command, and the memory and disk space of agent and broker. The agent is stable if the last
tenth equals the first.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path

from aio_pika.abc import AbstractConnection

from benchmarks.measured import Comparison, Series
from benchmarks.processes import memory, on_disk, tree
from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.stream import stream
from schemas import Job, Report, State
from tests.support.rabbitmq import Node
from tests.support.workstation import AgentProcess, Workstation

MINUTES = float(os.environ.get("MINUTES", "10"))
WINDOWS = 10
FULL = min(20.0, MINUTES * 20)
"""Seconds for which the maximum rate is measured."""
ON_THE_WAY = 200
LEAD = 0.002
LATE = 60.0
"""Seconds within which all sent jobs must end."""
OUTPUTS = cycle(
    (
        ("true",),
        ("uname", "-a"),
        ("head", "-c", "2000", "/dev/zero"),
        ("head", "-c", "20000", "/dev/zero"),
        ("false",),
    )
)
"""The commands, used alternately: no output, a line, 2 kB, 20 kB, and one that fails."""


@dataclass
class JobTimes:
    """When jobs were sent and started, and how many have ended."""

    sent: dict[str, datetime] = field(default_factory=dict)
    waits: list[tuple[datetime, float]] = field(default_factory=list)
    ended: int = 0
    nothing_left: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, job: Job) -> None:
        """Record that a job is sent now."""
        self.sent[job.id] = job.created_at
        self.nothing_left.clear()

    def take(self, report: Report) -> None:
        """Record a report."""
        if report.state is State.STARTED and (at := self.sent.get(report.job_id)):
            self.waits.append((at, (report.at - at).total_seconds()))
        elif report.state.final and report.job_id in self.sent:
            del self.sent[report.job_id]
            self.ended += 1
            if not self.sent:
                self.nothing_left.set()


@contextmanager
def workplace() -> Iterator[tuple[Node, Workstation, AgentProcess]]:
    """Run a broker, and a workstation with a service agent."""
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        ws = Workstation("bench-steady", node.url, Path(folder))
        # Short, so that the ledger removes old jobs during a long run.
        keep = f"{max(60, round(MINUTES * 60 / WINDOWS))}s"
        try:
            yield node, ws, ws.start("service", keep=keep)
        finally:
            ws.stop()


async def reading(link: AbstractConnection, seen: JobTimes, since: datetime) -> None:
    """Record reports until cancelled."""
    async with stream.read_stream(link, since) as entries:
        async for entry in entries:
            for record in entry.records():
                if isinstance(record, Report):
                    seen.take(record)


def next_job(ws: Workstation, seen: JobTimes) -> Job:
    """Return a new job, recorded as sent now."""
    job = ws.job(*next(OUTPUTS), background=True)
    seen.send(job)
    return job


async def highest(dispatcher: Dispatcher, ws: Workstation, seen: JobTimes) -> float:
    """Return the commands a second while the queue is never empty."""
    began, end = time.monotonic(), time.monotonic() + FULL
    before = seen.ended

    async def sender() -> None:
        while time.monotonic() < end:
            if len(seen.sent) < ON_THE_WAY:
                await dispatcher.dispatch(next_job(ws, seen))
            else:
                await asyncio.sleep(LEAD)

    await asyncio.gather(*(sender() for _ in range(16)))
    rate = (seen.ended - before) / (time.monotonic() - began)
    async with asyncio.timeout(LATE):
        await seen.nothing_left.wait()
    return rate


async def steadily(
    dispatcher: Dispatcher, ws: Workstation, seen: JobTimes, rate: float, seconds: float
) -> None:
    """Send jobs at a constant rate, independent of the earlier ones."""
    began = time.monotonic()
    under_way: deque[asyncio.Task[Job]] = deque()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0, began + number / rate - time.monotonic()))
        under_way.append(asyncio.create_task(dispatcher.dispatch(next_job(ws, seen))))
        while under_way and under_way[0].done():
            under_way.popleft().result()
    await asyncio.gather(*under_way)


def percentile(figures: list[float], share: float) -> float:
    """Return the percentile of figures for a share."""
    return sorted(figures)[min(len(figures) - 1, int(len(figures) * share))]


def over_time(name: str, about: str, windows: list[list[float]]) -> list[Series]:
    """Return a series for each window; the last one describes the trend."""
    ends = [(number + 1) * MINUTES / WINDOWS for number in range(WINDOWS)]
    middles = [statistics.median(figures) for figures in windows]
    trend = statistics.linear_regression(ends, middles).slope
    flat = f"{trend:+.3g} a minute, last window / first {middles[-1] / middles[0]:.2f}"
    print(f"{name}: {flat}", flush=True)
    return [
        Series(name, figures, f"{about}; {flat}" if end == ends[-1] else about, end)
        for figures, end in zip(windows, ends, strict=True)
    ]


class Gauge:
    """Measures the memory and disk space of agent and broker."""

    def __init__(self, node: Node, ws: Workstation, agent: AgentProcess) -> None:
        self._node, self._ws, self._agent = node, ws, agent

    def look(self) -> dict[str, float]:
        """Return the current sizes in MiB."""
        return {
            "ours: agent": memory((self._agent.process.pid,)),
            "broker": memory(tree(self._node.pid)),
            "ours: ledger": on_disk(self._ws.state_dir) / 2**20,
        }


async def run(node: Node, ws: Workstation, agent: AgentProcess) -> None:
    """Measure, and store the comparisons."""
    settings = DispatcherSettings(amqp_url=(node.url,))
    seen, gauge = JobTimes(), Gauge(node, ws, agent)
    minutes = MINUTES / WINDOWS
    async with (
        Dispatcher.connect(settings) as dispatcher,
        connect(settings, "bench") as link,
        asyncio.TaskGroup() as tasks,
    ):
        since = next_job(ws, JobTimes()).created_at - timedelta(seconds=1)
        reader = tasks.create_task(reading(link, seen, since))
        most = await highest(dispatcher, ws, seen)
        print(f"at most {most:.0f} commands a second; half of that for {MINUTES:g} min", flush=True)
        taken: list[list[dict[str, float]]] = []
        waits: list[list[float]] = []
        for _ in range(WINDOWS):
            seen.waits.clear()
            looks: list[dict[str, float]] = []
            sending = asyncio.create_task(steadily(dispatcher, ws, seen, most / 2, minutes * 60))
            while not sending.done():
                await asyncio.wait({sending}, timeout=max(0.5, minutes * 6))
                looks.append(await asyncio.to_thread(gauge.look))
            sending.result()
            taken.append(looks)
            waits.append([wait for _, wait in seen.waits])
        async with asyncio.timeout(LATE):
            await seen.nothing_left.wait()
        reader.cancel()
    keep(most / 2, taken, waits)


def keep(rate: float, taken: list[list[dict[str, float]]], waits: list[list[float]]) -> None:
    """Store the comparisons: a figure for each look at the sizes, one for each percentile."""
    about = f"{rate:.0f} jobs a second, half of the highest rate; outputs of none to 20 kB"
    sizes: list[Series] = []
    for name in taken[0][0]:
        looks = [[look[name] for look in window] for window in taken]
        sizes += over_time(name, about, looks)
    latency: list[Series] = []
    for name, share in {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}.items():
        found = [[percentile(window, share) * 1000] for window in waits]
        latency += over_time(f"ours: {name}", about, found)
    for name, title, unit, series in (
        ("steady-sizes", "Memory and disk of agent and broker over time", "MiB", sizes),
        ("steady-latency", "From a job's dispatch to the start of its command", "ms", latency),
    ):
        Comparison(name, title, unit, series, more_is_better=False, axis="min").keep()


def main() -> None:
    """Run the benchmark."""
    with workplace() as (node, ws, agent):
        asyncio.run(run(node, ws, agent))


if __name__ == "__main__":
    main()
