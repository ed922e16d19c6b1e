"""Measure one command on a fleet: from the call until the last result is received.

    .venv/bin/python -m benchmarks.fleet      # SIZES=20,50: other numbers of workstations

Our agents are real, each a process with its own name and folder, all on this machine, as are the
other systems' workers. Only one system runs at a time: a hundred workers of each would need too
much memory, and idle workers would use CPU time. A system's workers are started, its sides are
measured alternately, and the workers are ended; then the next system follows. Half of the rounds
are measured after all systems had the first half, so that a slow minute of the machine does not
affect one system alone. Salt, whose minions take minutes to start, has all its rounds together.

`pcm send --wait` starts a process, and waits for further workstations for two seconds after the
last known one has ended. Salt's and Ansible's command lines start processes, too.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.measured import ROUNDS, Comparison, Series, in_turns
from benchmarks.peer_fleets import PEERS, SALT, Failed, Ways, ansible, celery, salt, timed
from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.amqp.topology import QueueType
from broker.stream import stream
from schemas import Command, Job, Report, State, everyone
from tests.support.programs import BIN
from tests.support.rabbitmq import Node
from tests.support.workstation import Workstation

SIZES = [int(size) for size in os.environ.get("SIZES", "20,50,100").split(",")]
_LIMIT = 60.0
_COMMAND = "uname"
_STARTED_AT_ONCE = 10


@contextmanager
def ours(count: int, queues: QueueType) -> Iterator[Ways]:
    """Run our agents, one for each workstation; yield their measurements."""
    with Node() as node, tempfile.TemporaryDirectory() as name:
        fleet = [
            Workstation(f"ws-{number:03}", node.url, Path(name) / f"{number:03}")
            for number in range(count)
        ]
        try:
            for start in range(0, count, _STARTED_AT_ONCE):
                some = fleet[start : start + _STARTED_AT_ONCE]
                for ws in some:
                    ws.folder.mkdir()
                    ws.start("service", connected=False, queue_type=queues)
                for ws in some:
                    _come(ws)
            settings = DispatcherSettings(amqp_url=(node.url,))
            words = [BIN / "pcm", "send", "--to", "all", "--background", "--wait", "--", _COMMAND]
            environment = {"HOME": name, "PCM_AMQP_URL": node.url}
            ways = {f"ours, {queues} queues": lambda: asyncio.run(_dispatched(settings, count))}
            if queues == "quorum":
                ways["ours, pcm send --wait"] = lambda: timed(
                    words, environment, f"exit 0 x {count}"
                )
            yield ways
        finally:
            for ws in fleet:
                ws.stop()


def _come(ws: Workstation) -> None:
    deadline = time.monotonic() + _LIMIT
    while not ws.agents[0].events("broker.connected"):
        if time.monotonic() > deadline:
            raise Failed(f"{ws.name}: its agent does not come")
        time.sleep(0.05)


async def _dispatched(settings: DispatcherSettings, count: int) -> float:
    """Return the seconds from the dispatch to the last final report read."""
    job = Job(command=Command(argv=(_COMMAND,), background=True), targets=(everyone,))
    ended: set[str] = set()
    async with (
        asyncio.timeout(_LIMIT),
        Dispatcher.connect(settings) as dispatcher,
        connect(settings, "bench") as link,
        stream.read_stream(link, "last") as entries,
    ):
        began = time.perf_counter()
        await dispatcher.dispatch(job)
        while len(ended) < count:
            for record in (await anext(entries)).of_job(job.id):
                if isinstance(record, Report) and record.state is State.SUCCEEDED:
                    ended.add(record.workstation)
        return time.perf_counter() - began


@dataclass(frozen=True)
class System:
    """One system: the start of its fleet, its settings, and the parts of its rounds."""

    fleet: Callable[[int], AbstractContextManager[Ways]]
    about: str
    parts: int = 2


def systems() -> Iterator[System]:
    """Yield the installed systems; print the others."""
    durable = (
        f"version {version('package-command-manager')}, an agent process each; persistent messages,"
        " publisher confirms, a ledger synced before each start, all reports in a stream"
    )
    for queues in ("quorum", "classic"):
        yield System(partial(ours, queues=queues), f"{durable}; {queues} queues")
    if (PEERS / "celery").exists():
        about = (
            f"version {_version(PEERS, 'celery')}, a solo worker each; persistent messages,"
            " no confirms, acknowledged before the run; results in a transient queue"
        )
        yield System(celery, about)
    else:
        print("Celery is not here: make .bench", flush=True)
    if (PEERS / "ansible").exists():
        about = f"version {_version(PEERS, 'ansible-core')}, local connection, as many forks"
        yield System(ansible, about)
    else:
        print("Ansible is not here: make .bench", flush=True)
    if (SALT / "salt-minion").exists():
        about = f"version {_version(SALT, 'salt')}, a minion each, on loopback; nothing is kept"
        yield System(salt, about, parts=1)
    else:
        print("Salt is not here: make .bench-salt", flush=True)


def _version(programs: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    words = [str(programs / "python"), "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def measure(size: int) -> list[Series]:
    """Measure all systems with a number of workstations."""
    found: dict[str, Series] = {}
    gone: set[System] = set()
    present = list(systems())
    parts = max(system.parts for system in present)
    for part in range(parts):
        for system in present[part:] + present[:part]:
            rounds = ROUNDS // system.parts + (part < ROUNDS % system.parts)
            if part >= system.parts or not rounds or system in gone:
                continue
            try:
                with system.fleet(size) as ways:
                    figures = in_turns(ways, rounds)
            except (Failed, TimeoutError) as failure:
                print(f"{size} workstations: left out: {failure}", flush=True)
                gone.add(system)
                continue
            for name, some in figures.items():
                series = found.setdefault(name, Series(name, [], system.about, size))
                series.figures.extend(some)
    return [series for series in found.values() if len(series.figures) == ROUNDS]


def main() -> None:
    """Measure, and store the figures."""
    Comparison(
        "fleet",
        f"{_COMMAND} on a fleet: until the last result is known",
        "seconds",
        [series for size in SIZES for series in measure(size)],
        baseline="ours, quorum queues",
        more_is_better=False,
        axis="workstations",
    ).keep()


if __name__ == "__main__":
    main()
