"""What happened to a job on a workstation."""

import base64
import hashlib
import secrets
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from schemas.job import JobId
from schemas.message import Message
from schemas.names import Name, Text
from schemas.times import Duration, Instant


class State(StrEnum):
    """What a report says, in the order in which things happen; the later ones are final."""

    RECEIVED = "received"
    CONFLICT = "conflict"  # other content under the id of an accepted job; that job goes on
    OFFERED = "offered"
    POSTPONED = "postponed"
    DECLINED = "declined"
    ACCEPTED = "accepted"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    NOT_APPLICABLE = "not_applicable"
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """Whether nothing follows: each job ends on each workstation in one such state."""
        return self in _FINAL


_FINAL = frozenset(State) - {
    State.RECEIVED,
    State.CONFLICT,
    State.OFFERED,
    State.POSTPONED,
    State.DECLINED,
    State.ACCEPTED,
    State.STARTED,
}


def _to_json(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        encoded = value["base64"]
        if not isinstance(encoded, str):
            raise ValueError("base64: must be text")
        return base64.b64decode(encoded, validate=True)
    return value


Data = Annotated[
    bytes,
    BeforeValidator(_from_json),
    PlainSerializer(_to_json, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"base64": {"type": "string"}}},
            ]
        }
    ),
]
"""Bytes; in JSON a string where they are UTF-8, else {"base64": ...}."""


class Output(BaseModel):
    """What a command wrote to one stream: all of it, or its beginning and its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Data = b""
    dropped: int = Field(
        default=0, ge=0, lt=2**63, description="bytes left out between head and tail"
    )
    tail: Data = b""

    @property
    def silent(self) -> bool:
        """Whether nothing was written."""
        return not (self.head or self.dropped or self.tail)

    def __str__(self) -> str:
        head, tail = (part.decode(errors="replace") for part in (self.head, self.tail))
        return f"{head}\n... {self.dropped} bytes left out ...\n{tail}" if self.dropped else head


class Result(BaseModel):
    """How a command that was started ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int | None = Field(
        default=None, ge=0, lt=2**32, description="none if a signal ended it"
    )
    signal: int | None = Field(default=None, ge=0, lt=2**16)
    duration: Duration
    max_memory: int = Field(
        ge=0,
        lt=2**63,
        description="bytes: the most that one process of it held; exact above the agent's own"
        " size, below it at least that much, and 0 if it ended before it could be looked at",
    )
    restart_required: bool = False
    stdout: Output = Output()
    stderr: Output = Output()


def new_report_id() -> str:
    """Return an id that never repeats: 128 random bits."""
    return secrets.token_hex(16)


def final_id(job_id: str, workstation: str) -> str:
    """Return the id of a job's final report: by whomever it is made, a workstation has one."""
    return hashlib.sha256(f"{job_id}\0{workstation}".encode()).hexdigest()[:32]


_LONGEST_REASON = 10_000


def _tellable(value: Any) -> Any:
    """Make text of a cause: it comes from programs and systems, and must be told whatever it is."""
    if not isinstance(value, str) or not value:
        return value
    return value.replace("\0", "?").encode(errors="replace").decode()[:_LONGEST_REASON]


Told = Annotated[str, BeforeValidator(_tellable)]
AgentName = Annotated[str, Field(pattern=r"^(service|interactive-[a-z0-9_-]{1,63})$")]


class Report(Message):
    """One thing that happened to a job on a workstation."""

    kind: Literal["report"] = "report"
    id: Text = Field(default_factory=new_report_id, min_length=1, max_length=100)
    job_id: JobId
    workstation: Name
    agent: AgentName
    state: State
    at: Instant = Field(default_factory=lambda: datetime.now(UTC))
    reason: Told = Field(default="", description="why; of a decline, what the user said")
    until: Instant | None = Field(default=None, description="a postponement's end")
    result: Result | None = None

    @property
    def timestamp(self) -> float:
        """When it happened by the workstation's clock, in seconds since the epoch."""
        return self.at.timestamp()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.state is State.SUCCEEDED and (self.result is None or self.result.exit_code is None):
            raise ValueError("result: a success has an exit code")
        return self


