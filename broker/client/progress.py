"""How far a job has come: its records, folded into one state for each workstation."""

import asyncio
from collections import Counter
from datetime import UTC, datetime

from schemas import Cancellation, Job, Report, State
from schemas.report import furthest


class Progress:
    """One job's state on each workstation, from its records in any order, each once or more.

    Attributes:
        workstations: the report that counts, for each workstation (see `schemas.report.furthest`).
        counts: on how many workstations it is in which state.
        expected: the workstations that the job is sent to by name.
        caught_up: set once all was read that was there when somebody began to follow the job.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.job: Job | None = None
        self.cancellation: Cancellation | None = None
        self.workstations: dict[str, Report] = {}
        self.counts: Counter[State] = Counter()
        self.expected: frozenset[str] = frozenset()
        self.caught_up = asyncio.Event()
        self._seen: set[tuple[str, str]] = set()
        self._by_agent: dict[str, dict[str, Report]] = {}
        # Kept, since they are asked for with each report.
        self._open: set[str] = set()
        self._silent: set[str] = set()

    def __repr__(self) -> str:
        states = ", ".join(f"{name}={report.state}" for name, report in self.workstations.items())
        return f"<Progress {self.job_id} {states}>"

    def add(self, record: Job | Cancellation | Report) -> bool:
        """Take in a record; return whether it is a report that was not seen before, or counts."""
        if isinstance(record, Job):
            self.job = record
            self.expected = frozenset(
                target.name
                for target in record.targets
                if target.name and target.scope == "workstation"
            )
            self._silent = set(self.expected - self.workstations.keys())
        elif isinstance(record, Cancellation):
            if not record.workstations:  # else those it names say so themselves
                self.cancellation = record
        else:
            # Not by the id alone: one workstation could keep another's report from counting.
            seen = (record.workstation, record.id)
            is_new = seen not in self._seen
            self._seen.add(seen)
            return self._count(record) or is_new
        return False

    def _count(self, report: Report) -> bool:
        """Take in a report; return whether it is now the one that counts on its workstation."""
        name = report.workstation
        by_agent = self._by_agent.setdefault(name, {})
        own = by_agent.get(report.agent)
        last = furthest([report] if own is None else [own, report])
        if last is None or last is own:
            return False
        by_agent[report.agent] = last
        known, counting = self.workstations.get(name), furthest(by_agent.values())
        if counting is None or counting is known:
            return False
        self._take(counting, known)
        return counting is report

    def _take(self, report: Report, known: Report | None) -> None:
        name = report.workstation
        self.workstations[name] = report
        self.counts[report.state] += 1
        if known is not None:
            self.counts[known.state] -= 1
        self._silent.discard(name)
        (self._open.discard if has_ended(report) else self._open.add)(name)

    @property
    def reports(self) -> int:
        """How many reports were taken in."""
        return len(self._seen)

    @property
    def unknown(self) -> bool:
        """Whether there is no trace of the job."""
        return self.job is None and not self.workstations

    @property
    def closed(self) -> bool:
        """Whether no workstation can join: the job names each that it is for."""
        return self.job is not None and len(self.expected) == len(self.job.targets)

    @property
    def over(self) -> bool:
        """Whether no further workstation will receive it: it was withdrawn, or has expired."""
        return self.cancellation is not None or self.until_over == 0

    @property
    def until_over(self) -> float:
        """Seconds until its expiry, 0 after it; infinite without one, or one by wall clocks."""
        end = self.job.expires_at if self.job else None
        if not isinstance(end, datetime):
            return float("inf")
        return max(0.0, (end - datetime.now(UTC)).total_seconds())

    @property
    def waiting(self) -> set[str]:
        """The workstations, known so far, where the job has not ended and still may."""
        return set(self._open) if self.over else self._open | self._silent

    @property
    def ended(self) -> bool:
        """Whether it has ended on each workstation known so far."""
        return not self._open and (self.over or (bool(self.workstations) and not self._silent))

    @property
    def succeeded(self) -> bool:
        """Whether it has ended, in success wherever it was for, and somewhere at all."""
        states = (+self.counts).keys()
        return (
            self.ended
            and State.SUCCEEDED in states
            and states <= {State.SUCCEEDED, State.NOT_APPLICABLE}
        )


def has_ended(report: Report) -> bool:
    """Whether nobody waits for more: a final state, or an offer that the user declined.

    A user may still change their mind until the job expires, but nothing says that they will.
    """
    return report.state.final or report.state is State.DECLINED
