"""The progress of a job: one state for each workstation, from the job's records."""

import asyncio
from collections import Counter
from datetime import UTC, datetime

from schemas import AgentsRevoked, Cancellation, Job, Report, State, WorkstationForgotten
from schemas.reports.report import furthest
from schemas.reports.reporters import Reporters


class Progress:
    """A job's state on each workstation, from its records in any order, with repetitions.

    Reports of agents that cannot have the job do not count (see `schemas.reports.reporters`).

    Attributes:
        workstations: for each workstation the report that counts (see
            `schemas.reports.report.furthest`).
        counts: the number of workstations in each state.
        expected: the workstations that the job names as targets.
        unreported: those of them that have not reported it.
        unreachable: the workstations whose reports cannot come any more: they were forgotten or
            revoked before the job ended there.
        caught_up: set when all entries were read that existed at the start of `follow`.
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
        self._reporters: Reporters | None = None
        self._by_agent: dict[str, dict[str, Report]] = {}
        # Sets, as they are needed with each report.
        self._open: set[str] = set()
        self.unreported: set[str] = set()
        self.unreachable: set[str] = set()

    def __repr__(self) -> str:
        states = ", ".join(f"{name}={report.state}" for name, report in self.workstations.items())
        return f"<Progress {self.job_id} {states}>"

    def add(self, record: Job | Cancellation | Report) -> bool:
        """Add a record; return whether it is a new report, or the one that counts."""
        if isinstance(record, Job):
            if self.job is None:
                self._set_job(record)
        elif isinstance(record, Cancellation):
            if not record.workstations:  # else these workstations report it
                self.cancellation = record
        elif not (self._reporters and self._reporters.objection(record.workstation, record.agent)):
            # By workstation, too: an id must not suppress another workstation's report.
            seen = (record.workstation, record.id)
            is_new = seen not in self._seen
            self._seen.add(seen)
            return self._count(record) or is_new
        return False

    def remove(self, removal: WorkstationForgotten | AgentsRevoked) -> None:
        """Stop waiting for a workstation that was forgotten or revoked after the job was sent."""
        name = removal.workstation
        is_removed = isinstance(removal, WorkstationForgotten) or removal.is_unreachable
        if self.job is None or not is_removed or name not in self.unreported | self._open:
            return
        self.unreachable.add(name)
        self.unreported.discard(name)
        self._open.discard(name)

    def _set_job(self, job: Job) -> None:
        """Set the job, and drop the reports of agents that cannot have it."""
        self.job = job
        self._reporters = Reporters.of(job)
        self.expected = frozenset(
            target.name for target in job.targets if target.name and target.scope == "workstation"
        )
        for name, by_agent in list(self._by_agent.items()):
            for agent in list(by_agent):
                if self._reporters.objection(name, agent):
                    del by_agent[agent]
            self._recount(name, furthest(by_agent.values()))
        self.unreported = set(self.expected - self.workstations.keys())

    def _recount(self, name: str, counting: Report | None) -> None:
        previous = self.workstations.get(name)
        if counting is previous:
            return
        if counting is not None:
            self._replace(previous, counting)
        elif previous is not None:
            del self.workstations[name]
            self.counts[previous.state] -= 1
            self._open.discard(name)

    def _count(self, report: Report) -> bool:
        """Add a report; return whether it now counts for its workstation."""
        name = report.workstation
        by_agent = self._by_agent.setdefault(name, {})
        own = by_agent.get(report.agent)
        furthest_own = furthest([report] if own is None else [own, report])
        if furthest_own is None or furthest_own is own:
            return False
        by_agent[report.agent] = furthest_own
        previous, counting = self.workstations.get(name), furthest(by_agent.values())
        if counting is None or counting is previous:
            return False
        self._replace(previous, counting)
        return counting is report

    def _replace(self, previous: Report | None, report: Report) -> None:
        name = report.workstation
        self.workstations[name] = report
        self.counts[report.state] += 1
        if previous is not None:
            self.counts[previous.state] -= 1
        self.unreported.discard(name)
        self.unreachable.discard(name)
        (self._open.discard if has_ended(report) else self._open.add)(name)

    @property
    def reports(self) -> int:
        """The number of different reports."""
        return len(self._seen)

    @property
    def unknown(self) -> bool:
        """Whether no record of the job was read."""
        return self.job is None and not self.workstations

    @property
    def closed(self) -> bool:
        """Whether no workstation can be added: all targets are workstations."""
        return self.job is not None and len(self.expected) == len(self.job.targets)

    @property
    def over(self) -> bool:
        """Whether no further workstation can receive it: it is cancelled or expired."""
        return self.cancellation is not None or self.seconds_until_over == 0

    @property
    def seconds_until_over(self) -> float:
        """Seconds until the expiry, 0 after it; infinite without one, or with a local time."""
        end = self.job.expiry if self.job else None
        if not isinstance(end, datetime):
            return float("inf")
        return max(0.0, (end - datetime.now(UTC)).total_seconds())

    @property
    def waiting(self) -> set[str]:
        """The known workstations where the job has not ended and still can."""
        return set(self._open) if self.over else self._open | self.unreported

    @property
    def ended(self) -> bool:
        """Whether the job has ended on each known workstation."""
        return not self._open and (
            self.over or (bool(self.workstations or self.unreachable) and not self.unreported)
        )

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended: succeeded on at least one workstation, and failed on none."""
        states = (+self.counts).keys()
        return (
            self.ended
            and not self.unreachable
            and State.SUCCEEDED in states
            and states <= {State.SUCCEEDED, State.NOT_APPLICABLE}
        )


def has_ended(report: Report) -> bool:
    """Whether a report ends the wait for a workstation: a final state, or `declined`.

    A user can still accept a declined job until it expires, which is not waited for.
    """
    return report.state.final or report.state is State.DECLINED
