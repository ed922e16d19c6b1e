"""Which agents can have a job: only their reports of it count."""

from typing import NamedTuple, Self

from schemas.orders.job import Context, Job
from schemas.reports.report import SERVICE

_PREFIX = "workstation:"


class Reporters(NamedTuple):
    """The agents that can have a job.

    Attributes:
        background: whether it is a background job: only service agents have it.
        workstations: the workstations that it names; None if it is also for all or for a group:
            who was in a group then, only the workstations know.
    """

    background: bool
    workstations: frozenset[str] | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the agents that can have a job."""
        return cls.parse(job.context, " ".join(map(str, job.targets)))

    @classmethod
    def parse(cls, context: str, targets: str) -> Self:
        """Return the agents that can have a job of a context, with these targets as text."""
        names = targets.split()
        is_named = all(name.startswith(_PREFIX) for name in names)
        return cls(
            context == Context.BACKGROUND,
            frozenset(name.removeprefix(_PREFIX) for name in names) if is_named else None,
        )

    def objection(self, workstation: str, agent: str) -> str:
        """Return why an agent cannot have the job; "" if it can."""
        if self.background and agent != SERVICE:
            return f"{agent} of {workstation} cannot have a background job"
        if self.workstations is not None and workstation not in self.workstations:
            return f"it is not for {workstation}"
        return ""
