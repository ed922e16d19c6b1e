"""A job that was sent, made again for some of its workstations."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from schemas import Job, WallClock, workstation
from schemas.job import new_job_id, whoami
from schemas.times import earliest, latest


def again(job: Job, names: Iterable[str], now: datetime) -> Job:
    """Return a new job with a job's command, for the workstations that are named.

    Times that are to come stay. A mandatory time that has passed is now, an offer time that has
    passed is none, and an expiry that has passed is as far from now as it was from the time when
    the job was made. Times on clocks on the wall stay as they are, unless the expiry has passed on
    the first of them: then all of them are treated so.
    """
    names = list(names)
    changes = {
        "id": new_job_id(),
        "command": job.command.narrowed(names),
        "targets": tuple(map(workstation, names)),
        "excluded": (),
        "rerun_of": job.id,
        "rollout": None,
        "schedule": None,
        "sender": whoami(),
        "created_at": now,
        **_times(job, now),
    }
    return Job.model_validate({**job.model_dump(), **changes})


def _times(job: Job, now: datetime) -> dict[str, Any]:
    on_walls = isinstance(job.expires_at or job.mandatory_at or job.offer_at, WallClock)
    if on_walls and not (job.expires_at and earliest(job.expires_at) <= now):
        return {}  # what has passed on a clock is done there at once
    mandatory_at, offer_at, expires_at = (
        None if on_walls or moment is None or earliest(moment) <= now else moment
        for moment in (job.mandatory_at, job.offer_at, job.expires_at)
    )
    if job.mandatory_at is not None and mandatory_at is None:
        mandatory_at = now
    if job.expires_at is not None and expires_at is None:
        expires_at = now + (latest(job.expires_at) - job.created_at)
    return {"mandatory_at": mandatory_at, "offer_at": offer_at, "expires_at": expires_at}
