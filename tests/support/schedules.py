"""Schedules of names that no other test uses."""

import os
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from schemas import Command, Job, Schedule, Target

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
_numbers = count(1)


def make(*targets: Target, **fields: Any) -> Schedule:
    """Return an hourly schedule for targets; fields are the schedule's."""
    if "job" not in fields:
        command = Command(argv=("true",), background=True)
        fields["job"] = Job(command=command, targets=targets)
    fields = {
        "name": f"s-{next(_numbers)}-{os.getpid()}",
        "repeat": "0 * * * *",
        "zone": "UTC",
        "created_at": NOON - timedelta(days=3),
        **fields,
    }
    return Schedule(**fields)
