"""A history of an older version is brought up to date, and keeps all that it holds.

The older histories are dumps of what the programs of their time have made; they are never changed.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, inspect, text

from broker.history import migrations
from broker.history import schema as tables
from broker.history.engine import (
    HistoryError,
    UnusableHistory,
    WrongHistory,
    engine_of,
    open_history,
    prepare,
)
from broker.history.migrations import MIGRATIONS, OLDEST, SCHEMA_VERSION
from broker.history.position import Position, is_empty, read_position, transact
from broker.history.projection.upserts import RANK
from broker.history.queries.workstations import query_fleet
from broker.history.reader import Overtaken, store
from broker.history.source import Source, check_source, known_source, record_source
from broker.stream.entry import StreamEntry
from schemas import Job
from schemas.times import latest
from tests.support import programs
from tests.support.postgresql import schema

HISTORIES = Path(__file__).parent / "histories"
_OPEN = "20260302-093001-aaaaaaaaa1"
HERE, THERE = Source("rabbit@here", "/"), Source("rabbit@there", "/")
Rows = dict[str, list[dict[str, Any]]]
_RENAMED_FIELDS = {"id": "job", "name": "workstation"}  # of the answers
_RENAMED_TABLES = {"forgeries": "rejected_entries"}
_RENAMED_COLUMNS = {"told": "published", "kept_at": "cleaned_at"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.db"
    else:
        with schema() as made:
            yield made


@pytest.fixture(params=[OLDEST, 5])  # of these there are dumps
def version(request: pytest.FixtureRequest) -> int:
    """The oldest version that can be brought up to date, and the last one."""
    return int(request.param)


@pytest.fixture
def former(url: str, version: int) -> str:
    """A history of an older version."""
    return load(url, version)


def load(url: str, version: int) -> str:
    """Load a history of an older version, with data of all kinds in it."""
    if url.startswith("sqlite"):
        dump = (HISTORIES / f"version_{version}.sqlite.sql").read_text()
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(dump)
    else:
        dump = (HISTORIES / f"version_{version}.postgresql.sql").read_text()
        with psycopg.connect(url) as server:
            server.execute(dump.encode())
    return url


@pytest.fixture
def raw(url: str) -> Iterator[Engine]:
    """The database, as it is."""
    engine = engine_of(url)
    yield engine
    engine.dispose()


def rows(engine: Engine) -> Rows:
    """Return all rows of all tables that are there, whatever their columns."""
    with engine.connect() as connection:
        found = {}
        for name in inspect(connection).get_table_names():
            every = connection.execute(text(f"SELECT * FROM {name}")).mappings().all()
            found[name] = sorted(map(dict, every), key=repr)
    return found


_NEW_TABLES = ("early", "machines")


def renamed(before: Rows) -> Rows:
    """Return rows by the names that migrations give to their tables and columns, and new tables."""
    return {table: [] for table in _NEW_TABLES} | {
        _RENAMED_TABLES.get(table, table): sorted(
            (
                {_RENAMED_COLUMNS.get(column, column): value for column, value in row.items()}
                for row in found
            ),
            key=repr,
        )
        for table, found in before.items()
    }


def layout(engine: Engine) -> dict[str, Any]:
    """Return how the tables are made, as the database tells."""
    with engine.connect() as connection:
        seen = inspect(connection)
        return {
            name: (
                [{**column, "type": repr(column["type"])} for column in seen.get_columns(name)],
                seen.get_pk_constraint(name)["constrained_columns"],
                sorted(seen.get_indexes(name), key=repr),
            )
            for name in seen.get_table_names()
        }


def change(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def refusal(engine: Engine) -> str:
    """Return how a history is refused; nothing of it was changed."""
    before = rows(engine), layout(engine)
    with pytest.raises(UnusableHistory) as refused:
        prepare(engine)
    assert (rows(engine), layout(engine)) == before
    (line,) = str(refused.value).splitlines()
    assert line.startswith("PCM_HISTORY_URL: ")
    assert line.endswith("set another PCM_HISTORY_URL")
    return line


def migrated(before: Rows) -> Rows:
    """Return the rows as the migrations leave them."""
    before = renamed(before)
    reading = [{"cluster": "", "virtual_host": "", **row} for row in before["reading"]]
    reading[0]["version"] = SCHEMA_VERSION
    ranks = {
        (row["job_id"], row["workstation"]): {name: row[name] for name in RANK}
        for row in before["outcomes"]
    }
    agents = []
    for row in before["agents"]:
        agents.append({**row, "revoked_at": None, "queue_new_at": None, "woke_at": None})
        if "policy" in row:
            continue
        windows = agents[-1].pop("windows")
        policy = json.dumps({"windows": windows} if windows else {}, separators=(",", ":"))
        agents[-1]["policy"] = windows if windows.startswith("{") else policy
    return {
        **before,
        "reading": reading,
        "jobs": sorted((_with_expiry(row) for row in before["jobs"]), key=repr),
        "agents": sorted(agents, key=lambda row: (row["workstation"], row["agent"])),
        "outcomes": [{**row, "already_present": None} for row in before["outcomes"]],
        "packages": [],
        "contents": [],
        "results": [
            {**row, **ranks[row["job_id"], row["workstation"]]} for row in before["results"]
        ],
    }


def _with_expiry(job: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a job with the expiry that the job itself gives by now."""
    if job["body"] is None:
        return job
    return {**job, "expires_at": latest(Job.read(job["body"], tolerant=True).expiry).timestamp()}


