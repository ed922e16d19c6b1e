"""What the stream `pcm.reports` is made of."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from schemas import (
    Cancellation,
    CheckIn,
    Departure,
    InvalidMessage,
    Job,
    Report,
    Rollout,
    RolloutOrder,
    Schedule,
    ScheduleRemoval,
    WaveEnded,
    WaveSent,
)

Record = (
    Job
    | Cancellation
    | Report
    | CheckIn
    | Departure
    | Rollout
    | RolloutOrder
    | WaveEnded
    | WaveSent
    | Schedule
    | ScheduleRemoval
)
_KINDS: dict[str, type[Record]] = {
    "job": Job,
    "cancellation": Cancellation,
    "report": Report,
    "check_in": CheckIn,
    "departure": Departure,
    "rollout": Rollout,
    "rollout_order": RolloutOrder,
    "wave_sent": WaveSent,
    "wave_ended": WaveEnded,
    "schedule": Schedule,
    "schedule_removal": ScheduleRemoval,
}


@dataclass(frozen=True)
class Entry:
    """One message of the stream: its offset, its kind, and its body, a record a line."""

    offset: int
    kind: str
    message_id: str
    body: bytes

    def records(self) -> Iterator[Record]:
        """Yield the records in it; what cannot be read is left out."""
        if self.kind in _KINDS:
            for line in self.body.splitlines():
                with suppress(InvalidMessage):
                    yield _KINDS[self.kind].read(line, tolerant=True)

    def of_job(self, job_id: str) -> Iterator[Job | Cancellation | Report]:
        """Yield the records of one job."""
        if job_id.encode() in self.body:
            for record in self.records():
                if isinstance(record, Job):
                    if record.id == job_id:
                        yield record
                elif isinstance(record, Cancellation | Report) and record.job_id == job_id:
                    yield record
