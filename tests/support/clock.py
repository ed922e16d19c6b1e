"""A wall clock that a test sets, and the agents that go by it."""

import sys

from tests.support.workstation import AgentProcess, Program, Workstation

PROGRAM: Program = (sys.executable, "-m", "tests.support.wrong_clock")


class Clock:
    """The wall clock of a workstation's agents, wrong by so many seconds."""

    def __init__(self, ws: Workstation, wrong_by: float = 0.0) -> None:
        self._ws = ws
        self._file = ws.folder / "clock"
        ws.environment["TEST_CLOCK"] = str(self._file)
        self.set(wrong_by)

    def set(self, wrong_by: float) -> None:
        """Have it jump."""
        new = self._file.with_suffix(".new")
        new.write_text(str(wrong_by))
        new.rename(self._file)

    def start(self, kind: str, program: Program = PROGRAM, **settings: str) -> AgentProcess:
        """Start an agent that goes by it."""
        return self._ws.start(kind, connected=True, program=program, **settings)
