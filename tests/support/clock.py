"""A wall clock that a test sets, and the agents that go by it."""

import struct
import sys

from tests.support.workstation import AgentProcess, Program, Workstation

LOOK_EVERY = "1s"
"""`missing_after` of agents that soon notice a jump ahead: so often they look at users' jobs."""
PROGRAM: Program = (sys.executable, "-m", "tests.support.wrong_clock")


class Clock:
    """The wall clock of a workstation's agents, wrong by so many seconds."""

    def __init__(self, ws: Workstation, wrong_by: float = 0.0) -> None:
        self._ws = ws
        self._file = ws.folder / "clock"
        self._file.touch()
        self._asleep = 0.0
        ws.environment["TEST_CLOCK"] = str(self._file)
        self.set(wrong_by)

    def set(self, wrong_by: float) -> None:
        """Have it jump."""
        self._wrong_by = wrong_by
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("dd", wrong_by, self._asleep))  # few bytes: they change at once

    def sleep(self, seconds: float) -> None:
        """Have the machine sleep, and wake."""
        self._asleep += seconds
        self.set(self._wrong_by + seconds)

    def start(self, kind: str, program: Program = PROGRAM, **settings: str) -> AgentProcess:
        """Start an agent that goes by it."""
        return self._ws.start(kind, connected=True, program=program, **settings)
