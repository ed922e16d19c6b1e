"""A history that was read of one broker and virtual host is not used at another, nor forgotten."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from broker import History, HistoryError
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history import schema as tables
from broker.history.collector import catch_up
from broker.history.engine import engine_of, open_history
from broker.history.projection.upserts import RANK
from broker.history.queries.jobs import query_jobs
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import Command, Job, everyone
from tests.support import programs
from tests.support.postgresql import schema
from tests.support.programs import BIN
from tests.support.rabbitmq import Broker, Node
from tests.support.workstation import AgentProcess

_numbers = itertools.count(1)


@pytest.fixture
def here(node: Broker) -> Iterator[Broker]:
    """The virtual host that the history is read of."""
    with node.own_virtual_host(f"here-{next(_numbers)}-{os.getpid()}") as host:
        yield host


@pytest.fixture
def there(node: Broker) -> Iterator[Broker]:
    """Another one, in which there is nothing."""
    with node.own_virtual_host(f"there-{next(_numbers)}-{os.getpid()}") as host:
        yield host


def settings_of(broker: Broker, folder: Path) -> HistorySettings:
    return HistorySettings(amqp_url=(broker.url,), history_url=f"sqlite:///{folder}/history.db")


def environment(settings: HistorySettings) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "PCM_AMQP_URL": settings.amqp_url[0],
        "PCM_HISTORY_URL": settings.history_url,
    }


def pcm(settings: HistorySettings, *words: str) -> programs.Done:
    return programs.run("pcm", words, environment(settings))


async def sent(settings: HistorySettings) -> Job:
    """Put a job into the stream."""
    job = Job(command=Command(argv=("true",), background=True), targets=(everyone,))
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        publisher = await Publisher.open(connection)
        await stream.append(publisher, f"job.{job.id}", job.body(), kind="job")
    return job


def content(url: str) -> dict[str, list[str]]:
    """Return all that a history holds, and how far it was read."""
    engine = engine_of(url)
    with engine.connect() as connection:
        found = {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in (tables.reading, *tables.CONTENT)
        }
    engine.dispose()
    return found


def noted(engine: Engine) -> tuple[str, str]:
    with engine.connect() as connection:
        columns = (tables.reading.c.cluster, tables.reading.c.virtual_host)
        cluster, host = connection.execute(select(*columns)).one()
        return cluster, host


async def test_it_is_refused_at_another_virtual_host(
    here: Broker, there: Broker, tmp_path: Path
) -> None:
    ours, wrong = settings_of(here, tmp_path), settings_of(there, tmp_path)
    job = await sent(ours)
    assert pcm(ours, "jobs").returncode == 0
    before = content(ours.history_url)
    cluster = json.loads(pcm(ours, "history", "status", "--json").stdout)["cluster"]
    for words in (
        ("jobs",),
        ("show", job.id),
        ("workstations",),
        ("rerun", job.id),
        ("schedule", "list"),
        ("schedule", "run"),
        ("history", "rebuild", "--yes"),
        ("collect",),
    ):
        done = pcm(wrong, *words)
        assert done.returncode == 2, (words, done)
        (line,) = done.stderr.splitlines()[-1:]
        assert "Traceback" not in done.stderr
        for part in (
            f"was read from virtual host {here.virtual_host} of {cluster}, ",
            f"leads to virtual host {there.virtual_host} of {cluster}: ",
            "set another PCM_HISTORY_URL",
        ):
            assert part in line
    with pytest.raises(HistoryError, match="set another PCM_HISTORY_URL"), History.read(wrong):
        pass
    assert content(ours.history_url) == before
    assert there.ctl("list_queues", "-p", there.virtual_host, "name").split() in ([], ["name"])
    assert pcm(ours, "show", job.id).returncode == 0


async def test_it_is_refused_too_where_a_collector_keeps_it(
    here: Broker, there: Broker, tmp_path: Path
) -> None:
    ours, wrong = settings_of(here, tmp_path), settings_of(there, tmp_path)
    await sent(ours)
    running = AgentProcess("collect", environment(ours), tmp_path / "ours", (BIN / "pcm",))
    try:
        running.wait_for("collector.up_to_date")
        asked = pcm(wrong, "jobs")
        assert asked.returncode == 2
        assert "set another PCM_HISTORY_URL" in asked.stderr
        with pytest.raises(HistoryError, match="set another PCM_HISTORY_URL"), History.read(wrong):
            pass
        other = AgentProcess("collect", environment(wrong), tmp_path / "wrong", (BIN / "pcm",))
        assert other.process.wait(60) == 2
        assert "set another PCM_HISTORY_URL" in other.log.read_text()
        assert pcm(ours, "jobs").returncode == 0
    finally:
        running.end()


def test_it_tells_what_it_was_read_of(here: Broker, tmp_path: Path) -> None:
    settings = settings_of(here, tmp_path)
    assert "read from   no broker yet\n" in pcm(settings, "history", "status").stdout
    pcm(settings, "jobs")
    status = json.loads(pcm(settings, "history", "status", "--json").stdout)
    assert status["virtual_host"] == here.virtual_host
    name = here.ctl("eval", "rabbit_nodes:cluster_name().").strip().strip('<>"')
    assert status["cluster"] == name
    line = f"read from   virtual host {here.virtual_host} of {name}\n"
    assert line in pcm(settings, "history", "status").stdout


def test_a_cluster_of_another_name_is_another_broker(own_node: Node, tmp_path: Path) -> None:
    settings = settings_of(own_node, tmp_path)
    own_node.ctl("set_cluster_name", "paris")
    assert pcm(settings, "jobs").returncode == 0
    own_node.ctl("set_cluster_name", "london")
    done = pcm(settings, "jobs")
    assert done.returncode == 2
    assert "was read from virtual host / of paris, " in done.stderr
    assert "leads to virtual host / of london: set another PCM_HISTORY_URL\n" in done.stderr
    own_node.ctl("set_cluster_name", "paris")
    assert pcm(settings, "jobs").returncode == 0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/migrated.db"
    else:
        with schema() as made:
            yield made


async def test_one_of_the_former_version_is_read_on_where_it_was(here: Broker, url: str) -> None:
    settings = HistorySettings(amqp_url=(here.url,), history_url=url)
    engine = open_history(url)
    first = await sent(settings)
    await catch_up(settings, engine)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE reading DROP COLUMN cluster",
            "ALTER TABLE reading DROP COLUMN virtual_host",
            "ALTER TABLE reading RENAME COLUMN cleaned_at TO kept_at",
            "DROP INDEX rejected_digests",
            "DROP INDEX unpublished",
            "ALTER TABLE rejected_entries RENAME COLUMN published TO told",
            "ALTER TABLE rejected_entries RENAME TO forgeries",
            "CREATE INDEX digests ON forgeries (digest)",
            "CREATE INDEX untold ON forgeries (told)",
            "ALTER TABLE agents DROP COLUMN revoked_at",
            "ALTER TABLE agents DROP COLUMN queue_new_at",
            "ALTER TABLE agents DROP COLUMN woke_at",
            "ALTER TABLE agents RENAME COLUMN policy TO windows",
            *(f"ALTER TABLE results DROP COLUMN {name}" for name in RANK),
            "DROP TABLE early",
            "DROP TABLE machines",
            "UPDATE reading SET version = 2",
        ):
            connection.execute(text(statement))
    engine.dispose()
    engine = open_history(url)
    assert noted(engine) == ("", "")
    second = await sent(settings)
    await catch_up(settings, engine)
    cluster, host = noted(engine)
    assert cluster
    assert host == here.virtual_host
    with query_jobs(engine) as asked:
        assert {row.id for row in asked.rows()} == {first.id, second.id}
        assert asked.gaps() == []
    engine.dispose()
