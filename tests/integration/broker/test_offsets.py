"""An offset of the stream that belongs to no message is no gap of the history."""

import itertools
import os
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history.collector import catch_up
from broker.history.engine import open_history
from broker.history.position import Position, transact
from broker.history.queries.jobs import query_jobs
from broker.history.reader import store
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import Report, State
from tests.support.rabbitmq import Broker

_numbers = itertools.count(1)


@pytest.fixture
def here(node: Broker) -> Iterator[Broker]:
    with node.own_virtual_host(f"offsets-{next(_numbers)}-{os.getpid()}") as host:
        yield host


@pytest.fixture
def settings(here: Broker, tmp_path: Path) -> HistorySettings:
    return HistorySettings(amqp_url=(here.url,), history_url=f"sqlite:///{tmp_path}/history.db")


@pytest.fixture
def history(settings: HistorySettings) -> Iterator[Engine]:
    engine = open_history(settings.history_url)
    yield engine
    engine.dispose()


def gaps(engine: Engine) -> list[str]:
    with query_jobs(engine) as asked:
        return asked.gaps()


async def declare(settings: HistorySettings, **arguments: int) -> None:
    """Declare the topology, with small segments of the stream."""
    async with connect(settings, "test") as connection, connection.channel() as channel:
        await topology.apply(channel)
        await channel.queue_delete(topology.REPORTS)
        reports = topology.central_queues()[0]
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        await topology.declare_queue(
            channel, replace(reports, arguments={**reports.arguments, **given})
        )


async def append(settings: HistorySettings, first: int, count: int) -> None:
    """Append reports of 100 kB, each in a chunk of its own."""
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        for number in range(first, first + count):
            report = Report(
                job_id=f"job-{number}",
                workstation="ws-1",
                agent="service",
                state=State.RECEIVED,
                reason="x" * 10_000,
            )
            body = b"\n".join([report.body()] * 10)
            await stream.append(publisher, "received.ws-1.service", body, kind="report")


@pytest.mark.full
async def test_an_offset_without_a_message_is_not_reported_as_missing(
    settings: HistorySettings, history: Engine
) -> None:
    """RabbitMQ begins a segment with an entry of its own: by default each 500 MB."""
    await declare(settings, x_stream_max_segment_size_bytes=1_000_000)
    await append(settings, 0, 12)
    position = Position(0, 0, "")
    offsets = []
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        async with aclosing(stream.read_all(connection, publisher, None)) as entries:
            async for entry in entries:  # a collector gets each by itself
                position = transact(history, store, position, [entry])
                offsets.append(entry.offset)
    assert [after - before for before, after in itertools.pairwise(offsets)].count(2) == 1
    assert gaps(history) == []


@pytest.mark.full
async def test_what_the_stream_has_dropped_is_reported(
    settings: HistorySettings, history: Engine
) -> None:
    await declare(settings, x_stream_max_segment_size_bytes=1_000_000, x_max_length_bytes=3_000_000)
    await append(settings, 0, 5)
    await catch_up(settings, history)
    await append(settings, 5, 100)
    await catch_up(settings, history)
    (gap,) = gaps(history)
    assert gap.endswith("the stream had dropped it, by age or size, before it was read")
