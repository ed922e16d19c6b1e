"""The ledger: what is committed is on the disk, and survives crashes and damage."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents.store import ledger
from agents.store.ledger import Ledger
from agents.store.transaction import DuplicateReason, JobRecord, Transaction
from schemas import Command, Job, Report, State, everyone
from tests.support.waiting import LIMIT, until

_OLD_KEY = "*.*.workstation.old"


def make_job(**fields: object) -> Job:
    return Job(command=Command(argv=("true",)), targets=(everyone,), **fields)  # type: ignore[arg-type]


def make_report(job: Job, state: State = State.RECEIVED) -> Report:
    return Report(job_id=job.id, workstation="w", agent="service", state=state)


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


async def test_a_job_is_accepted_once(book: Ledger) -> None:
    job = make_job()
    entry = await book.commit(lambda transaction: transaction.accept(job, 1.0))
    assert isinstance(entry, JobRecord)
    assert entry.open
    again = job.model_copy(update={"sender": "another"})
    assert (
        await book.commit(lambda transaction: transaction.accept(again, 2.0))
        is DuplicateReason.SAME
    )
    other = job.model_copy(update={"name": "another"})
    assert (
        await book.commit(lambda transaction: transaction.accept(other, 3.0))
        is DuplicateReason.CONFLICT
    )


async def test_a_cancellation_before_its_job_is_remembered(book: Ledger) -> None:
    job = make_job()
    await book.commit(lambda transaction: transaction.remember_cancellation(job.id, "no", 1.0))
    entry = await book.commit(lambda transaction: transaction.accept(job, 2.0))
    assert isinstance(entry, JobRecord)
    assert entry.cancelled == "no"


async def test_what_is_saved_is_loaded(book: Ledger) -> None:
    open_job, closed_job = make_job(), make_job()
    entries: list[JobRecord] = []
    for job in (open_job, closed_job):
        entry = await book.commit(lambda transaction, job=job: transaction.accept(job, 1.0))  # type: ignore[misc]
        assert isinstance(entry, JobRecord)
        entries.append(entry)
    offered = replace(entries[0], state=State.OFFERED, shown_at=5.0, until=9.0, changed_at=5.0)
    ended = replace(
        entries[1], state=State.EXPIRED, open=False, final=make_report(closed_job, State.EXPIRED)
    )
    await book.commit(lambda transaction: transaction.save(offered))
    await book.commit(lambda transaction: transaction.save(ended))
    assert book.load()[1] == [offered]
    assert sorted(ledger.read_ledger(book.path), key=lambda entry: entry.open) == [ended, offered]


async def test_reports_stay_until_they_are_confirmed(book: Ledger) -> None:
    job = make_job()
    reports = [make_report(job, state) for state in (State.RECEIVED, State.STARTED, State.FAILED)]
    for report in reports:
        await book.commit(lambda transaction, report=report: transaction.add_report(report))  # type: ignore[misc]
    pending = await book.commit(lambda transaction: transaction.pending_reports(2))
    assert [Report.read(found.body) for found in pending] == reports[:2]
    await book.commit(lambda transaction: transaction.delete_confirmed(pending[-1].sequence))
    assert len(await book.commit(lambda transaction: transaction.pending_reports(10))) == 1


async def test_a_change_that_fails_does_not_take_others_along(book: Ledger) -> None:
    job = make_job()

    def fails(transaction: Transaction) -> None:
        transaction.add_report(make_report(job))
        raise LookupError("a defect")

    good = book.commit(lambda transaction: transaction.accept(job, 1.0))
    bad = book.commit(fails)
    last = book.commit(lambda transaction: transaction.knows(job.id))
    assert isinstance(await good, JobRecord)
    with pytest.raises(LookupError):
        await bad
    assert await last
    assert await book.commit(lambda transaction: transaction.pending_reports(10)) == []


async def test_a_full_disk_is_waited_for(
    book: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is acknowledged while the disk is full; all is stored once there is room."""
    monkeypatch.setattr(ledger, "_RETRY_PAUSE", 0.01)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
    job = make_job(name="x" * 200)
    await book.commit(lambda transaction: limit(transaction, pages))
    big = job.model_copy(update={"command": Command(argv=("echo", "x" * 100_000))})
    tried: list[Transaction] = []

    def accept(transaction: Transaction) -> JobRecord | DuplicateReason:
        tried.append(transaction)
        return transaction.accept(big, 1.0)

    with capture_logs() as printed:
        waiting = book.commit(accept)
        await until(lambda: len(tried) > 3)
    assert not waiting.done()
    assert [event["event"] for event in printed] == ["ledger.failing"]
    # Room again. The connection is the ledger's own.
    book._database.execute("PRAGMA max_page_count = 100000")  # noqa: SLF001
    async with asyncio.timeout(LIMIT):
        assert isinstance(await waiting, JobRecord)


