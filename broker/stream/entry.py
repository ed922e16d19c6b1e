"""What the stream `pcm.reports` is made of."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import schemas
from broker.amqp import topology
from schemas import Cancellation, CheckIn, InvalidMessage, Job, Report
from schemas.errors import PcmError

if TYPE_CHECKING:
    from schemas import (
        RejectedRecord,
        Rollout,
        RolloutOrder,
        Schedule,
        ScheduleRemoval,
        WaveEnded,
        WaveSent,
        WorkstationForgotten,
    )

    Record = (
        Job
        | Cancellation
        | Report
        | CheckIn
        | WorkstationForgotten
        | Rollout
        | RolloutOrder
        | WaveEnded
        | WaveSent
        | Schedule
        | ScheduleRemoval
        | RejectedRecord
    )

# By name: those that are not met are not loaded.
_KINDS = {
    "job": "Job",
    "cancellation": "Cancellation",
    "report": "Report",
    "check_in": "CheckIn",
    "departure": "WorkstationForgotten",
    "rollout": "Rollout",
    "rollout_order": "RolloutOrder",
    "wave_sent": "WaveSent",
    "wave_ended": "WaveEnded",
    "schedule": "Schedule",
    "schedule_removal": "ScheduleRemoval",
    "forgery": "RejectedRecord",
}
_MARK = "mark"


class Forged(PcmError):
    """An entry is not by whom it speaks of; the text says why."""


def read_records(kind: str, body: bytes) -> Iterator["Record"]:
    """Yield the records of a body of a kind, one a line; what cannot be read is left out."""
    if kind in _KINDS:
        message: type[Record] = getattr(schemas, _KINDS[kind])
        for line in body.splitlines():
            try:
                yield message.read(line, tolerant=True)
            except InvalidMessage:
                continue


class StreamEntry(NamedTuple):
    """One message of the stream: its offset, its kind, and its body, a record a line.

    `user_id` is the login that published it, which the broker has checked where it is there.
    `signatures` is its header of that name, as it came.
    """

    offset: int
    kind: str
    message_id: str
    body: bytes
    user_id: str = ""
    routing_key: str = ""
    signatures: str = ""

    def read(self) -> "list[Record]":
        """Return the records in it; what cannot be read is left out.

        An enrolled agent's login tells of that agent alone, in reports and check-ins, under the
        keys that these have. Any other login is trusted: only who holds it can bear it.

        Raises:
            Forged: it does not say who published it, or that login may not say this.
        """
        if not self.user_id:
            raise Forged("it does not say who published it")
        bearer = topology.bearer(self.user_id)
        if bearer is None:
            return list(read_records(self.kind, self.body))
        found: list[Record] = []
        if self.kind not in {"report", "check_in"}:
            raise Forged(f"{self.user_id} published a {self.kind or 'message of no kind'}")
        for record in read_records(self.kind, self.body):
            assert isinstance(record, Report | CheckIn)  # noqa: S101 - for the type checker
            if (record.workstation, record.agent) != bearer:
                of = f"{record.agent} of {record.workstation}"
                raise Forged(f"{self.user_id} published a {self.kind} of {of}")
            state = record.state if isinstance(record, Report) else self.kind
            if self.routing_key != topology.report_key(state, *bearer):
                raise Forged(f"{self.user_id} published a {self.kind} of {state} by another key")
            found.append(record)
        return found

    def records(self) -> "list[Record]":
        """Return the records in it, of one that is forged none; what cannot be read is left out."""
        try:
            return self.read()
        except Forged:
            return []

    def is_mark(self, message_id: str) -> bool:
        """Whether it is the mark of an id, which no agent may set."""
        return (
            self.kind == _MARK
            and self.message_id == message_id
            and bool(self.user_id)
            and topology.bearer(self.user_id) is None
        )

    @property
    def digest(self) -> str:
        """What tells it from all that is not the same, said again."""
        parts = (self.kind, self.user_id, self.routing_key)
        content = b"\0".join((*(part.encode() for part in parts), self.body))
        return hashlib.sha256(content).hexdigest()[:32]

    def of_job(self, job_id: str) -> Iterator[Job | Cancellation | Report]:
        """Yield the records of one job."""
        if job_id.encode() in self.body:
            for record in self.records():
                if isinstance(record, Job):
                    if record.id == job_id:
                        yield record
                elif isinstance(record, Cancellation | Report) and record.job_id == job_id:
                    yield record
