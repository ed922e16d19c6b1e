"""What watching a job counts as its reports come: who runs it, what failed alike, how fast."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.client.progress import Progress, has_ended
from schemas import Report, State
from schemas.report import first_line

_WINDOW = 30.0  # seconds over which the rate is taken
_LEAST = 2.0
_HARMLESS = frozenset({State.SUCCEEDED, State.CANCELLED, State.NOT_APPLICABLE})


@dataclass
class Failure:
    """Workstations on which a job failed alike; `example` is the first of them."""

    text: str
    example: str
    count: int = 0


class WatchTally:
    """Counts what `progress` takes in; each report costs the same, however many there were.

    Attributes:
        promised: workstations that are expected to receive the job, though nothing was heard.
        running: where it runs now, the longest first.
        failures: what failed alike, by what it said.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = progress
        self.promised: frozenset[str] = frozenset()
        self.running: dict[str, None] = {}
        self.failures: dict[str, Failure] = {}
        self._failed_on: dict[str, Failure] = {}
        self._to_restart: set[str] = set()
        self._clock = clock
        self._since: float | None = None
        self._ends: deque[tuple[int, int]] = deque()  # seconds, and how many ended in each

    def __str__(self) -> str:
        """Return on how many workstations the job is in which state."""
        counts = self.progress.counts
        # What has ended first, and always in one order: it is shown anew while it changes.
        states = sorted(State, key=lambda state: not state.final)
        parts = [f"{counts[state]} {state.replace('_', ' ')}" for state in states if counts[state]]
        if self.restarts:
            parts[0] += f" ({self.restarts} to be restarted)"  # successes stand first
        if missing := len(self.unheard):
            parts.append(f"{missing} not received")
        return ", ".join(parts) or "no workstation has received it yet"

    def add(self, report: Report) -> Failure | None:
        """Count a report that was taken in; return the failure if it is the first of its kind."""
        name = report.workstation
        if self.progress.workstations.get(name) is not report:
            return None  # another report counts
        self._leave_out(name)
        if report.state is State.STARTED:
            self.running[name] = None
        else:
            self.running.pop(name, None)
        if has_ended(report):
            self._note_end()
        if report.result and report.result.restart_required:
            self._to_restart.add(name)
        if report.state.final and report.state not in _HARMLESS:
            return self._fail(report)
        return None

    def _fail(self, report: Report) -> Failure | None:
        text = failure_text(report)
        failure = self.failures.setdefault(text, Failure(text, report.workstation))
        failure.count += 1
        self._failed_on[report.workstation] = failure
        return failure if failure.count == 1 else None

    def _leave_out(self, name: str) -> None:
        """Take back what an end added that does not count any more."""
        self._to_restart.discard(name)
        if failure := self._failed_on.pop(name, None):
            failure.count -= 1
            if not failure.count:
                del self.failures[failure.text]

    @property
    def restarts(self) -> int:
        """On how many workstations it succeeded and needs them restarted."""
        return len(self._to_restart)

    @property
    def failed(self) -> int:
        """On how many workstations it failed."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def ended(self) -> int:
        """On how many workstations it has ended."""
        counts = self.progress.counts
        return sum(count for state, count in counts.items() if state.final) + counts[State.DECLINED]

    @property
    def unheard(self) -> frozenset[str]:
        """The workstations that are to receive it, and of which nothing was heard."""
        progress = self.progress
        wanted = progress.expected if progress.over else progress.expected | self.promised
        return wanted - progress.workstations.keys()

    @property
    def rate(self) -> float:
        """On how many workstations it ends in a second, of late; 0 where that is not known."""
        now = self._clock()
        begun = self._begun(now)
        while self._ends and self._ends[0][0] < now - _WINDOW:
            self._ends.popleft()
        span = min(_WINDOW, now - begun) if begun is not None else 0.0
        return sum(count for _, count in self._ends) / span if span >= _LEAST else 0.0

    def _note_end(self) -> None:
        now = self._clock()
        if self._begun(now) is None:
            return
        if self._ends and self._ends[-1][0] == int(now):
            self._ends[-1] = (int(now), self._ends[-1][1] + 1)
        else:
            self._ends.append((int(now), 1))

    def _begun(self, now: float) -> float | None:
        """Return since when ends are counted: what had ended before we came tells no speed."""
        if self._since is None and self.progress.caught_up.is_set():
            self._since = now
        return self._since


def failure_text(report: Report) -> str:
    """Return how a job failed, without saying where."""
    parts = [str(report.state)]
    if result := report.result:
        if result.exit_code is not None:
            parts.append(f"exit {result.exit_code}")
        if result.signal is not None:
            parts.append(f"signal {result.signal}")
    parts.append(first_line(report) or report.reason)
    return "  ".join(part for part in parts if part)