class Rank(IntEnum):
    """How far a report is in a job's life; see `furthest`."""

    RECEIVED = 1
    ANSWERED = 2  # offered, postponed or declined: a user may go from each to each
    ACCEPTED = 3
    STARTED = 4
    CLOSED = 5  # an end without the end of a command
    RAN = 6


ANSWERS = (State.OFFERED, State.POSTPONED, State.DECLINED)
_RANKS: dict[str, Rank] = {
    **dict.fromkeys(_FINAL, Rank.CLOSED),
    State.RECEIVED: Rank.RECEIVED,
    **dict.fromkeys(ANSWERS, Rank.ANSWERED),
    State.ACCEPTED: Rank.ACCEPTED,
    State.STARTED: Rank.STARTED,
    **dict.fromkeys((State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.INTERRUPTED), Rank.RAN),
}
_TIES: dict[str, int] = {state: place << 32 for place, state in enumerate(State)}


class Reported(Protocol):
    """The part of a report that decides whether it counts."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def agent(self) -> str:
        """The agent that reports."""

    @property
    def state(self) -> str:
        """What it says."""

    @property
    def timestamp(self) -> float:
        """When it happened by the workstation's clock, in seconds since the epoch."""


_Reported = TypeVar("_Reported", bound=Reported)


def order(report: Reported) -> tuple[int, float, int]:
    """Return the sort key of an agent's reports of a job: the greatest one counts.

    It holds for all agents of a workstation, too, except between answers: see `furthest`. Three
    numbers, since the history stores them. A CONFLICT has no place in the order.
    """
    rank = _RANKS[report.state]
    time = report.timestamp
    # Equal times must not leave it to the order in which the reports are read.
    tie = _TIES[report.state] + zlib.crc32(f"{report.agent} {report.id}".encode())
    return (rank, -time if rank >= Rank.CLOSED else time, tie)


def furthest(reports: Iterable[_Reported]) -> _Reported | None:
    """Return the report that gives a job's state on a workstation; None if none does.

    The one order in which reports count. It depends on the set of reports alone: neither the
    order in which they are read nor a second copy changes the state.

    1. A report that is further in the job's life counts, whatever the clocks say: received, then
       the user's answers, accepted, started, ended. So a final state is final, and a job that was
       declined or postponed and is then accepted is accepted. The end of a command counts over an
       end without one (Q152229). An interruption after which the command is started again is no
       final report; only the start is reported.
    2. Between reports that are equally far, the workstation's clock decides: of ends the first
       counts, of all else the last. An agent's user may go from offered to postponed and back, and
       the last answer is the one that holds.
    3. Of several agents each has its own last answer. An open offer counts over a decline, since
       one user who declines ends nothing for the others.

    A CONFLICT is about another job with the same id, and never counts.
    """
    own: dict[str, _Reported] = {}
    for report in reports:
        if report.state == State.CONFLICT:
            continue
        known = own.get(report.agent)
        if known is None or order(known) < order(report):
            own[report.agent] = report
    return max(own.values(), key=_order_of_agents, default=None)


def _order_of_agents(report: Reported) -> tuple[int, bool, float, int]:
    rank, time, tie = order(report)
    return (rank, report.state != State.DECLINED, time, tie)


def first_line(report: Report) -> str:
    """Return the first line that a command wrote, of its errors where it failed."""
    if report.result is None:
        return ""
    streams = (report.result.stdout, report.result.stderr)
    if report.state is not State.SUCCEEDED:
        streams = streams[::-1]
    for lines in (str(stream).splitlines() for stream in streams if not stream.silent):
        if lines:
            line = lines[0]
            if line.isprintable():
                return line
            return "".join(char if char.isprintable() else "?" for char in line)
    return ""
