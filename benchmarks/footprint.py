"""Measure the footprint: memory, start time, wake-ups, times of commands, bytes for each job.

.venv/bin/python -m benchmarks.footprint
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.measured import ROUNDS, Comparison, Series, in_turns
from benchmarks.processes import on_disk
from benchmarks.tap import Tap
from benchmarks.waiting import SIDES, Waiting, salt, there
from broker import Dispatcher, DispatcherSettings
from schemas import Command, Job, workstation
from tests.support.programs import BIN
from tests.support.rabbitmq import Node
from tests.support.workstation import Workstation

JOBS = 500 if ROUNDS > 1 else 100
WARM = 150
"""Jobs that are sent before the measurement, until the ledger's log has its final size."""
PAUSE = 3.0


def keep_commands(node: Node) -> None:
    """Measure the wall time of commands, with an agent's queue and an empty history."""
    with tempfile.TemporaryDirectory() as folder:
        ws = Workstation("bench-commands", node.url, Path(folder))
        ws.start("service").end()

        def wall(*words: str | Path) -> float:
            began = time.perf_counter()
            subprocess.run(words, env=ws.environment, capture_output=True, check=True, timeout=60)
            return time.perf_counter() - began

        send = ("send", "--to", str(ws.target), "--background", "--expires-at", "+1h", "--", "true")
        libraries = ("aio_pika, pydantic", "aio_pika, pydantic, sqlalchemy")
        ways = {
            "ours: pcm send": partial(wall, BIN / "pcm", *send),
            "ours: pcm --help": partial(wall, BIN / "pcm", "--help"),
            "ours: pcm jobs": partial(wall, BIN / "pcm", "jobs"),
            "limit: python -c pass": partial(wall, sys.executable, "-c", "pass"),
            **{
                f"limit: import {names}": partial(wall, sys.executable, "-c", f"import {names}")
                for names in libraries
            },
        }
        ways["ours: pcm jobs"]()  # creates the history's file
        series = [Series(name, figures) for name, figures in in_turns(ways).items()]
    Comparison(
        "footprint-commands",
        "Wall time of commands, broker on loopback",
        "s",
        series,
        more_is_better=False,
    ).keep()


def keep_bytes(node: Node) -> None:
    """Measure the network and disk bytes for each job, sent one by one."""
    figures: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for name, figure in asyncio.run(_bytes(node, f"bench-bytes-{number}")).items():
            figures.setdefault(name, []).append(figure)
    about = "background job of no output; it is published twice, and reported three times"
    Comparison(
        "footprint-bytes",
        f"Bytes for each of {JOBS} jobs that are sent one by one and run",
        "bytes",
        [Series(name, found, about) for name, found in figures.items()],
        more_is_better=False,
    ).keep()


async def _bytes(node: Node, name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, Tap(node.port) as agents, Tap(node.port) as ours:
        ws = Workstation(name, agents.url, Path(folder))
        ws.start("service")
        settings = DispatcherSettings(amqp_url=(ours.url,))
        command = Command(argv=("true",), background=True)
        jobs = [Job(command=command, targets=(workstation(name),)) for _ in range(WARM + JOBS)]

        def taken() -> tuple[int, ...]:
            disk = (on_disk(ws.state_dir), on_disk(node.data))
            return ours.up, ours.down, agents.up, agents.down, *disk

        async with Dispatcher.connect(settings) as dispatcher:

            async def send(some: list[Job]) -> None:
                for job in some:
                    await dispatcher.dispatch(job)
                await asyncio.sleep(PAUSE)  # until all have run and are reported

            await send(jobs[:WARM])
            before = await asyncio.to_thread(taken)
            await send(jobs[WARM:])
            after = await asyncio.to_thread(taken)
        ws.stop()
    sides = (
        *("ours: sender to broker", "ours: broker to sender"),
        *("ours: agent to broker", "ours: broker to agent"),
        *("ours: agent's disk", "ours: broker's disk"),
    )
    grown = (end - begin for begin, end in zip(before, after, strict=True))
    return {side: figure / JOBS for side, figure in zip(sides, grown, strict=True)}


def main() -> None:
    """Measure and store all comparisons."""
    with Node() as node, salt() as minion:
        Waiting(node).keep([*there(SIDES), *minion])
        keep_commands(node)
        keep_bytes(node)


if __name__ == "__main__":
    main()
