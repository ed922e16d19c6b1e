"""Reports about a job on a workstation, and the order in which they count."""

import hashlib
import secrets
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from schemas.message import Data, Message
from schemas.names import Name, Text, check_user
from schemas.orders.job import JobId
from schemas.times import Duration, Instant


class State(StrEnum):
    """The state of a job in a report, in the order of a job's life; the last ones are final."""

    RECEIVED = "received"
    CONFLICT = "conflict"  # other content under the id of an accepted job; that job continues
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
        """Whether the state is an end; a job ends on each workstation in one such state."""
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


class Output(BaseModel):
    """The output of a command on one stream: all of it, or its beginning and its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Data = b""
    dropped: int = Field(
        default=0, ge=0, lt=2**63, description="bytes omitted between head and tail"
    )
    tail: Data = b""

    @property
    def silent(self) -> bool:
        """Whether there is no output."""
        return not (self.head or self.dropped or self.tail)

    def __str__(self) -> str:
        head, tail = (part.decode(errors="replace") for part in (self.head, self.tail))
        return f"{head}\n... {self.dropped} bytes left out ...\n{tail}" if self.dropped else head


class Result(BaseModel):
    """How a started command ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int | None = Field(
        default=None, ge=0, lt=2**32, description="null if a signal ended the command"
    )
    signal: int | None = Field(default=None, ge=0, lt=2**16)
    duration: Duration
    max_memory: int = Field(
        ge=0,
        lt=2**63,
        description="the peak memory of its largest process, in bytes; exact above the agent's own"
        " size, else a lower bound; 0 if the command ended before the first sample",
    )
    restart_required: bool = False
    already_present: bool | None = Field(
        default=None,
        description="detection decided, and the command did not run: true: the package was there;"
        " false: what is to be uninstalled was not; null: the command ran",
    )
    stdout: Output = Output()
    stderr: Output = Output()


def new_report_id() -> str:
    """Return an id that never repeats: 128 random bits."""
    return secrets.token_hex(16)


def final_id(job_id: str, workstation: str) -> str:
    """Return the id of a job's final report: the same for every agent of a workstation."""
    return hashlib.sha256(f"{job_id}\0{workstation}".encode()).hexdigest()[:32]


_MAX_REASON_LENGTH = 10_000


def _to_valid_text(value: Any) -> Any:
    """Make a reason valid: text of programs and systems must not prevent a report."""
    if not isinstance(value, str) or not value:
        return value
    return value.replace("\0", "?").encode(errors="replace").decode()[:_MAX_REASON_LENGTH]


Reason = Annotated[str, BeforeValidator(_to_valid_text)]
SERVICE = "service"
INTERACTIVE = "interactive-"
"""The beginning of an interactive agent's name; the rest is its user's login name."""


@lru_cache(maxsize=100_000)
def _check_agent(name: str) -> str:
    user = name.removeprefix(INTERACTIVE)
    if name != SERVICE and (user == name or not check_user(user)):
        raise ValueError(f"{name!r} is not an agent: use {SERVICE}, or {INTERACTIVE}USER")
    return name


AgentName = Annotated[
    str,
    AfterValidator(_check_agent),
    WithJsonSchema({"type": "string", "pattern": f"^({SERVICE}|{INTERACTIVE}[^/:]+)$"}),
]


class Report(Message):
    """One event of a job on a workstation."""

    kind: Literal["report"] = "report"
    id: Text = Field(default_factory=new_report_id, min_length=1, max_length=100)
    job_id: JobId
    workstation: Name
    agent: AgentName
    state: State
    at: Instant = Field(default_factory=lambda: datetime.now(UTC))
    reason: Reason = Field(default="", description="why; for a decline, the user's reason")
    until: Instant | None = Field(default=None, description="the end of a postponement")
    result: Result | None = None

    @property
    def timestamp(self) -> float:
        """The time of the event by the workstation's clock, in seconds since the epoch."""
        return self.at.timestamp()

    @property
    def checksum(self) -> int:
        """See `report_checksum`."""
        until = self.until.timestamp() if self.until else None
        result = self.result if self.state.final else None
        return report_checksum(self.agent, self.id, self.reason, until, result)

    @model_validator(mode="after")
    def _has_exit_code(self) -> Self:
        if self.state is State.SUCCEEDED and (self.result is None or self.result.exit_code is None):
            raise ValueError("result: a success has an exit code")
        return self


