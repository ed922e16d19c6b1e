"""No message to the stream costs its readers more than its size allows, or stops them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from broker.amqp import topology
from broker.history.engine import open_history
from broker.history.position import Position, read_position, transact
from broker.history.queries.jobs import query_jobs
from broker.history.reader import store
from broker.history.schema import rejected_entries
from broker.stream.entry import EntryRejected, StreamEntry
from schemas import CheckIn, Command, Job, Report, State, workstation

JOB = Job(command=Command(argv=("true",), background=True), targets=(workstation("ws-1"),))
REPORT = Report(job_id=JOB.id, workstation="ws-1", agent="service", state=State.RECEIVED)
CHECK_IN = CheckIn(workstation="ws-1", agent="service", interval=timedelta(minutes=5))
MIB = 1024 * 1024
LOGINS = ("service@ws-1", "guest")


class Parses:
    """Counts the lines, and their bytes, that are parsed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines = self.bytes = 0
        for kind in (Report, CheckIn):
            monkeypatch.setattr(kind, "read", self._counting(kind.read))

    def _counting(self, read: Any) -> Any:
        def counted(line: bytes, **options: Any) -> Any:
            self.lines += 1
            self.bytes += len(line)
            return read(line, **options)

        return counted


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Parses:
    return Parses(monkeypatch)


def entry(body: bytes, login: str, kind: str = "report", offset: int = 0) -> StreamEntry:
    key = topology.report_key("received" if kind == "report" else kind, "ws-1", "service")
    return StreamEntry(offset, kind, "", body, login, key)


TOO_MUCH: dict[str, tuple[str, bytes, str]] = {
    "empty lines": ("report", b"\n" * 16 * MIB, "lines are over the limit"),
    "other line ends": ("report", b"\r" * 16 * MIB, "lines are over the limit"),
    "short lines": ("report", b"{}\n" * 5000, "lines are over the limit"),
    "reports": ("report", REPORT.body() + b"\n" + b"{}\n" * 5000, "lines are over the limit"),
    "a long line": ("report", b"[" * 17 * MIB, "bytes are over the limit of 16,777,216"),
    "a long check-in": ("check_in", b" " * MIB, "bytes are over the limit of 262,144"),
}


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(("kind", "body", "reason"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_is_over_a_limit_is_rejected_before_it_is_parsed(
    parses: Parses, login: str, kind: str, body: bytes, reason: str
) -> None:
    with pytest.raises(EntryRejected, match=reason):
        entry(body, login, kind).read()
    assert parses.lines == 0


@pytest.mark.parametrize("login", LOGINS)
def test_reading_ends_after_a_few_unreadable_lines(parses: Parses, login: str) -> None:
    good = [REPORT.body()] * 500
    some = [b"", b"{}", b"[" * 100_000, b"no json", *good]
    assert len(entry(b"\n".join(some), login).read()) == 500
    with pytest.raises(EntryRejected, match="more than 10 of its lines are unreadable"):
        entry(b"\n".join([*good[:1], *[b"{}"] * 100, *good]), login).read()
    assert parses.lines == len(some) + 1 + 11


def test_the_first_wrong_group_is_the_last_one_looked_at() -> None:
    """Otherwise each of 100,000 lines would cost an error."""
    wrong = CHECK_IN.body().replace(b'"groups":[]', b'"groups":[' + b"1," * 50_000 + b"1]")
    assert len(wrong) > 100_000
    with pytest.raises(ValueError, match=r"groups\.0: [^(]*$"):
        CheckIn.read(wrong, tolerant=True)


def test_the_greatest_genuine_ones_are_within_the_limits() -> None:
    worst = b"\x01" * MIB  # six characters each in JSON
    result = {"exit_code": 0, "duration": 1, "max_memory": 0}
    outputs = {name: {"head": worst[: MIB // 2], "tail": worst[MIB // 2 :]} for name in _OUTPUTS}
    report = Report.model_validate(
        {**REPORT.model_dump(), "result": {**result, **outputs}, "reason": "\x01" * 10_000}
    )
    assert entry(report.body(), "service@ws-1").read() == [report]
    groups = tuple(f"{number:063}" for number in range(1000))
    check_in = CHECK_IN.model_copy(update={"groups": groups})
    assert entry(check_in.body(), "service@ws-1", "check_in").read() == [check_in]


_OUTPUTS = ("stdout", "stderr")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Engine]:
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    yield engine
    engine.dispose()


def test_the_position_moves_on_and_later_reports_are_read(history: Engine, parses: Parses) -> None:
    bodies = [body for kind, body, _ in TOO_MUCH.values() if kind == "report"]
    hostile = [entry(body, LOGINS[0], offset=1 + place) for place, body in enumerate(bodies)]
    last = entry(REPORT.body(), LOGINS[0], offset=1 + len(hostile))
    job = StreamEntry(0, "job", JOB.id, JOB.body(), "guest", f"job.{JOB.id}")
    position = transact(history, store, Position(0, 0, ""), [job, *hostile, last])
    assert position.next_offset == last.offset + 1
    assert transact(history, read_position) == position
    assert parses.lines == 1
    with query_jobs(history, datetime.now(UTC).timestamp()) as jobs:
        assert jobs.find(JOB.id).counts == {"received": 1}
        assert jobs.gaps() == []
    with history.connect() as connection:
        offsets = connection.scalars(select(rejected_entries.c.offset)).all()
    assert sorted(offsets) == [one.offset for one in hostile]
