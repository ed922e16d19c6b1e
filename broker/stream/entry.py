"""The entries of the stream `pcm.reports`."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import schemas
from broker.amqp import topology
from schemas import Cancellation, CheckIn, InvalidMessage, Job, Report
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT

if TYPE_CHECKING:
    from schemas import (
        AgentsRevoked,
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
        | AgentsRevoked
        | Rollout
        | RolloutOrder
        | WaveEnded
        | WaveSent
        | Schedule
        | ScheduleRemoval
        | RejectedRecord
    )

# By name: a class is loaded when it is needed.
_KINDS = {
    "job": "Job",
    "cancellation": "Cancellation",
    "report": "Report",
    "check_in": "CheckIn",
    "departure": "WorkstationForgotten",
    "revocation": "AgentsRevoked",
    "rollout": "Rollout",
    "rollout_order": "RolloutOrder",
    "wave_sent": "WaveSent",
    "wave_ended": "WaveEnded",
    "schedule": "Schedule",
    "schedule_removal": "ScheduleRemoval",
    "forgery": "RejectedRecord",
}
_END_MARKER = "mark"
_LIMITS = {
    # Twice the greatest PCM_OUTPUT_LIMIT, where each byte is escaped by six, and some more.
    "report": 16 * 1024 * 1024,
    "check_in": 256 * 1024,
}
_MAX_LINES = 2000  # an agent sends 500 reports together
_MAX_UNREADABLE = 10


class EntryRejected(PcmError):
    """An entry is over a limit, or was not published by the agent that it names; with the reason.

    All programs that read the stream ignore it.
    """


def parse_records(kind: str, body: bytes) -> Iterator["Record"]:
    """Yield the records of a body, one a line; skip lines that cannot be read."""
    return (record for record in _read_lines(kind, body) if record is not None)


def _read_lines(kind: str, body: bytes) -> "Iterator[Record | None]":
    """Yield the record of each line; None for a line that cannot be read."""
    if kind in _KINDS:
        message: type[Record] = getattr(schemas, _KINDS[kind])
        for line in body.splitlines():
            try:
                yield message.read(line, tolerant=True)
            except InvalidMessage:
                yield None


def _check_limits(kind: str, body: bytes) -> None:
    """Check the size of a body before it is parsed: that takes time.

    Raises:
        EntryRejected: it has too many bytes or lines.
    """
    if len(body) > (limit := _LIMITS.get(kind, BODY_LIMIT)):
        raise EntryRejected(f"{len(body):,} bytes are over the limit of {limit:,} for a {kind}")
    if (lines := body.count(b"\n") + body.count(b"\r")) > _MAX_LINES:
        raise EntryRejected(f"{lines:,} lines are over the limit of {_MAX_LINES:,}")


class StreamEntry(NamedTuple):
    """A message of the stream; its body has one record a line.

    Attributes:
        user_id: the login that published it, checked by the broker; empty if it has none.
        signatures: the header of signatures.
    """

    offset: int
    kind: str
    message_id: str
    body: bytes
    user_id: str = ""
    routing_key: str = ""
    signatures: str = ""

    def read(self) -> "list[Record]":
        """Return the entry's records; skip a few lines that cannot be read.

        It takes time in proportion to the size, at the rate of genuine entries. The login of an
        enrolled agent may publish only that agent's reports and check-ins, under their routing
        keys. All other logins are trusted.

        Raises:
            EntryRejected: there is no `user_id`, that login may not publish the records, or the
                entry has too many bytes, lines, or unreadable lines.
        """
        if not self.user_id:
            raise EntryRejected("it has no user_id")
        agent = topology.agent_of_login(self.user_id)
        if agent is not None and self.kind not in {"report", "check_in"}:
            raise EntryRejected(f"{self.user_id} published a {self.kind or 'message of no kind'}")
        _check_limits(self.kind, self.body)
        records: list[Record] = []
        unreadable = 0
        for record in _read_lines(self.kind, self.body):
            if record is None:
                unreadable += 1
                if unreadable > _MAX_UNREADABLE:
                    raise EntryRejected(f"more than {_MAX_UNREADABLE} of its lines are unreadable")
                continue
            if agent is None:
                records.append(record)
                continue
            assert isinstance(record, Report | CheckIn)  # noqa: S101 - for the type checker
            if not agent.is_named(record.workstation, record.agent):
                other = f"{record.agent} of {record.workstation}"
                raise EntryRejected(f"{self.user_id} published a {self.kind} of {other}")
            state = record.state if isinstance(record, Report) else self.kind
            if self.routing_key != topology.report_key(state, *agent):
                raise EntryRejected(
                    f"{self.user_id} published a {self.kind} of {state} by another key"
                )
            records.append(record)
        return records

    def records(self) -> "list[Record]":
        """Return the entry's records; none if it is rejected."""
        try:
            return self.read()
        except EntryRejected:
            return []

    def is_end_marker(self, message_id: str) -> bool:
        """Whether it is the end marker with this id, which no agent may publish."""
        return (
            self.kind == _END_MARKER
            and self.message_id == message_id
            and bool(self.user_id)
            and topology.agent_of_login(self.user_id) is None
        )

    @property
    def digest(self) -> str:
        """A hash that is equal only for a repetition of the same message."""
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

    def removals(self) -> "Iterator[WorkstationForgotten | AgentsRevoked]":
        """Yield the workstations that no job reaches from this entry on."""
        if self.kind in {"departure", "revocation"}:
            yield from self.records()  # type: ignore[misc] # of these kinds
