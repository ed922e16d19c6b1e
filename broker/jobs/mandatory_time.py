"""Check the mandatory time of a new job."""

from datetime import datetime, timedelta

from schemas import Job
from schemas.times import latest

_ROUNDING = timedelta(minutes=1)


def check_not_past(job: Job, now: datetime) -> None:
    """Refuse a mandatory time in the past: the job would run at once everywhere.

    Raises:
        ValueError: it is in the past, by more than the rounding of times that people write.
    """
    if job.mandatory_at is not None and latest(job.mandatory_at) < now - _ROUNDING:
        raise ValueError("mandatory_at: is in the past: write now to run it at once")
