"""A job that was sent, made again for some of its workstations."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas import Job, WallClock, workstation
from schemas.job import new_job_id, whoami

_FIRST_ZONE = timedelta(hours=14)  # how far a clock on a wall is ahead of UTC at most
_LAST_ZONE = timedelta(hours=12)  # how far the last one is behind


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
    if on_walls and not (job.expires_at and _passed(job.expires_at, now)):
        return {}  # what has passed on a clock is done there at once
    mandatory_at, offer_at, expires_at = (
        None if on_walls or moment is None or _passed(moment, now) else moment
        for moment in (job.mandatory_at, job.offer_at, job.expires_at)
    )
    if job.mandatory_at is not None and mandatory_at is None:
        mandatory_at = now
    if job.expires_at is not None and expires_at is None:
        expires_at = now + (_last(job.expires_at) - job.created_at)
    return {"mandatory_at": mandatory_at, "offer_at": offer_at, "expires_at": expires_at}


def _passed(moment: datetime | WallClock, now: datetime) -> bool:
    """Whether a time has passed, on the first clock that shows it."""
    if isinstance(moment, WallClock):
        return moment.local.replace(tzinfo=UTC) - _FIRST_ZONE <= now
    return moment <= now


def _last(moment: datetime | WallClock) -> datetime:
    """Return when a time has passed everywhere."""
    if isinstance(moment, WallClock):
        return moment.local.replace(tzinfo=UTC) + _LAST_ZONE
    return moment