def test_all_rows_and_the_position_are_kept(former: str, raw: Engine) -> None:
    before = rows(raw)
    assert all(before.values())  # none is empty
    assert {*renamed(before), "packages", "contents"} == {
        table.name for table in (tables.reading, *tables.CONTENT)
    }
    open_history(former).dispose()
    (reading,) = before["reading"]
    assert rows(raw) == migrated(before)
    assert transact(raw, read_position) == Position(
        **{name: reading[name] for name in ("base", "next_offset", "last")}
    )
    assert not is_empty(raw)


def test_its_tables_become_those_of_a_new_history(former: str, tmp_path: Path) -> None:
    current = open_history(former)
    if former.startswith("sqlite"):
        fresh = open_history(f"sqlite:///{tmp_path}/fresh.db")
        assert layout(current) == layout(fresh)
    else:
        with schema() as empty:
            fresh = open_history(empty)
            assert layout(current) == layout(fresh)
            fresh.dispose()
    current.dispose()


def known(answer: Any, then: Any) -> Any:
    """Return of an answer what there was to be told then: later programs may tell more."""
    if isinstance(then, dict):
        now = {name: name if name in answer else _RENAMED_FIELDS[name] for name in then}
        return {name: known(answer[now[name]], value) for name, value in then.items()}
    if isinstance(then, list):
        return [known(one, value) for one, value in zip(answer, then, strict=True)]
    return answer


def test_it_answers_as_it_did(former: str, tmp_path: Path) -> None:
    answers = json.loads((HISTORIES / f"version_{OLDEST}.answers.json").read_text())
    for words, then in answers.items():
        assert known(json.loads(pcm(former, tmp_path, *words.split())), then) == then


