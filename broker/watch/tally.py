"""Count the reports of a watched job: workstations by state, equal failures, ends a second."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.client.progress import Progress, has_ended
from schemas import Report, State
from schemas.reports.report import first_line

_WINDOW = 30.0  # seconds over which the rate is averaged
_MIN_WINDOW = 2.0
_HARMLESS = frozenset({State.SUCCEEDED, State.CANCELLED, State.NOT_APPLICABLE})


@dataclass
class Failure:
    """Workstations with the same failure; `example` is the first of them."""

    text: str
    example: str
    count: int = 0


class WatchTally:
    """Counts the reports of a `Progress`, in constant time for each.

    Attributes:
        queued_in_history: the workstations for which the history has the job as queued.
        started: the workstations where it runs, the longest first.
        failures: the groups of equal failures, by their texts.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = progress
        self.queued_in_history: frozenset[str] = frozenset()
        self.started: dict[str, None] = {}
        self.failures: dict[str, Failure] = {}
        self._failed_on: dict[str, Failure] = {}
        self._restart_required: set[str] = set()
        self._clock = clock
        self._counting_since: float | None = None
        self._ends: deque[tuple[int, int]] = deque()  # second, number of ends

    def __str__(self) -> str:
        """Return the number of workstations in each state."""
        counts = self.progress.counts
        # Final states first, in a fixed order: the live view must not jump.
        states = sorted(State, key=lambda state: not state.final)
        parts = [f"{counts[state]} {state.replace('_', ' ')}" for state in states if counts[state]]
        if self.restarts:
            parts[0] += f" ({self.restarts} restart required)"  # successes are first
        if queued := len(self.queued):
            parts.append(f"{queued} queued")
        if unreachable := len(self.progress.unreachable):
            parts.append(f"{unreachable} unreachable")
        return ", ".join(parts) or "no workstation has received it yet"

    def add(self, report: Report) -> Failure | None:
        """Count a report of the progress; return the failure if it is the first of its kind."""
        name = report.workstation
        if self.progress.workstations.get(name) is not report:
            return None  # another report counts
        self._undo_end(name)
        if report.state is State.STARTED:
            self.started[name] = None
        else:
            self.started.pop(name, None)
        if has_ended(report):
            self._count_end()
        if report.result and report.result.restart_required:
            self._restart_required.add(name)
        if report.state.final and report.state not in _HARMLESS:
            return self._add_failure(report)
        return None

    def _add_failure(self, report: Report) -> Failure | None:
        text = failure_text(report)
        failure = self.failures.setdefault(text, Failure(text, report.workstation))
        failure.count += 1
        self._failed_on[report.workstation] = failure
        return failure if failure.count == 1 else None

    def _undo_end(self, name: str) -> None:
        """Uncount an earlier end that a later report replaces."""
        self._restart_required.discard(name)
        if failure := self._failed_on.pop(name, None):
            failure.count -= 1
            if not failure.count:
                del self.failures[failure.text]

    @property
    def restarts(self) -> int:
        """Return the number of workstations that it succeeded on and that must be restarted."""
        return len(self._restart_required)

    @property
    def failed(self) -> int:
        """Return the number of workstations where it failed."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def ended(self) -> int:
        """Return the number of workstations where it has ended."""
        counts = self.progress.counts
        return sum(count for state, count in counts.items() if state.final) + counts[State.DECLINED]

    @property
    def queued(self) -> frozenset[str]:
        """Return the workstations that are to receive it and have not reported it."""
        progress = self.progress
        expected = progress.expected
        if not progress.over:
            expected |= self.queued_in_history
        return expected - progress.workstations.keys() - progress.unreachable

    @property
    def rate(self) -> float:
        """Return the number of ends a second within the window; 0 while it is not known."""
        now = self._clock()
        since = self._count_since(now)
        while self._ends and self._ends[0][0] < now - _WINDOW:
            self._ends.popleft()
        span = min(_WINDOW, now - since) if since is not None else 0.0
        return sum(count for _, count in self._ends) / span if span >= _MIN_WINDOW else 0.0

    def _count_end(self) -> None:
        now = self._clock()
        if self._count_since(now) is None:
            return
        if self._ends and self._ends[-1][0] == int(now):
            self._ends[-1] = (int(now), self._ends[-1][1] + 1)
        else:
            self._ends.append((int(now), 1))

    def _count_since(self, now: float) -> float | None:
        """Return since when ends are counted: not before the progress has caught up."""
        if self._counting_since is None and self.progress.caught_up.is_set():
            self._counting_since = now
        return self._counting_since


def failure_text(report: Report) -> str:
    """Return a failure's text, equal for equal failures on all workstations."""
    parts = [str(report.state)]
    if result := report.result:
        if result.exit_code is not None:
            parts.append(f"exit {result.exit_code}")
        if result.signal is not None:
            parts.append(f"signal {result.signal}")
    parts.append(first_line(report) or report.reason)
    return "  ".join(part for part in parts if part)
