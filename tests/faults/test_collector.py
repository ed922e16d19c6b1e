"""The collector reads a real stream while collector, broker and database fail."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, event, select

from broker.amqp import topology
from broker.amqp.connection import BrokerError, Unreachable, connect
from broker.amqp.publisher import Publisher
from broker.history import engine as engine_module
from broker.history import schema as tables
from broker.history.collector import catch_up
from broker.history.engine import HistoryError, open_history
from broker.history.position import is_collected
from broker.history.queries.jobs import query_jobs
from broker.history.reader import rebuild
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import CheckIn, Command, Job, Report, Result, State, everyone
from schemas.reports.report import final_id
from tests.support import programs
from tests.support.postgresql import schema
from tests.support.programs import BIN
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker, Node
from tests.support.waiting import LIMIT, until
from tests.support.workstation import AgentProcess

NAMES = [f"hist-{number}" for number in range(20)]
STORY = (State.RECEIVED, State.STARTED, State.SUCCEEDED)


@pytest.fixture
def settings(own_node: Node, tmp_path: Path) -> HistorySettings:
    (tmp_path / "pcm").mkdir(mode=0o700)
    return HistorySettings(
        amqp_url=(own_node.url,), history_url=f"sqlite:///{tmp_path}/pcm/history.db"
    )


@pytest.fixture
def history(settings: HistorySettings) -> Iterator[Engine]:
    engine = open_history(settings.history_url)
    yield engine
    engine.dispose()


def environment(settings: HistorySettings) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "PCM_AMQP_URL": settings.amqp_url[0],
        "PCM_HISTORY_URL": settings.history_url,
        "PCM_PATIENCE": "1s",
    }


@contextmanager
def collector(settings: HistorySettings, log: Path) -> Iterator[AgentProcess]:
    process = AgentProcess("collect", environment(settings), log, (BIN / "pcm",))
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


def pcm(settings: HistorySettings, *words: str) -> programs.Done:
    return programs.run("pcm", words, environment(settings))


async def publish(settings: HistorySettings, jobs: int, *, pause: float = 0.0) -> list[Job]:
    """Append jobs to the stream, and the reports of their workstations."""
    sent = []
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        publisher = await Publisher.open(connection)

        async def append(name: str, state: str, kind: str, body: bytes) -> None:
            await stream.append(
                publisher, topology.report_key(state, name, "service"), body, kind=kind
            )

        for name in NAMES:
            said = CheckIn(workstation=name, agent="service", interval=timedelta(minutes=15))
            await append(name, "check_in", "check_in", said.body())
        for _ in range(jobs):
            job = Job(command=Command(argv=("true",), background=True), targets=(everyone,))
            await stream.append(
                publisher, f"job.{job.id}", job.body(), kind="job", message_id=job.id
            )
            sent.append(job)
            for state in STORY:
                await asyncio.gather(
                    *(
                        append(name, state, "report", _report(job, name, state).body())
                        for name in NAMES
                    )
                )
            await asyncio.sleep(pause)
    return sent


def _report(job: Job, name: str, state: State) -> Report:
    final = {
        "id": final_id(job.id, name),
        "result": Result(exit_code=0, duration=timedelta(seconds=1), max_memory=1),
    }
    return Report(
        job_id=job.id,
        workstation=name,
        agent="service",
        state=state,
        **(final if state.final else {}),  # type: ignore[arg-type]
    )


def content(engine: Engine) -> dict[str, list[str]]:
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in tables.CONTENT
        }


def succeeded(engine: Engine, job: Job) -> int:
    with query_jobs(engine) as asked:
        return asked.counts([job.id])[job.id][State.SUCCEEDED]


@pytest.mark.full
async def test_a_collector_that_is_killed_again_and_again_counts_each_report_once(
    settings: HistorySettings, history: Engine, tmp_path: Path
) -> None:
    publishing = asyncio.create_task(publish(settings, 60, pause=0.05))
    kills = 0
    while kills < 4 or not publishing.done():
        with collector(settings, tmp_path / "log"):
            await asyncio.sleep(random.uniform(0.3, 1.5))  # killed at any moment
            kills += 1
    sent = await publishing
    await catch_up(settings, history)
    for job in sent:
        assert succeeded(history, job) == len(NAMES)
    collected = content(history)
    rebuild(history)
    await catch_up(settings, history)
    assert content(history) == collected


async def test_many_that_collect_at_once_count_each_report_once(
    settings: HistorySettings, history: Engine, tmp_path: Path
) -> None:
    # RabbitMQ 4.0 drops a connection that publishes while the stream is being made.
    await publish(settings, 0)
    with collector(settings, tmp_path / "1"), collector(settings, tmp_path / "2"):
        publishing = asyncio.create_task(publish(settings, 10))
        while not publishing.done():
            await asyncio.gather(*(catch_up(settings, history) for _ in range(3)))
        sent = await publishing
        await until(lambda: succeeded(history, sent[-1]) == len(NAMES))
    await catch_up(settings, history)
    together = content(history)
    assert all(succeeded(history, job) == len(NAMES) for job in sent)
    rebuild(history)
    await catch_up(settings, history)
    assert content(history) == together


async def test_a_second_collector_stands_by_and_takes_over(
    settings: HistorySettings, history: Engine, tmp_path: Path
) -> None:
    await publish(settings, 1)
    with collector(settings, tmp_path / "1") as first:
        first.wait_for("collector.up_to_date")
        with collector(settings, tmp_path / "2") as second:
            second.wait_for("collector.standby")
            assert first.end() == 0
            second.wait_for("collector.up_to_date")
            assert is_collected(history)
        assert len(second.events("collector.standby")) == 1


async def test_what_a_collector_keeps_is_reported_without_a_broker(
    settings: HistorySettings, tmp_path: Path
) -> None:
    (job,) = await publish(settings, 1)
    away = settings.model_copy(update={"amqp_url": ("amqp://guest:guest@127.0.0.1:1/",)})
    nothing = pcm(away, "history", "status", "--json")
    assert json.loads(nothing.stdout)["jobs"] == 0
    with collector(settings, tmp_path / "log") as running:
        running.wait_for("collector.up_to_date")
        status = json.loads(pcm(away, "history", "status", "--json").stdout)
        assert status["jobs"] >= 1
        assert status["collector"]
        assert job.id
    assert running.process.returncode == -signal.SIGKILL


async def test_a_database_that_is_locked_is_waited_for(
    settings: HistorySettings, history: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = await publish(settings, 1)
    path = settings.history_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        asked: list[str] = []
        event.listen(
            history, "before_cursor_execute", lambda *arguments: asked.append(arguments[2])
        )
        catching_up = asyncio.create_task(catch_up(settings, history))
        writing = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE")
        await until(lambda: any(one.startswith(writing) for one in asked))
        assert not catching_up.done()
        other.execute("ROLLBACK")
        await catching_up
        assert succeeded(history, job) == len(NAMES)
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(engine_module, "_LOCK_TIMEOUT", 0.1)
        await publish(settings, 1)
        with pytest.raises(HistoryError, match="database is locked"):
            await catch_up(settings, history)


@pytest.mark.full
async def test_a_deleted_database_file_is_recreated(
    settings: HistorySettings, tmp_path: Path
) -> None:
    (job,) = await publish(settings, 1)
    folder = Path(settings.history_url.removeprefix("sqlite:///")).parent
    with collector(settings, tmp_path / "log") as running:
        running.wait_for("collector.up_to_date")
        _remove(folder)
        await until(lambda: len(running.events("collector.up_to_date")) > 1)
        engine = open_history(settings.history_url)
        assert succeeded(engine, job) == len(NAMES)
        engine.dispose()
        assert _modes(folder) == {0o600}


@pytest.mark.full
async def test_a_file_that_a_query_recreated_is_filled_by_the_collector(
    settings: HistorySettings, tmp_path: Path
) -> None:
    (job,) = await publish(settings, 1)
    folder = Path(settings.history_url.removeprefix("sqlite:///")).parent
    with collector(settings, tmp_path / "log") as running:
        running.wait_for("collector.up_to_date")
        _remove(folder)
        engine = open_history(settings.history_url)
        try:
            await until(lambda: is_collected(engine))
            assert succeeded(engine, job) == len(NAMES)
        finally:
            engine.dispose()


def _remove(folder: Path) -> None:
    assert _modes(folder) == {0o600}
    for file in folder.iterdir():
        file.unlink()


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_a_database_server_that_is_away_is_waited_for(
    settings: HistorySettings, tmp_path: Path
) -> None:
    with schema() as url:
        server = conninfo_to_dict(url)
        port = int(str(server.get("port")))
        if server.get("host") not in {"127.0.0.1", "localhost"}:
            pytest.skip("the PostgreSQL given is on another machine")
        with Proxy(port) as proxy:
            by_proxy = url.replace(f":{port}/", f":{proxy.port}/")
            away = settings.model_copy(update={"history_url": by_proxy})
            with collector(away, tmp_path / "log") as running:
                running.wait_for("collector.up_to_date")
                proxy.close()
                sent = await publish(settings, 3)
                running.wait_for("collector.retrying")
                with Proxy(port, proxy.port):
                    await until(lambda: len(running.events("collector.up_to_date")) > 1)
                engine = open_history(url)
                assert [succeeded(engine, job) for job in sent] == [len(NAMES)] * 3
                engine.dispose()
                reasons = [event["reason"] for event in running.events("collector.retrying")]
                assert len(reasons) == len(set(reasons)) <= 3


async def test_what_the_stream_dropped_before_it_was_read_is_reported(
    settings: HistorySettings, history: Engine
) -> None:
    await _new_stream(
        settings, {"x-max-length-bytes": 30_000, "x-stream-max-segment-size-bytes": 10_000}
    )
    await publish(settings, 1)
    await catch_up(settings, history)
    await publish(settings, 40)
    await publish(settings, 1)
    await catch_up(settings, history)
    gaps = json.loads(pcm(settings, "history", "status", "--json").stdout)["gaps"]
    assert any("had dropped it" in gap for gap in gaps), gaps
    refused = pcm(settings, "history", "rebuild")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert pcm(settings, "history", "rebuild", "--yes").returncode == 0
    await _new_stream(settings)


@pytest.mark.parametrize("jobs", [1, 30], ids=["shorter", "longer"])
async def test_another_stream_in_the_place_of_the_former_is_read_from_its_beginning(
    settings: HistorySettings, history: Engine, jobs: int
) -> None:
    await _new_stream(settings)
    former = await publish(settings, 5)
    await catch_up(settings, history)
    await _new_stream(settings)
    sent = await publish(settings, jobs)
    await catch_up(settings, history)
    assert all(succeeded(history, job) == len(NAMES) for job in former + sent)
    with query_jobs(history) as asked:
        (gap,) = asked.gaps()
    assert "another stream" in gap


async def test_a_schedule_outlives_the_stream_that_it_was_added_to(
    settings: HistorySettings, history: Engine
) -> None:
    await _new_stream(settings)
    words = (
        "add",
        "weekly",
        "--repeat",
        "0 2 * * 0",
        "--zone",
        "UTC",
        "--to",
        "all",
        "--background",
    )
    added = pcm(settings, "schedule", *words, "--", "true")
    assert added.returncode == 0, added.stderr
    pcm(settings, "schedule", "list")
    await _new_stream(settings)
    await publish(settings, 1)
    assert "weekly" in pcm(settings, "schedule", "list").stdout
    rebuilt = pcm(settings, "history", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    await catch_up(settings, history)
    with query_jobs(history) as asked:
        (kept,) = asked.records("schedule", "weekly")
        assert asked.gaps() == []
    assert kept.kind == "schedule"


async def _new_stream(settings: HistorySettings, arguments: dict[str, int] | None = None) -> None:
    async with connect(settings, "test") as connection, connection.channel() as channel:
        await channel.queue_delete(topology.REPORTS)
        await topology.apply(channel)
        await channel.queue_delete(topology.REPORTS)
        plain = next(queue for queue in topology.central_queues() if queue.name == topology.REPORTS)
        queue = await channel.declare_queue(
            plain.name, durable=True, arguments={**plain.arguments, **(arguments or {})}
        )
        for exchange, key in plain.bindings:
            await queue.bind(exchange, key)


async def test_old_jobs_are_forgotten(settings: HistorySettings, history: Engine) -> None:
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        publisher = await Publisher.open(connection)
        made = datetime.now(UTC) - timedelta(days=400)
        job = Job(command=Command(argv=("true",)), targets=(everyone,), created_at=made)
        await stream.append(publisher, f"job.{job.id}", job.body(), kind="job")
        report = _report(job, "hist-1", State.SUCCEEDED)
        await stream.append(publisher, "succeeded.hist-1.service", report.body(), kind="report")
    (newer,) = await publish(settings, 1)
    await catch_up(settings, history)
    with query_jobs(history) as asked:
        known = {row.id for row in asked.rows()}
    assert newer.id in known
    assert job.id not in known
    with history.connect() as connection:
        for table in (tables.reports, tables.outcomes, tables.results):
            left = connection.execute(select(table).where(table.c.job_id == job.id)).all()
            assert left == []


async def test_a_broker_that_stops_is_waited_for(
    settings: HistorySettings, history: Engine, own_node: Node, tmp_path: Path
) -> None:
    await publish(settings, 1)
    with collector(settings, tmp_path / "log") as running:
        running.wait_for("collector.up_to_date")
        own_node.shut_down()
        running.wait_for("collector.retrying")
        with pytest.raises(Unreachable):
            await catch_up(settings, history)
        own_node.start()
        (job,) = await _published_at_last(settings)
        await until(lambda: succeeded(history, job) == len(NAMES))


async def _published_at_last(settings: HistorySettings) -> list[Job]:
    """Publish once a broker that has just started has its stream, too."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return await publish(settings, 1)
        except (BrokerError, ChannelNotFoundEntity):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("nonsense", 2),
        ("sqlite://", 2),
        ("mysql://root@127.0.0.1/test", 2),
        ("sqlite:////proc/none/history.db", 2),
        ("postgresql://nobody@127.0.0.1:1/test", 1),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_that_names_it(
    node: Broker, url: str, status: int
) -> None:
    settings = HistorySettings(amqp_url=(node.url,), history_url=url)
    for words in (("history", "status"), ("history", "rebuild")):
        done = pcm(settings, *words)
        assert done.returncode == status, done
        assert len(done.stderr.splitlines()) == 1
        assert "PCM_HISTORY_URL" in done.stderr


def test_what_is_no_database_is_reported_with_the_remedy(node: Broker, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(os.urandom(8192))
    done = pcm(
        HistorySettings(amqp_url=(node.url,), history_url=f"sqlite:///{path}"), "history", "status"
    )
    assert done.returncode == 1
    assert "not a database: restore it from a copy, or set another PCM_HISTORY_URL" in done.stderr
