"""Measure one workstation: commands a second, beside peers and the machine's limits.

    make bench

Each command is a message and a process. Our side works with all its guarantees: confirms, and a
ledger that is synced to disk before each start. A measurement ends when the sender has the last
result; for peers without results, when their worker has counted the last command.
"""

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from aio_pika.abc import AbstractConnection

from benchmarks.compiled import compiled, rate
from benchmarks.measured import Comparison, Series, in_turns
from benchmarks.peers.started import Peer, commands, there
from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.stream import stream
from schemas import Job, Report
from tests.support.rabbitmq import Node
from tests.support.workstation import Workstation

COMMANDS = int(os.environ.get("COUNT", "2000"))
AT_ONCE = 4
_WARM_UP = 8
_TRUE = shutil.which("true") or "/bin/true"
_GUARANTEES = (
    f"{AT_ONCE} at once; each job recorded and stored, both confirmed; the ledger synced to disk"
    " before each start; output captured; reports confirmed, read from the stream by the sender"
)

_DURABLE = "durable queue, persistent messages"
_RESULTS = "output captured and returned"
_NO_RESULTS = "no results without a further server: output discarded, a file counts what has ended"
_CELERY = ("celery", "kombu", "amqp")
_ASYNCIO = "by asyncio, stock loop"
_PREFORK = ("celery", "-A", "benchmarks.peers.with_celery", "worker", "-c", f"{AT_ONCE}")
_TASKIQ = (
    *("taskiq", "worker", "benchmarks.peers.with_taskiq:broker"),
    *("--workers", "2", "--max-async-tasks", f"{AT_ONCE // 2}"),
)
_FASTSTREAM = ("faststream", "run", "benchmarks.peers.with_faststream:app")

PEERS = (
    Peer(
        "Celery, prefork",
        "with_celery",
        f"{_DURABLE} (classic); rpc results, {_RESULTS}; acks early, no confirms: its defaults",
        _CELERY,
        _PREFORK,
    ),
    Peer(
        "Celery, prefork, acks late, confirms",
        "with_celery",
        f"{_DURABLE} (classic), confirmed; rpc results, {_RESULTS}; acks late",
        _CELERY,
        _PREFORK,
        {"PEER_CAREFUL": "1"},
    ),
    Peer(
        "Celery, threads",
        "with_celery",
        f"{_DURABLE} (classic); rpc results, {_RESULTS}; acks early, no confirms",
        _CELERY,
        (*_PREFORK, "-P", "threads"),
    ),
    Peer(
        "FastStream, with reply",
        "with_faststream",
        f"{_DURABLE} (classic), confirmed; transient replies, confirmed, {_RESULTS}; acks late;"
        f" {AT_ONCE} prefetched; {_ASYNCIO}",
        ("faststream", "aio-pika"),
        _FASTSTREAM,
    ),
    Peer(
        "bare aio-pika consumer",
        "with_aio_pika",
        f"{_DURABLE} (classic), confirmed; persistent replies, confirmed, {_RESULTS}; acks late;"
        f" {AT_ONCE} prefetched; {_ASYNCIO}",
        ("aio-pika", "aiormq"),
        ("python", "-m", "benchmarks.peers.with_aio_pika", "worker"),
    ),
    Peer(
        "Dramatiq, no results",
        "with_dramatiq",
        f"{_DURABLE} (classic), no confirms (its default); acks late; 2 processes of 2 threads;"
        f" {_NO_RESULTS}",
        ("dramatiq", "pika"),
        ("dramatiq", "benchmarks.peers.with_dramatiq", "-p", "2", "-t", f"{AT_ONCE // 2}"),
    ),
    Peer(
        "FastStream, no results",
        "with_faststream",
        f"{_DURABLE} (classic), confirmed; acks late; {AT_ONCE} prefetched; {_ASYNCIO};"
        " output discarded, a file counts what has ended",
        ("faststream", "aio-pika"),
        _FASTSTREAM,
        {"PEER_WITHOUT_RESULTS": "1"},
    ),
    Peer(
        "taskiq, no results",
        "with_taskiq",
        f"{_DURABLE} (quorum, its default), confirmed; acks late; 2 processes of"
        f" {AT_ONCE // 2} tasks; {_ASYNCIO}, as where its extra uv is not installed; {_NO_RESULTS}",
        ("taskiq", "taskiq-aio-pika", "aio-pika"),
        _TASKIQ,
    ),
    Peer(
        "taskiq on uvloop, no results",
        "with_taskiq",
        "the same with its extra uv, whose loop it takes wherever it finds it",
        ("taskiq", "taskiq-aio-pika", "uvloop"),
        _TASKIQ,
        uvloop=True,
    ),
)


@contextmanager
def agent(node: Node, queue_type: str) -> Iterator[Workstation]:
    """Run a service agent on a workstation with a new state folder."""
    with tempfile.TemporaryDirectory() as folder:
        ws = Workstation(f"bench-{queue_type}", node.url, Path(folder))
        ws.start("service", concurrency=str(AT_ONCE), queue_type=queue_type)
        try:
            yield ws
        finally:
            ws.stop()


