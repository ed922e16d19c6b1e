"""Judges a chaos run: compares what really ran with what was reported of it.

Each command wrote a line at its start and one at its end into a file of its own; these lines are
what happened. The records in the stream are what was reported. What is forbidden is a `Finding`.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from broker import Progress
from schemas import Cancellation, Context, Job, Report, State

Pair = tuple[str, str]
"""A job's id and a workstation's name."""

_LATE = 2.0  # seconds between the last look at the clock and the start, on a busy machine
_EARLY = 0.1
_RAN = {State.SUCCEEDED, State.FAILED, State.TIMED_OUT}
_MAY_HAVE_RUN = _RAN | {State.INTERRUPTED, State.CANCELLED}


class Figure(StrEnum):
    """The kinds of violations."""

    LOST = "lost"
    RUN_TWICE = "run twice"
    SHOWN = "background, but seen by an interactive agent"
    NO_FINAL = "without a final report"
    MANY_FINAL = "more than one final report"
    DISAGREE = "file and report disagree"
    EXPIRED_RUN = "started after its expiry"
    TOO_EARLY = "started before its time"
    POISON = "poison not in pcm.dead"
    REMAINS = "processes left behind"
    FELL_OVER = "programs that crashed"


@dataclass(frozen=True)
class Finding:
    """A violation, with its job and workstation."""

    figure: Figure
    text: str
    job_id: str = ""
    workstation: str = ""


@dataclass(frozen=True)
class Line:
    """A line that a command wrote; `code` only at its end."""

    what: str
    token: str
    agent: str
    at: float
    code: int | None

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a line of a command's file."""
        what, token, agent, at, *code = text.split()
        return cls(what, token, agent, float(at), int(code[0]) if code else None)


@dataclass
class Sent:
    """A job that was sent; `stored` and `withdrawn` once the dispatcher has confirmed it."""

    job: Job
    workstations: tuple[str, ...]
    shape: str
    stored: bool = False
    given_up: bool = False
    withdrawing: bool = False
    withdrawn: bool = False


@dataclass(frozen=True)
class Poison:
    """An unreadable message, and the agents that it reaches."""

    id: str
    workstation: str
    agents: tuple[str, ...]