def pcm(url: str, folder: Path, *words: str) -> str:
    """Return what `pcm` answers from a history alone."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TZ": "UTC",
        "PCM_AMQP_URL": programs.NOWHERE,
        "PCM_HISTORY_URL": url,
    }
    done = programs.run("pcm", words, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jobs_without_an_expiry_expire_as_agents_let_them_expire(
    former: str, tmp_path: Path
) -> None:
    """They were sent on 2 March 2026, to queues that the broker keeps for 30 days."""
    job = "20260302-093008-aaaaaaaaa8"
    shown = json.loads(pcm(former, tmp_path, "show", job, "--json", "--all"))
    assert shown["expires_at"] == "2026-04-01T09:30:08+00:00"
    assert (shown["counts"], shown["open"]) == ({"expired": 9}, 0)
    explained = pcm(former, tmp_path, "why", job, "ws-queued")
    assert explained.startswith("It expired at 2026-04-01 09:30")
    received = json.loads(pcm(former, tmp_path, "why", _OPEN, "ws-received", "--json"))
    assert received["state"] == "expired"
    assert "the history concludes that it has expired" in received["why"]
    waiting = {
        row["waiting"] for row in json.loads(pcm(former, tmp_path, "workstations", "--json"))
    }
    assert waiting == {0}


def test_each_further_version_has_its_statements() -> None:
    assert list(MIGRATIONS) == list(range(OLDEST + 1, SCHEMA_VERSION + 1))


def test_many_that_open_it_at_once_migrate_it_once(former: str, raw: Engine) -> None:
    many = 6
    barrier = Barrier(many)

    def opened() -> None:
        engine = engine_of(former)
        barrier.wait()
        prepare(engine)
        engine.dispose()

    before = rows(raw)
    with ThreadPoolExecutor(many) as threads:
        for running in [threads.submit(opened) for _ in range(many)]:
            running.result()
    assert rows(raw) == migrated(before)


def test_many_that_make_it_at_once_make_it_once(url: str, raw: Engine) -> None:
    many = 6
    barrier = Barrier(many)

    def made() -> None:
        engine = engine_of(url)
        barrier.wait()
        prepare(engine)
        engine.dispose()

    with ThreadPoolExecutor(many) as threads:
        for running in [threads.submit(made) for _ in range(many)]:
            running.result()
    assert len(rows(raw)["reading"]) == 1


def test_one_that_is_migrated_while_it_is_looked_at_is_not_taken_for_damaged(
    former: str, raw: Engine
) -> None:
    migrated: list[str] = []

    def migrate_meanwhile(*_: object) -> None:
        if not migrated:
            migrated.append(former)
            open_history(former).dispose()

    event.listen(raw, "after_cursor_execute", migrate_meanwhile)
    prepare(raw)
    assert migrated
    assert rows(raw)["reading"][0]["version"] == SCHEMA_VERSION


def test_a_migration_that_fails_changes_nothing(
    former: str, version: int, raw: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(raw), layout(raw)
    following = version + 1
    with monkeypatch.context() as patched:
        patched.setitem(migrations.MIGRATIONS, following, (*MIGRATIONS[following], "nonsense"))
        with pytest.raises(HistoryError, match="nonsense"):
            open_history(former)
    assert (rows(raw), layout(raw)) == before
    open_history(former).dispose()


def test_a_newer_one_is_refused(url: str, raw: Engine) -> None:
    open_history(url).dispose()
    change(raw, f"UPDATE reading SET version = {SCHEMA_VERSION + 1}")
    line = refusal(raw)
    assert f"of version {SCHEMA_VERSION + 1}, " in line
    assert f"up to {SCHEMA_VERSION}: install a newer package-command-manager" in line


def test_an_older_one_than_all_that_are_known_is_refused(former: str, raw: Engine) -> None:
    assert former
    change(raw, f"UPDATE reading SET version = {OLDEST - 1}")
    assert f"of version {OLDEST - 1}, which this program cannot bring up to" in refusal(raw)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("DELETE FROM reading", "reading has 0 rows"),
        ("ALTER TABLE jobs DROP COLUMN body", "jobs.body is missing"),
        ("DROP TABLE gaps", "gaps.first is missing"),
    ],
)
@pytest.mark.parametrize("age", ["new", "former"])
def test_a_damaged_one_is_refused(url: str, raw: Engine, age: str, damage: str, what: str) -> None:
    if age == "new":
        open_history(url).dispose()
    else:
        load(url, OLDEST)
    change(raw, damage)
    assert f" is damaged: {what}: restore it from a copy, or" in refusal(raw)


@pytest.mark.parametrize(
    "table", ["jobs (id INTEGER, salary INTEGER)", "reading (book TEXT, page INTEGER)"]
)
def test_tables_that_are_no_historys_are_refused(raw: Engine, table: str) -> None:
    name = table.partition(" ")[0]
    change(raw, f"CREATE TABLE {table}", f"INSERT INTO {name} VALUES (1, 2)")
    assert f"has a table {name} that is not of a history" in refusal(raw)


def test_in_postgresql_others_may_have_tables_beside_it(url: str, raw: Engine) -> None:
    change(raw, "CREATE TABLE wages (id INTEGER)")
    if url.startswith("sqlite"):
        assert "has a table wages" in refusal(raw)
    else:
        open_history(url).dispose()
        assert "jobs" in rows(raw)


def test_a_program_that_is_older_than_the_tables_meanwhile_reads_no_further(
    url: str, raw: Engine
) -> None:
    open_history(url).dispose()
    place = transact(raw, read_position)
    change(raw, f"UPDATE reading SET version = {SCHEMA_VERSION + 1}")
    entry = StreamEntry(0, "mark", "m", b"", "guest", "mark.m")
    with pytest.raises(Overtaken):
        transact(raw, store, place, [entry])
    with pytest.raises(UnusableHistory, match="install a newer"):
        transact(raw, read_position)


def test_windows_of_an_older_program_are_kept_whatever_they_are(former: str, raw: Engine) -> None:
    odd = 'daily "\\" \n{}'
    if "policy" in rows(raw)["agents"][0]:
        pytest.skip("it keeps them as JSON")
    with raw.begin() as connection:
        update = text("UPDATE agents SET windows = :odd WHERE workstation = 'ws-queued'")
        connection.execute(update, {"odd": odd})
    engine = open_history(former)
    with query_fleet(engine) as asked:
        (row,) = asked.workstations(["ws-queued"])
    assert row.agents[0].windows == odd
    engine.dispose()


def test_what_it_was_read_of_is_noted_once(former: str) -> None:
    engine = open_history(former)
    assert transact(engine, known_source) is None
    transact(engine, check_source, THERE)  # not noted: any may read it, and checking notes nothing
    assert transact(engine, known_source) is None
    transact(engine, record_source, HERE)
    transact(engine, record_source, HERE)
    for refused in (check_source, record_source):
        for other in (THERE, Source("rabbit@here", "other")):
            with pytest.raises(WrongHistory) as error:
                transact(engine, refused, other)
            assert f"was read from {HERE}, and PCM_AMQP_URL leads to {other}: set" in str(
                error.value
            )
    assert transact(engine, known_source) == HERE
    engine.dispose()