async def all_ended(link: AbstractConnection, jobs: list[Job]) -> None:
    """Read the stream until each job has its final report."""
    waiting = {job.id for job in jobs}
    since = min(job.created_at for job in jobs) - timedelta(seconds=1)
    async with stream.read_stream(link, since) as entries:
        while waiting:
            for record in (await anext(entries)).records():
                if isinstance(record, Report) and record.state.final:
                    waiting.discard(record.job_id)


async def send(dispatcher: Dispatcher, jobs: list[Job]) -> None:
    """Send jobs, with the default number in flight."""
    async for _, error in dispatcher.dispatch_all(jobs):
        if error is not None:
            raise error


async def end_to_end(ws: Workstation, settings: DispatcherSettings) -> float:
    """Return commands a second: from the first job sent to the last final report read."""
    async with Dispatcher.connect(settings) as dispatcher, connect(settings, "bench") as link:

        async def run(count: int) -> None:
            jobs = [ws.job(_TRUE, background=True) for _ in range(count)]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(all_ended(link, jobs))
                tasks.create_task(send(dispatcher, jobs))

        await run(_WARM_UP)
        began = time.perf_counter()
        await run(COMMANDS)
        return COMMANDS / (time.perf_counter() - began)


async def due_together(ws: Workstation, settings: DispatcherSettings) -> float:
    """Return commands a second of jobs received earlier, from their due time to the last report."""
    due = datetime.now(UTC) + timedelta(seconds=2 + COMMANDS / 250)
    jobs = [ws.job(_TRUE, background=True, mandatory_at=due) for _ in range(COMMANDS)]
    async with Dispatcher.connect(settings) as dispatcher, connect(settings, "bench") as link:
        await send(dispatcher, jobs)
        if datetime.now(UTC) > due:
            raise RuntimeError("the jobs were due before all were sent")
        await all_ended(link, jobs)
        return COMMANDS / (datetime.now(UTC) - due).total_seconds()


def ours(
    node: Node,
    queue_type: str,
    way: Callable[[Workstation, DispatcherSettings], Coroutine[Any, Any, float]],
) -> float:
    """Measure our side by one of the functions above."""
    with agent(node, queue_type) as ws:
        return asyncio.run(way(ws, DispatcherSettings(amqp_url=(node.url,))))


def asyncio_loop(*, captured: bool) -> float:
    """Return commands a second of asyncio's subprocesses alone."""
    pipe = asyncio.subprocess.PIPE if captured else asyncio.subprocess.DEVNULL
    left = iter(range(COMMANDS))

    async def run() -> None:
        for _ in left:
            process = await asyncio.create_subprocess_exec(
                _TRUE, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
            await process.communicate()

    async def run_all() -> None:
        await asyncio.gather(*(run() for _ in range(AT_ONCE)))

    began = time.perf_counter()
    asyncio.run(run_all())
    return COMMANDS / (time.perf_counter() - began)


def spawn_loop() -> float:
    """Return commands a second of `os.posix_spawn` alone, from threads."""
    left = iter(range(COMMANDS))
    null = [(os.POSIX_SPAWN_OPEN, file, os.devnull, os.O_RDWR, 0) for file in range(3)]

    def run() -> None:
        for _ in left:
            os.waitpid(os.posix_spawn(_TRUE, [_TRUE], {}, file_actions=null), 0)

    threads = [threading.Thread(target=run) for _ in range(AT_ONCE)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return COMMANDS / (time.perf_counter() - began)


def main() -> None:
    """Measure all sides alternately, and store the comparison."""
    null = "output discarded"
    about = {
        "ours": f"quorum queue; {_GUARANTEES}",
        "ours, classic queue": "the same on a classic queue, version 2",
        "ours, received earlier, due together": "from when they are due: sending is not counted",
    }
    ways: dict[str, Callable[[], float]] = {}
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        ways["ours"] = partial(ours, node, "quorum", end_to_end)
        ways["ours, classic queue"] = partial(ours, node, "classic", end_to_end)
        ways["ours, received earlier, due together"] = partial(ours, node, "quorum", due_together)
        for peer in there(PEERS):
            about[peer.name] = peer.described
            ways[peer.name] = partial(commands, peer, node.url, AT_ONCE, COMMANDS)
        for words, captured in ((null, False), ("output captured", True)):
            name = f"limit: asyncio's subprocesses, {words}"
            about[name] = f"no messages; stock loop, {AT_ONCE} at once"
            ways[name] = partial(asyncio_loop, captured=captured)
        name = "limit: posix_spawn from Python"
        about[name], ways[name] = f"no messages; {AT_ONCE} threads, {null}", spawn_loop
        if program := compiled("starting", Path(folder)):
            for processes in (1, AT_ONCE):
                name = f"limit: vfork, exec and wait in C, {processes} at once"
                about[name] = f"no messages; {null}"
                ways[name] = partial(rate, program, _TRUE, str(COMMANDS), str(processes))
        figures = in_turns(ways)
    Comparison(
        "one_workstation",
        f"{COMMANDS:,} times true on one workstation, {AT_ONCE} at once",
        "commands a second",
        [Series(name, found, about[name]) for name, found in figures.items()],
        baseline="ours",
    ).keep()


if __name__ == "__main__":
    main()