_CRC_BITS, _RESULT_BITS = 32, 27  # with the state, 63 bits: the history stores them


def report_checksum(
    agent: str, report_id: str, reason: str, until: float | None, result: Result | None = None
) -> int:
    """Return a checksum of a report's content: it orders reports of equal state and time.

    The result counts only between reports that are otherwise equal.
    """
    value = zlib.crc32(f"{agent} {report_id} {reason} {until}".encode()) << _RESULT_BITS
    if result is None:
        return value
    of_result = zlib.crc32(
        f"{result.exit_code} {result.signal} {result.duration} {result.max_memory}"
        f" {result.restart_required} {result.stdout.dropped} {result.stderr.dropped}".encode()
    )
    for output in (result.stdout, result.stderr):
        of_result = zlib.crc32(output.tail, zlib.crc32(output.head, of_result))
    return value + (of_result >> _CRC_BITS - _RESULT_BITS)


class Rank(IntEnum):
    """The progress of a report in a job's life; see `furthest`."""

    CONFLICT = 0  # about another job
    RECEIVED = 1
    ANSWERED = 2  # offered, postponed or declined: a user can change between them
    ACCEPTED = 3
    STARTED = 4
    CLOSED = 5  # an end without a run
    RAN = 6


ANSWERS = (State.OFFERED, State.POSTPONED, State.DECLINED)
_RANK_OF: dict[str, Rank] = {
    **dict.fromkeys(_FINAL, Rank.CLOSED),
    State.CONFLICT: Rank.CONFLICT,
    State.RECEIVED: Rank.RECEIVED,
    **dict.fromkeys(ANSWERS, Rank.ANSWERED),
    State.ACCEPTED: Rank.ACCEPTED,
    State.STARTED: Rank.STARTED,
    **dict.fromkeys((State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.INTERRUPTED), Rank.RAN),
}
# Plain numbers: rows with members of an enumeration are tracked by the garbage collector.
_RANKS = {state: int(rank) for state, rank in _RANK_OF.items()}
_TIES: dict[str, int] = {
    state: place << _CRC_BITS + _RESULT_BITS for place, state in enumerate(State)
}


class Reported(Protocol):
    """The part of a report that decides whether it counts."""

    @property
    def agent(self) -> str:
        """The agent that reports."""

    @property
    def state(self) -> str:
        """The reported state."""

    @property
    def timestamp(self) -> float:
        """The time of the event by the workstation's clock, in seconds since the epoch."""

    @property
    def checksum(self) -> int:
        """See `report_checksum`."""


_Reported = TypeVar("_Reported", bound=Reported)


def order(report: Reported) -> tuple[int, float, int]:
    """Return the sort key of an agent's reports of a job: the greatest one counts.

    It orders the reports of all agents of a workstation, too, except between answers: see
    `furthest`. It consists of three numbers, since the history stores them.
    """
    rank = _RANKS[report.state]
    time = report.timestamp
    # With equal times, the result must not depend on the order in which reports are read.
    tie = _TIES[report.state] + report.checksum
    return (rank, -time if rank >= Rank.CLOSED else time, tie)


def furthest(reports: Iterable[_Reported]) -> _Reported | None:
    """Return the report that gives a job's state on a workstation; None if there is none.

    This is the only definition of the order in which reports count. The result depends on the set
    of reports alone, neither on the order in which they are read nor on duplicates.

    1. The report that is furthest in the job's life counts, independent of clocks: received, then
       the user's answers, accepted, started, ended. So a final state is final, and a job that was
       declined or postponed and is then accepted is accepted. The end of a command counts over an
       end without a run (Q152229). An interruption after which the command is started again is
       not a final report; only the start is reported.
    2. Between reports that are equally far, the workstation's clock decides: the first end counts,
       and of all other reports the last. A user can change from offered to postponed and back; the
       last answer counts.
    3. Each agent has its own last answer. An open offer counts over a decline, since the decline
       of one user does not end the job for the others.

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
    """Return the first line of a command's output; from stderr first if it failed."""
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
