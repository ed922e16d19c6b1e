"""A rollout as one job: with the times of its plan, and the workstations of all its waves."""

from collections import Counter
from typing import TYPE_CHECKING

from schemas import Rollout
from schemas.times import Moment, latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.queries.rows import JobRow


def rollout_row(plan: Rollout, waves: "Sequence[JobRow]") -> "JobRow":
    """Return the row of a rollout, made of its plan and of the jobs of its waves."""
    from broker.history.queries.rows import JobRow

    job = plan.job
    return JobRow(
        id=plan.id,
        name=job.title,
        context=str(job.context),
        requirement=str(job.requirement),
        sender=plan.sender,
        targets=" ".join(f"workstation:{name}" for names in plan.waves for name in names),
        command=str(job.command),
        created_at=plan.created_at.timestamp(),
        offer_at=_seconds(job.offer_at),
        mandatory_at=_seconds(job.mandatory_at),
        expires_at=_seconds(job.expires_at),
        cancelled_at=None,
        cancel_offset=None,
        cancelled_by="",
        cancel_reason="",
        rerun_of=job.rerun_of,
        rollout=plan.id,
        schedule=None,
        counts=sum((wave.counts for wave in waves), Counter()),
        restart_required=sum(wave.restart_required for wave in waves),
    )


def _seconds(moment: Moment | None) -> float | None:
    return None if moment is None else latest(moment).timestamp()
