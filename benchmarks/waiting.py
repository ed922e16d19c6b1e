"""Idle workers: their start, memory and wake-ups.

An agent is ready when the broker has confirmed its first consumer, a Salt minion when it logs that.
All processes of a worker are measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from benchmarks.measured import ROUNDS, Comparison, Series, in_turns
from benchmarks.processes import end, memory, running, tree, woken
from benchmarks.tap import Tap
from tests.support.programs import BIN
from tests.support.rabbitmq import Node, free_port

ROOT = Path(__file__).parents[1]
BENCH, SALT = ROOT / ".bench", ROOT / ".bench-salt"
SETTLED = 2.0
"""Seconds after which the start is complete."""
IDLE = 8.0 if ROUNDS > 1 else 5.0
"""Seconds for which wake-ups are counted."""
LIMIT = 60.0
AT_ONCE = 4
_SWITCH = ("-c", f"{AT_ONCE}")


@dataclass(frozen=True)
class Side:
    """A worker that waits for messages.

    Attributes:
        name: the name of its series.
        words: its command line.
        about: its settings.
        packages: the packages whose versions are shown.
        environment: its variables, besides the broker's URL.
        ready: the log text when it is ready; if empty, it is ready when it consumes.
        prepare: creates its files in its folder, which is its HOME and working directory.
    """

    name: str
    words: tuple[str | Path, ...]
    about: str = ""
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    prepare: Callable[[Path], None] = lambda _: None

    @property
    def described(self) -> str:
        """Its versions and settings."""
        home = Path(self.words[0]).parent.parent
        paths = [str(path) for path in home.glob("lib/python*/site-packages")]
        versions = [
            f"{name} {found.version}"
            for name in self.packages
            for found in list(metadata.distributions(name=name, path=paths))[:1]
        ]
        return "; ".join(filter(None, (", ".join(versions), self.about)))


def _ours(kind: str, *options: str) -> Side:
    about = f"{AT_ONCE} commands at once; ledger, quorum queue; heartbeat of 10 s"
    return Side(f"ours, {kind} agent", (BIN / "pcm-agent", kind, *options), about)


def _bare(name: str, *options: str) -> Side:
    words = (sys.executable, "-m", "benchmarks.idle", *options)
    return Side(f"limit: {name}", words, "heartbeat of 10 s", ("aio-pika", "pydantic"))


SIDES = (
    _ours("service"),
    _ours("interactive", "--no-window"),
    _bare("bare aio-pika consumer"),
    _bare("the same with a pydantic model", "pydantic"),
    Side(
        "Celery, prefork",
        (BENCH / "bin/celery", "-A", "benchmarks.peers.with_celery", "worker", *_SWITCH),
        f"a parent and {AT_ONCE} processes",
        ("celery",),
    ),
    Side(
        "Celery, threads",
        (
            *(BENCH / "bin/celery", "-A", "benchmarks.peers.with_celery", "worker", *_SWITCH),
            *("-P", "threads"),
        ),
        f"{AT_ONCE} threads",
        ("celery",),
    ),
    Side(
        "Dramatiq",
        (BENCH / "bin/dramatiq", "benchmarks.peers.with_dramatiq", "-p", "1", "-t", f"{AT_ONCE}"),
        f"a parent, and a process of {AT_ONCE} threads",
        ("dramatiq", "pika"),
    ),
    Side(
        "taskiq",
        (
            *(BENCH / "bin/taskiq", "worker", "benchmarks.peers.with_taskiq:broker"),
            *("--workers", "1", "--max-async-tasks", f"{AT_ONCE}"),
        ),
        "a parent, and a process",
        ("taskiq", "taskiq-aio-pika"),
    ),
    Side(
        "FastStream",
        (BENCH / "bin/faststream", "run", "benchmarks.peers.with_faststream:app"),
        f"a process, {AT_ONCE} prefetched",
        ("faststream", "aio-pika"),
    ),
)


def there(sides: tuple[Side, ...]) -> list[Side]:
    """Return the sides whose programs are installed; print the others."""
    found = [side for side in sides if Path(side.words[0]).exists()]
    missing = [side.name for side in sides if side not in found]
    if missing:
        print("not installed, and left out:", ", ".join(missing), flush=True)
    return found


@contextmanager
def started(side: Side, url: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a side's processes; the log is in the folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PCM_AMQP_URL": url,
        "PCM_WORKSTATION": "bench",
        "PCM_USER": "ada",
        "PCM_STATE_DIR": str(folder / "state"),
        "PEER_URL": url,
        "PEER_AT_ONCE": str(AT_ONCE),
        "PEER_DONE": str(folder / "done"),
        **side.environment,
    }
    side.prepare(folder)
    with running(side.words, folder, environment, folder / "log") as process:
        yield process


def until_ready(side: Side, tap: Tap, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a side is ready for work."""
    deadline = time.monotonic() + LIMIT
    while not (side.ready in log.read_text() if side.ready else tap.consuming.is_set()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{side.name} is not ready:\n{log.read_text()[-2000:]}")
        time.sleep(0.002)


class Waiting:
    """Measures idle sides."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.resident: dict[str, list[float]] = {}
        self.proportional: dict[str, list[float]] = {}
        self.wake_ups: dict[str, list[float]] = {}

    def measure(self, side: Side) -> float:
        """Return the seconds from start to ready; record its memory and wake-ups."""
        with tempfile.TemporaryDirectory() as name, Tap(self._node.port) as tap:
            folder = Path(name)
            began = time.perf_counter()
            with started(side, tap.url, folder) as process:
                until_ready(side, tap, process, folder / "log")
                took = time.perf_counter() - began
                time.sleep(SETTLED)
                self.resident.setdefault(side.name, []).append(memory(tree(process.pid)))
                self.proportional.setdefault(side.name, []).append(memory(tree(process.pid), "Pss"))
                before = woken(process.pid)
                time.sleep(IDLE)
                woke = (woken(process.pid) - before) * 60 / IDLE
                self.wake_ups.setdefault(side.name, []).append(woke)
        return took

    def keep(self, sides: list[Side]) -> None:
        """Measure all sides alternately, and store the comparisons."""
        took = in_turns({side.name: partial(self.measure, side) for side in sides})
        for name, title, unit, figures in (
            ("resident", "Resident memory (RSS) of an idle worker", "MiB", self.resident),
            (
                "proportional",
                "Proportional memory (PSS) of an idle worker",
                "MiB",
                self.proportional,
            ),
            ("ready", "Start-up time of a worker", "s", took),
            ("wake-ups", "Wake-ups of an idle worker", "a minute", self.wake_ups),
        ):
            series = [Series(side.name, figures[side.name], side.described) for side in sides]
            Comparison(
                f"footprint-{name}", title, unit, series, sides[0].name, more_is_better=False
            ).keep()


@contextmanager
def salt() -> Iterator[list[Side]]:
    """Run a Salt master; yield its minion, or an empty list where Salt is not installed."""
    if not (SALT / "bin/salt-minion").exists():
        print("not installed, and left out: Salt minion", flush=True)
        yield []
        return
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("wb") as log:
        publish, answer = free_port(), free_port()

        def prepare(folder: Path) -> None:
            # A new id each time: the master rejects a new key of a known minion.
            minion = {"id": uuid4().hex, "master": "127.0.0.1", "master_port": answer}
            _salted(folder / "minion", minion)

        _salted(
            Path(name) / "master",
            {
                "interface": "127.0.0.1",
                "publish_port": publish,
                "ret_port": answer,
                "auto_accept": True,
            },
        )
        master = subprocess.Popen(
            [SALT / "bin/salt-master", "-c", name, "-l", "error"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            words = (SALT / "bin/salt-minion", "-c", ".", "-l", "info")
            about = "its defaults; a new one, whose key the master accepts by itself"
            ready = "Minion is ready to receive requests"
            yield [Side("Salt minion", words, about, ("salt",), ready=ready, prepare=prepare)]
        finally:
            end(master)


def _salted(file: Path, settings: Mapping[str, object]) -> None:
    """Write the settings of a master or a minion, whose files are in the file's folder."""
    own = {"root_dir": str(file.parent), "pki_dir": "pki", **settings}
    file.write_text(json.dumps(own))  # JSON is YAML