def limit(transaction: Transaction, pages: int) -> None:
    transaction._database.execute(f"PRAGMA max_page_count = {pages}")  # noqa: SLF001


async def test_what_ended_long_ago_is_dropped_bit_by_bit(book: Ledger) -> None:
    """A due job need not wait for the whole deletion."""
    jobs = [make_job(created_at=datetime.fromtimestamp(1, UTC)) for _ in range(50)]
    # The clock of its sender was ahead: published again, it would not be too old.
    jobs[2] = make_job(created_at=datetime.fromtimestamp(6, UTC))

    def fill(transaction: Transaction) -> None:
        for number, job in enumerate(jobs):
            ended = JobRecord(job, 1.0, state=State.FAILED, open=number == 0, changed_at=1.0)
            transaction.insert(replace(ended, changed_at=9.0) if number == 1 else ended)
            transaction.remember_cancellation(job.id, "no", 1.0)

    await book.commit(fill)
    left = [len(jobs)]
    while await book.commit(lambda transaction: transaction.delete_ended(5.0)):
        left.append(len(ledger.read_ledger(book.path)))
    assert {entry.job.id for entry in ledger.read_ledger(book.path)} == {job.id for job in jobs[:3]}
    again = await book.commit(lambda transaction: transaction.accept(jobs[2], 10.0, 5.0))
    assert again is DuplicateReason.SAME
    while await book.commit(lambda transaction: transaction.delete_ended(7.0)):
        pass
    gone = await book.commit(lambda transaction: transaction.accept(jobs[2], 12.0, 7.0))
    assert gone is DuplicateReason.TOO_OLD
    assert max(before - after for before, after in pairwise(left)) < len(jobs) // 2


KILLED = """
import asyncio, sys
from pathlib import Path
from agents.store.ledger import Ledger
from schemas import Command
from schemas import Job
from schemas import everyone

async def main():
    book = Ledger(Path(sys.argv[1]))
    number = 0
    while True:
        job = Job(id=f"job-{number}", command=Command(argv=("true",)), targets=(everyone,))
        await book.commit(lambda transaction: transaction.accept(job, 1.0))
        print(job.id, flush=True)
        number += 1

asyncio.run(main())
"""


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline().strip() for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
        printed += process.stdout.read().split()
    kept = {entry.job.id for entry in ledger.read_ledger(path)}
    assert set(printed) <= kept


async def test_jobs_of_a_former_name_keep_it(book: Ledger) -> None:
    """An older ledger has the name in its bindings alone."""

    def rename(name: str, *, reports: bool = True) -> "asyncio.Future[str]":
        return book.commit(lambda transaction: transaction.rename(name, reports=reports))

    job = make_job()
    await book.commit(lambda transaction: transaction.accept(job, 1.0))
    await book.commit(lambda transaction: transaction.set_bindings(["*.*.all", _OLD_KEY]))
    assert await rename("new") == "old"
    assert await book.commit(Transaction.bindings) == set()
    assert await rename("new") == ""
    assert await book.commit(Transaction.former_names) == {job.id: "old"}
    assert await rename("newest") == "new"
    assert await book.commit(Transaction.former_names) == {job.id: "old"}


async def test_an_agent_that_may_not_report_under_its_former_name_closes_its_jobs(
    book: Ledger,
) -> None:
    job = make_job()
    await book.commit(lambda transaction: transaction.rename("old", reports=False))
    await book.commit(lambda transaction: transaction.accept(job, 1.0))
    await book.commit(lambda transaction: transaction.add_report(make_report(job)))
    assert await book.commit(lambda transaction: transaction.rename("new", reports=False)) == "old"
    assert await book.commit(Transaction.open_records) == []
    assert await book.commit(lambda transaction: transaction.pending_reports(1)) == []
    assert await book.commit(lambda transaction: transaction.knows(job.id))