@dataclass
class Evidence:
    """The evidence of a run."""

    sent: dict[str, Sent] = field(default_factory=dict)
    records: list[Job | Cancellation | Report] = field(default_factory=list)
    lines: dict[Pair, list[Line]] = field(default_factory=dict)
    poison: list[Poison] = field(default_factory=list)
    dead: set[tuple[str, str, str]] = field(default_factory=set)
    remains: list[str] = field(default_factory=list)
    fallen: list[str] = field(default_factory=list)
    frozen: dict[tuple[str, str], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def reports(self) -> dict[Pair, list[Report]]:
        """Return the reports of each job on each workstation, each report once.

        Final reports of several agents have one id: here they are kept apart.
        """
        found: dict[Pair, dict[tuple[str, ...], Report]] = defaultdict(dict)
        for record in self.records:
            if isinstance(record, Report):
                reports = found[record.job_id, record.workstation]
                reports.setdefault((record.id, record.state, record.agent), record)
        return {pair: list(reports.values()) for pair, reports in found.items()}

    def unfinished(self, now: float) -> list[str]:
        """Return what has still to come before the run can be judged."""
        reports = self.reports()
        waiting = [sent.job.id for sent in self.sent.values() if not (sent.stored or sent.given_up)]
        for sent in self.sent.values():
            for name in sent.workstations:
                found = reports.get((sent.job.id, name), [])
                ended = any(report.state.final for report in found)
                # If no agent was there before the expiry, none will report it.
                if not ended and (found or _expiry(sent.job) > now):
                    waiting.append(f"{sent.job.id} on {name}")
        waiting += [str(key) for poison in self.poison for key in _missing(poison, self)]
        return waiting


def judge(evidence: Evidence) -> list[Finding]:
    """Return all violations."""
    return [
        *_of_pairs(evidence),
        *_of_records(evidence),
        *_of_poison(evidence),
        *(Finding(Figure.REMAINS, text) for text in evidence.remains),
        *(Finding(Figure.FELL_OVER, text) for text in evidence.fallen),
    ]


def _of_pairs(evidence: Evidence) -> Iterator[Finding]:
    reports = evidence.reports()
    asked = {(sent.job.id, name) for sent in evidence.sent.values() for name in sent.workstations}
    reported = {pair for pair in reports if pair[0] in evidence.sent}
    for pair in sorted(asked | reported | evidence.lines.keys()):
        sent = evidence.sent.get(pair[0])
        if sent is None or pair not in asked:
            yield Finding(Figure.DISAGREE, "it was not ordered there", *pair)
            continue
        case = _Case(pair, sent, reports.get(pair, []), evidence.lines.get(pair, []))
        for figure, text in case.findings(evidence):
            yield Finding(figure, text, *pair)


class _Case:
    """One job on one workstation."""

    def __init__(self, pair: Pair, sent: Sent, reports: list[Report], lines: list[Line]) -> None:
        self._pair = pair
        self._sent = sent
        self._job = sent.job
        self._reports = reports
        self._states = {report.state for report in reports}
        self._finals = [report for report in reports if report.state.final]
        self._starts = [line for line in lines if line.what == "start"]
        self._ends = [line for line in lines if line.what == "end"]

    def findings(self, evidence: Evidence) -> Iterator[tuple[Figure, str]]:
        """Yield what is forbidden about it."""
        if not self._reports and not self._starts:
            if self._sent.stored and _expiry(self._job) == float("inf"):
                yield Figure.LOST, "no report, and it did not run"
            return
        if len(self._starts) > 1:
            agents = ", ".join(line.agent for line in self._starts)
            yield Figure.RUN_TWICE, f"{len(self._starts)} times, by {agents}"
        yield from self._seen()
        if len(self._finals) > 1:
            ends = ", ".join(f"{final.state} by {final.agent}" for final in self._finals)
            yield Figure.MANY_FINAL, ends
        if State.CONFLICT in self._states:
            yield Figure.DISAGREE, "a conflict, though only one job had this id"
        yield from self._times(evidence)
        if not self._finals:
            yield Figure.NO_FINAL, f"only {', '.join(sorted(self._states)) or 'its run'}"
        for final in self._finals:
            for text in self._contradictions(final):
                yield Figure.DISAGREE, text

    def _seen(self) -> Iterator[tuple[Figure, str]]:
        seen = {report.agent for report in self._reports} | {line.agent for line in self._starts}
        others = sorted(seen - {"service"})
        if self._job.context is Context.BACKGROUND and others:
            yield Figure.SHOWN, ", ".join(others)

    def _times(self, evidence: Evidence) -> Iterator[tuple[Figure, str]]:
        expiry = _expiry(self._job)
        earliest = self._job.mandatory_at or self._job.offer_at
        said = [report.at.timestamp() for report in self._reports if report.state is State.STARTED]
        for line in self._starts:
            # Between looking at the clock and starting, an agent may be stopped from outside.
            stopped = any(
                begin < line.at and end > expiry - _LATE
                for begin, end in evidence.frozen.get((self._pair[1], line.agent), ())
            )
            late = min([line.at, *said]) - expiry
            if late > _LATE and not stopped:
                yield Figure.EXPIRED_RUN, f"{late:.1f} s after it"
            if (
                self._job.context is Context.BACKGROUND
                and isinstance(earliest, datetime)
                and line.at < earliest.timestamp() - _EARLY
            ):
                yield Figure.TOO_EARLY, f"{earliest.timestamp() - line.at:.1f} s before it"

    def _contradictions(self, final: Report) -> Iterator[str]:
        """Yield contradictions between a final report and the command's file."""
        state, result = final.state, final.result
        missing = self._sent.shape == "missing program"
        if state not in self._possible():
            yield f"{state} is no end that this job can have"
        if self._starts and state not in _MAY_HAVE_RUN:
            yield f"it ran, and is reported {state}"
        if (self._starts or state in _RAN) and State.STARTED not in self._states:
            yield f"{state}, and no report of its start"
        if state is State.CANCELLED and bool(self._starts) > (result is not None):
            yield "it ran, and is reported cancelled before its start"
        if state in _RAN and not missing and not self._starts:
            yield f"{state}, and it did not run"
        if state in {State.SUCCEEDED, State.FAILED} and self._starts:
            yield from self._differences(final)

    def _differences(self, final: Report) -> Iterator[str]:
        """Yield commands that ended by themselves in another way than reported."""
        state, result = final.state, final.result
        codes = [line.code for line in self._ends]
        if self._starts[0].agent != final.agent:
            yield f"{self._starts[0].agent} ran it, {final.agent} reports its end"
        if result is None:
            yield f"{state} without a result"
        elif result.exit_code is None:
            yield f"ended by signal {result.signal}, which was not sent by the test"
        elif codes != [result.exit_code]:
            yield f"exit code {result.exit_code} reported, the file says {codes}"
        elif (state is State.SUCCEEDED) != (result.exit_code == 0):
            yield f"{state} with exit code {result.exit_code}"

    def _possible(self) -> set[State]:
        """Return the ends that this job can have."""
        possible = {State.SUCCEEDED, State.FAILED, State.INTERRUPTED}
        if self._sent.shape == "too long":
            possible.add(State.TIMED_OUT)
        if self._sent.withdrawing:
            possible.add(State.CANCELLED)
        if self._job.expires_at is not None:
            possible.add(State.EXPIRED)
        return possible


def _of_records(evidence: Evidence) -> Iterator[Finding]:
    """Yield records that the stream lacks, and views that are wrong."""
    views = {job_id: Progress(job_id) for job_id in evidence.sent}
    for record in evidence.records:
        job_id = record.id if isinstance(record, Job) else record.job_id
        if job_id in views:
            views[job_id].add(record)
    for job_id, view in views.items():
        sent = evidence.sent[job_id]
        if sent.stored and view.job is None:
            yield Finding(Figure.LOST, "the stream has no record of the job", job_id)
        if sent.withdrawn and view.cancellation is None:
            yield Finding(Figure.LOST, "the stream has no record of its cancellation", job_id)
    for (job_id, name), reports in evidence.reports().items():
        finals = {report.id for report in reports if report.state.final}
        if finals and job_id in views and views[job_id].workstations[name].id not in finals:
            yield Finding(Figure.DISAGREE, "the view shows no final state", job_id, name)


def _of_poison(evidence: Evidence) -> Iterator[Finding]:
    reports = evidence.reports()
    for poison in evidence.poison:
        for _, _, agent in _missing(poison, evidence):
            yield Finding(Figure.POISON, f"from {agent}", poison.id, poison.workstation)
        pair = (poison.id, poison.workstation)
        finals = [report for report in reports.get(pair, []) if report.state.final]
        if not finals:
            yield Finding(Figure.NO_FINAL, "a message refused and not reported", *pair)
        if len(finals) > 1:
            yield Finding(Figure.MANY_FINAL, "a message refused", *pair)
        if any(final.state is not State.REFUSED for final in finals):
            yield Finding(Figure.DISAGREE, "a message that cannot be read was taken", *pair)


def _missing(poison: Poison, evidence: Evidence) -> set[tuple[str, str, str]]:
    return {(poison.id, poison.workstation, agent) for agent in poison.agents} - evidence.dead


def _expiry(job: Job) -> float:
    return job.expires_at.timestamp() if isinstance(job.expires_at, datetime) else float("inf")
