"""Q229809: a damaged or lost ledger is set aside and made good, and nothing runs again for it."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agents.store import ledger
from agents.store import repair as salvage
from agents.store.ledger_schema import MIGRATIONS, SCHEMA_VERSION
from agents.store.repair import open_ledger
from agents.store.state_folder import StateError
from agents.store.transaction import JobRecord, Transaction
from schemas import Command, Job, Pause, Report, State, everyone

JOBS = 400


def make_job(number: int) -> Job:
    return Job(id=f"job-{number}", command=Command(argv=("echo", "x" * 200)), targets=(everyone,))


def fill(path: Path) -> None:
    """Make a ledger with many jobs, each tenth of them open, and a few reports to be sent."""
    with closing(open_ledger(path)) as database:
        transaction = Transaction(database)
        database.execute("BEGIN")
        for number in range(JOBS):
            entry = transaction.accept(make_job(number), float(number))
            assert isinstance(entry, JobRecord)
            if number % 10:
                transaction.save(replace(entry, state=State.EXPIRED, open=False))
        for number in range(5):
            report = Report(
                job_id=f"job-{number}", workstation="w", agent="service", state=State.RECEIVED
            )
            transaction.add_report(report)
        assert transaction.set_pause(Pause(workstation="w", paused=True))
        database.execute("COMMIT")


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def flip_a_body(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE jobs SET body = cast(replace(body, 'echo', 'fake') AS BLOB) WHERE id = 'job-0'"
        )


def drop_a_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE outbox")


def spoil_the_pause(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE pauses SET body = x'ff'")


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    # What is done to it, and how many of its jobs can still be read at least.
    "garbage": (lambda path: path.write_bytes(b"garbage" * 10_000), 0),
    "empty": (lambda path: path.write_bytes(b""), 0),
    "no header": (lambda path: overwrite(path, 0, b"\0" * 100), 0),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), 1),
    "a bad page": (lambda path: overwrite(path, path.stat().st_size // 2, b"\xff" * 4096), 100),
    "another command": (flip_a_body, JOBS - 1),
    "a table is missing": (drop_a_table, JOBS),
    "an unreadable pause": (spoil_the_pause, JOBS),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_kept_and_what_is_readable_taken_over(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ledger.db"
    fill(path)
    damage, readable = DAMAGES[name]
    damage(path)
    before = path.read_bytes()
    with closing(open_ledger(path)) as database:
        transaction = Transaction(database)
        assert "ledger.damaged-1.db" in transaction.metadata().damage
        taken = ledger.read_ledger(path)
        assert len(taken) >= readable
        if name in {"another command", "a table is missing"}:
            assert transaction.metadata().paused
        for entry in taken:  # as it was, or not at all
            assert entry.job == make_job(int(entry.job.id[4:])).model_copy(
                update={"created_at": entry.job.created_at, "sender": entry.job.sender}
            )
            assert entry.open is (int(entry.job.id[4:]) % 10 == 0)
        job = make_job(JOBS)
        assert isinstance(transaction.accept(job, time.time()), JobRecord)
    if name not in ("a bad page", "cut off"):  # in those, reading itself notes something
        assert (tmp_path / "ledger.damaged-1.db").read_bytes() == before
    with closing(open_ledger(path)) as database:  # and it stays sound
        assert Transaction(database).knows(job.id)
    assert not (tmp_path / "ledger.damaged-2.db").exists()


def test_setting_aside_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    fill(path)
    flip_a_body(path)
    damaged = path.read_bytes()
    open_ledger(path).close()
    # As if the power had failed when the new file was made, and not yet in its place.
    path.rename(tmp_path / "ledger.new.db")
    path.write_bytes(damaged)
    (tmp_path / "ledger.damaged-1.db").unlink()
    with closing(open_ledger(path)) as database:
        assert not Transaction(database).knows("job-0")
        assert Transaction(database).knows("job-1")
    assert (tmp_path / "ledger.damaged-1.db").read_bytes() == damaged
    assert not (tmp_path / "ledger.new.db").exists()


def test_a_ledger_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    job = make_job(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(MIGRATIONS[0])
        database.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, 5.0, 'started', 1, NULL, NULL, NULL, 5.0, NULL)",
            (job.id, job.digest(), job.body()),
        )
        database.execute("PRAGMA user_version = 1")
    with closing(open_ledger(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        (entry,) = Transaction(database).open_records()
        metadata = Transaction(database).metadata()
    assert (entry.job, entry.state, entry.starts) == (job, State.STARTED, 1)
    assert (metadata.made_at, metadata.damage) == (5.0, "")
    assert not list(tmp_path.glob("*damaged*"))


def test_a_file_that_is_in_use_or_in_the_way_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(StateError, match="unable to open"):
        open_ledger(tmp_path / "ledger.db")
    assert not list(tmp_path.glob("*damaged*"))
    assert salvage.is_damage(sqlite3.OperationalError("disk I/O error")) is False


async def test_a_damage_that_shows_itself_later_ends_the_agent_with_one_line(
    tmp_path: Path,
) -> None:
    """The agent does not loop: the next start repairs the ledger."""
    path = tmp_path / "ledger.db"
    fill(path)
    book = ledger.Ledger(path)
    book._database.execute("PRAGMA cache_size = 1")  # noqa: SLF001 - so that it is read again
    overwrite(path, 4096, b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StateError, match=r"malformed; the next start sets the file aside"):
        await book.commit(lambda transaction: transaction.accept(make_job(JOBS), 1.0))
    book.close()
    with closing(open_ledger(path)) as database:
        assert "ledger.damaged-1.db" in Transaction(database).metadata().damage
