"""Measure one workstation: commands a second beside a bare loop, memory, and start-up times.

    make bench

Everything runs in one go, on one machine, in turns; figures of one run compare with each other
and with nothing else. The agent works with all its guarantees: quorum queue, confirms, a ledger
that is on the disk before each start. Our side ends when the sender knows the last result.
"""

import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aio_pika.abc import AbstractConnection

from broker import Dispatcher, DispatcherSettings, stream
from broker.connection import connect
from schemas import Job, Report
from tests.rabbitmq import Node
from tests.workstation import Workstation

COMMANDS = 1000
ROUNDS = 5
AT_ONCE = 4
TRUE = shutil.which("true") or "/bin/true"


async def bare_loop(count: int, *, captured: bool) -> float:
    """Return commands a second of asyncio's subprocesses alone, so many at once."""
    pipe = asyncio.subprocess.PIPE if captured else asyncio.subprocess.DEVNULL
    numbers = iter(range(count))

    async def worker() -> None:
        for _ in numbers:
            process = await asyncio.create_subprocess_exec(
                TRUE, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
            await process.communicate()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return count / (time.perf_counter() - began)


async def end_to_end(ws: Workstation, settings: DispatcherSettings, count: int) -> float:
    """Return commands a second: from the first job sent to the last final report read."""
    jobs = [ws.job(TRUE, background=True) for _ in range(count)]
    async with Dispatcher.connect(settings) as dispatcher, connect(settings, "bench") as link:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(all_ended(link, jobs))
            tasks.create_task(send_all(dispatcher, jobs))
        return count / (time.perf_counter() - began)


async def due_together(ws: Workstation, settings: DispatcherSettings, count: int) -> float:
    """Return commands a second of jobs received before: from their time to the last report."""
    due = datetime.now(UTC) + timedelta(seconds=2 + count / 250)
    jobs = [ws.job(TRUE, background=True, mandatory_at=due) for _ in range(count)]
    async with Dispatcher.connect(settings) as dispatcher, connect(settings, "bench") as link:
        await send_all(dispatcher, jobs)
        if datetime.now(UTC) > due:
            raise RuntimeError("the jobs were due before all were sent")
        await all_ended(link, jobs)
        return count / (datetime.now(UTC) - due).total_seconds()


async def all_ended(link: AbstractConnection, jobs: list[Job]) -> None:
    """Read the stream until each job has its final report."""
    waiting = {job.id for job in jobs}
    since = min(job.created_at for job in jobs) - timedelta(seconds=1)
    async with stream.read(link, since) as entries:
        while waiting:
            for record in (await anext(entries)).records():
                if isinstance(record, Report) and record.state.final:
                    waiting.discard(record.job_id)


async def send_all(dispatcher: Dispatcher, jobs: list[Job]) -> None:
    """Send jobs, a hundred on the way at a time."""
    gate = asyncio.Semaphore(100)

    async def send(job: Job) -> None:
        async with gate:
            await dispatcher.dispatch(job)

    await asyncio.gather(*map(send, jobs))


def resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def wall(ws: Workstation, *words: str) -> float:
    """Return the wall time of a command in seconds."""
    began = time.perf_counter()
    done = ws.run(*words)
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr)
    return took


def tell(name: str, figures: list[float], unit: str) -> None:
    """Print a median and its spread."""
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    print(f"{name:<44}{middle:>9.2f} {unit:<12}({low:.2f} to {high:.2f})")


def main() -> None:
    """Measure and print."""
    cpu = platform.processor() or platform.machine()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores ({cpu}), medians of {ROUNDS}"
    )
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        ws = Workstation("bench", node.url, Path(folder))
        settings = DispatcherSettings(amqp_url=(node.url,))
        starts: list[float] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            agent = ws.start("service")
            starts.append(time.perf_counter() - began)
            agent.end()
        ws.environment["PCM_CONCURRENCY"] = str(AT_ONCE)
        agent = ws.start("service")
        idle = resident(agent.process.pid)
        ours, together, bare, captured = [], [], [], []
        for _ in range(ROUNDS):
            bare.append(asyncio.run(bare_loop(COMMANDS, captured=False)))
            captured.append(asyncio.run(bare_loop(COMMANDS, captured=True)))
            ours.append(asyncio.run(end_to_end(ws, settings, COMMANDS)))
            together.append(asyncio.run(due_together(ws, settings, COMMANDS)))
        worked = resident(agent.process.pid)
        send = ("pcm", "send", "--to", str(ws.target), "--background", "--", TRUE)
        sends = [wall(ws, *send) for _ in range(ROUNDS)]
        helps = [wall(ws, "pcm", "--help") for _ in range(ROUNDS)]
        ws.stop()
    tell("bare asyncio loop, output thrown away", bare, "a second")
    tell("bare asyncio loop, output captured", captured, "a second")
    for name, figures in (("sent one by one", ours), ("received before, due at once", together)):
        tell(f"ours, {name}", figures, "a second")
        for kind, loop in (("thrown away", bare), ("captured", captured)):
            ratios = [one / other for one, other in zip(figures, loop, strict=True)]
            tell(f"  / bare loop, output {kind}", ratios, "")
    tell("agent: from start to consuming", starts, "s")
    print(f"{'agent: resident memory, idle':<44}{idle:>9.2f} MiB")
    print(f"{'agent: resident memory, after the commands':<44}{worked:>9.2f} MiB")
    tell("pcm send, wall time", sends, "s")
    tell("pcm --help, wall time", helps, "s")


if __name__ == "__main__":
    main()
