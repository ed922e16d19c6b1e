"""Some workstations with service agents, and the program pcm with a history of its own."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.amqp.topology import report_key
from broker.history.collector import catch_up
from broker.history.engine import open_history
from broker.history.queries.workstations import query_fleet
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import CheckIn
from tests.support import programs
from tests.support.collected import collected
from tests.support.programs import BIN
from tests.support.waiting import LIMIT
from tests.support.workstation import Program, Workstation

_SABOTAGE = Path(__file__).with_name("sabotage.py")
_numbers = itertools.count(1)


def killed_at(point: str, text: str) -> Program:
    """Return the program `pcm` that ends at a point, as tests/support/sabotage.py says."""
    return (sys.executable, "-P", _SABOTAGE, point, text, "--", "pcm")


class Fleet:
    """Workstations of one group that no other test uses."""

    def __init__(self, count: int, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        number = next(_numbers)
        self.group = f"fleet-{number}-{os.getpid()}"
        self.names = [f"{self.group}-{letter}" for letter in "abcdefgh"[:count]]
        self.workstations: dict[str, Workstation] = {}
        for name in self.names:
            (folder / name).mkdir()
            self.workstations[name] = Workstation(name, url, folder / name)

    @property
    def to(self) -> tuple[str, str]:
        """The options that address them."""
        return "--to", f"group:{self.group}"

    def start(self, *names: str) -> None:
        """Start the service agents, of all or some."""
        for name in names or self.names:
            self.workstations[name].start("service", groups=self.group)

    async def seen(self) -> None:
        """Wait until all have checked in."""
        settings = HistorySettings(amqp_url=(self.url,))
        collected(self.url, self.folder / "seen.db")
        engine = open_history(f"sqlite:///{self.folder}/seen.db")
        async with asyncio.timeout(LIMIT):
            while True:
                await catch_up(settings, engine)
                with query_fleet(engine) as found:
                    if len(found.workstations(group=self.group)) == len(self.names):
                        break
        engine.dispose()

    async def check_in(self, *names: str) -> None:
        """Append check-ins for workstations without agents."""
        settings = HistorySettings(amqp_url=(self.url,))
        async with connect(settings, "test") as connection:
            publisher = await Publisher.open(connection)
            for name in names:
                here = CheckIn.model_validate(
                    {
                        "workstation": name,
                        "agent": "service",
                        "groups": [self.group],
                        "interval": "1h",
                    }
                )
                key = report_key("check_in", name, "service")
                await stream.append(publisher, key, here.body(), kind="check_in")

    def stop(self) -> None:
        """End all agents."""
        for workstation in self.workstations.values():
            workstation.stop()


class Administrator:
    """Runs `pcm` with a history of its own, also to be killed at a named point."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        collected(url, folder / "history.db")
        self.history_url = f"sqlite:///{folder / 'history.db'}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PCM_AMQP_URL": url,
            "PCM_HISTORY_URL": self.history_url,
            "PCM_SETTLE": "100ms",
        }
        self._begun: list[subprocess.Popen[str]] = []

    def pcm(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return programs.run("pcm", words, self.environment)

    def pcm_by(self, program: Program, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a program that is pcm, to its end."""
        return subprocess.run(
            [*program, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Start it, and let it run."""
        process = subprocess.Popen(
            [BIN / "pcm", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun.append(process)
        return process

    def json(self, *words: str) -> list[Any]:
        """Run it, and return the list that it prints, or its lines of JSON."""
        done = self.pcm(*words, "--json")
        assert done.stderr == "", done
        if done.stdout.startswith("["):
            found: list[Any] = json.loads(done.stdout)
            return found
        return [json.loads(line) for line in done.stdout.splitlines()]

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """Return what is shown of a rollout."""
        (shown,) = self.json("rollout", "show", rollout_id)
        assert isinstance(shown, dict)
        return shown

    def until(self, rollout_id: str, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until a rollout is as it is wanted."""
        deadline = time.monotonic() + LIMIT
        while not wanted(shown := self.rollout(rollout_id)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        return shown

    def stop(self) -> None:
        """End what was begun."""
        for process in self._begun:
            process.kill()
            process.communicate()


@contextmanager
def fleet(count: int, url: str, folder: Path) -> Iterator[Fleet]:
    """A fleet, ended afterwards."""
    made = Fleet(count, url, folder)
    try:
        yield made
    finally:
        made.stop()


def runs(path: Path) -> Counter[str]:
    """Return how often each line was written to a file."""
    return Counter(path.read_text().splitlines() if path.exists() else ())


def line_of(process: "subprocess.Popen[str]", words: Sequence[str]) -> str:
    """Wait for a process's line that has all of some words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if all(word in line for word in words):
            return line
    raise AssertionError((lines, process.communicate()))
