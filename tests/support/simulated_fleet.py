"""Records of workstations in a stream, without agents, and a history of its own to query."""

import itertools
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker.amqp.publisher import Publisher
from broker.stream.stream import append
from schemas import Command, Facts, Job, Message, Output, Report, Result, State
from schemas import workstation as workstation_target
from schemas.reports.check_in import CheckIn
from tests.support import programs
from tests.support.collected import collected

_numbers = itertools.count(1)
_LINES = 500  # records in a message
NOW = datetime.now(UTC)


def result(code: int | None = 0, *, stdout: str = "", stderr: str = "", **fields: Any) -> Result:
    """Return how a command ended."""
    given = {"exit_code": code, "duration": timedelta(seconds=2), "max_memory": 0}
    outputs = {"stdout": Output(head=stdout.encode()), "stderr": Output(head=stderr.encode())}
    return Result.model_validate({**given, **outputs, **fields})


class SimulatedFleet:
    """Workstations with names that no other test has: their records, and `pcm` to query them."""

    def __init__(self, publisher: Publisher, url: str, folder: Path) -> None:
        self.prefix = f"t{next(_numbers)}-{os.getpid()}"
        self._publisher = publisher
        collected(url, folder / "history.db")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TZ": "UTC",
            "PCM_AMQP_URL": url,
            "PCM_HISTORY_URL": f"sqlite:///{folder}/history.db",
        }

    def name(self, word: str) -> str:
        """Return a workstation's or a group's name."""
        return f"{self.prefix}-{word}"

    def job(self, *words: str, argv: tuple[str, ...] = ("true",), **fields: Any) -> Job:
        """Return a job for workstations; fields of the command are recognised by name."""
        command = {name: fields.pop(name) for name in list(fields) if name in Command.model_fields}
        targets = tuple(workstation_target(self.name(word)) for word in words)
        made = {"targets": targets, "command": Command(argv=argv, **command)}
        return Job.model_validate({**made, **fields})

    def check_in(self, word: str, agent: str = "service", **fields: Any) -> CheckIn:
        """Return that an agent is there."""
        given = {"workstation": self.name(word), "agent": agent, "facts": Facts(os="linux")}
        return CheckIn.model_validate({**given, "interval": timedelta(minutes=1), **fields})

    def report(
        self, job: Job, word: str, state: State, *, agent: str = "service", **fields: Any
    ) -> Report:
        """Return one thing that happened."""
        return Report(
            job_id=job.id, workstation=self.name(word), agent=agent, state=state, **fields
        )

    async def append(self, *records: Message) -> None:
        """Put records at the stream's end; many of a kind go in one message."""
        for kind, group in itertools.groupby(records, lambda one: getattr(one, "kind", "")):
            for chunk in _chunks(list(group)):
                body = b"\n".join(record.body() for record in chunk)
                await append(self._publisher, self._key(kind), body, kind=kind)

    def _key(self, kind: str) -> str:
        words = {"report": "succeeded", "check_in": "check_in"}
        return f"{words[kind]}.{self.prefix}.service" if kind in words else f"{kind}.{self.prefix}"

    def pcm(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run pcm as an administrator does."""
        done = self.pcm_bytes(*words, **settings)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def pcm_bytes(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[bytes]":
        """Run pcm, and return the very bytes that it wrote."""
        return programs.run_bytes("pcm", words, self.environment | settings)


def _chunks(records: list[Message]) -> list[list[Message]]:
    return [records[start : start + _LINES] for start in range(0, len(records), _LINES)]
