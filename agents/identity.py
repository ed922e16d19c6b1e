"""The identity of an agent, and the reports that it makes."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from broker.amqp import topology
from broker.amqp.topology import AgentKind
from schemas import Report, Result, State
from schemas.reports.report import final_id, new_report_id


@dataclass(frozen=True)
class Identity:
    """An agent's kind, workstation and user."""

    kind: AgentKind
    workstation: str
    user: str = ""
    former_names: dict[str, str] = field(default_factory=dict, compare=False)
    """The former names of the workstation under which jobs were received, by job id."""

    @cached_property
    def name(self) -> str:
        """The agent's name on its workstation."""
        return topology.agent_name(self.kind, self.user)

    def workstation_of(self, job_id: str) -> str:
        """Return the name of the workstation under which a job was received."""
        return self.former_names.get(job_id, self.workstation)

    def report(
        self,
        job_id: str,
        state: State,
        reason: str = "",
        *,
        result: Result | None = None,
        until: datetime | None = None,
        at: float | None = None,
    ) -> Report:
        """Return a report of this agent; `at`, in seconds since the epoch, defaults to now."""
        workstation = self.workstation_of(job_id)
        return Report(
            id=final_id(job_id, workstation) if state.final else new_report_id(),
            job_id=job_id,
            workstation=workstation,
            agent=self.name,
            state=state,
            reason=reason,
            result=result,
            until=until,
            at=datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC),
        )
