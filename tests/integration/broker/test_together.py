"""Messages that go out, and come in, together: none is taken for another, none is lost."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings, Progress, Unreachable, Unroutable
from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history.engine import open_history
from broker.history.queries.jobs import query_jobs
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Job, State, everyone, group, workstation
from schemas.orders.signature import read_signatures
from tests.integration.broker.test_batch import job
from tests.integration.broker.test_dispatcher import declare, drain
from tests.support.collected import collected
from tests.support.keys import Keys
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker, Node
from tests.support.waiting import until
from tests.support.workstation import Workstation


def to(publisher: Publisher, name: str, body: bytes = b"") -> Outgoing:
    """Return a message for a workstation."""
    key = f"background.optional.workstation.{name}"
    return publisher.outgoing(topology.JOBS, key, body, kind="probe", unroutable_fails=True)


async def recorded(settings: DispatcherSettings, jobs: list[Job]) -> list[StreamEntry]:
    """Return the stream's entries that record jobs."""
    ids = [job.id.encode() for job in jobs]
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        entries = [entry async for entry in stream.read_all(connection, publisher, None)]
    return [
        entry for entry in entries if entry.kind == "job" and any(id_ in entry.body for id_ in ids)
    ]


async def test_what_comes_back_is_reported_of_that_message(
    settings: DispatcherSettings, node: Broker
) -> None:
    await declare(node, "together")
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        names = ["together", "nowhere", "together", "nobody", "together"]
        found = await publisher.publish_all([to(publisher, name) for name in names])
        assert [isinstance(error, Unroutable) for error in found] == [
            name != "together" for name in names
        ]
        assert "workstation.nobody: no queue is bound" in str(found[3])
        assert await publisher.publish_all([]) == []


async def test_bodies_of_any_size_go_out_and_come_in(settings: DispatcherSettings) -> None:
    """Over a frame's size they are cut up; of nothing there is no frame."""
    bodies = [b"", b"x", b"y" * 131_064, b"z" * 300_000, b"", b"end"]
    async with Dispatcher.connect(settings), connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        messages = [
            publisher.outgoing(topology.REPORTS, "mark.x", body, kind="size", unroutable_fails=True)
            for body in bodies
        ]
        await stream.append_all(publisher, messages)
        entries = [entry async for entry in stream.read_all(connection, publisher, None)]
    assert [entry.body for entry in entries if entry.kind == "size"][-len(bodies) :] == bodies


async def test_what_ends_the_channel_is_reported_to_all(settings: DispatcherSettings) -> None:
    async with Dispatcher.connect(settings), connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        wrong = publisher.outgoing("pcm.no-such-exchange", "x", b"", kind="probe")
        calls = publisher.publish_all([wrong]), publisher.publish_all([to(publisher, "x")])
        for found in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(found, Unreachable)
            assert "no exchange 'pcm.no-such-exchange'" in str(found)
        with pytest.raises(Unreachable) as later:
            await publisher.publish_all([to(publisher, "x")])
        assert "no answer" not in str(later.value)  # it was not even asked


async def test_who_gives_up_leaves_nothing_that_others_trip_over(
    own_node: Node, settings: DispatcherSettings
) -> None:
    await declare(own_node, "together")
    with Proxy(own_node.port) as proxy:
        slow = settings.model_copy(update={"amqp_url": (proxy.url(),)})
        async with connect(slow, "test") as connection:
            publisher = await Publisher.open(connection)
            proxy.freeze()
            message = to(publisher, "nowhere")
            task = asyncio.create_task(publisher.publish_all([message]))
            await until(lambda: proxy.held() > 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            former = proxy.held()
            again = asyncio.create_task(publisher.publish_all([to(publisher, "together"), message]))
            await until(lambda: proxy.held() > former)
            proxy.thaw()
            first, second = await again
    assert first is None
    assert isinstance(second, Unroutable)


async def test_jobs_that_share_a_record_are_each_found(
    dispatcher: Dispatcher, settings: DispatcherSettings, node: Broker, tmp_path: Path
) -> None:
    """By cancelling, by following, and by the history."""
    await declare(node, "together")
    jobs = [job("together") for _ in range(120)]
    assert [sent.error async for sent in dispatcher.dispatch_all(jobs)] == [None] * len(jobs)
    assert 1 < len(await recorded(settings, jobs)) < 10
    asked = jobs[77]
    await dispatcher.cancel(asked.id, "mistake")
    assert (await drain(node, "together")).count(asked.id) == 2
    progress = Progress(asked.id)
    async for _ in dispatcher.follow(asked.id, progress):
        pass
    assert progress.cancellation is not None
    await asyncio.to_thread(collected, node.url, tmp_path / "history.db")
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    with query_jobs(engine) as known:
        rows = {row.id: row for row in known.rows(most=1000)}
    assert all(rows[job.id].command == str(job.command) for job in jobs)
    assert [rows[job.id].cancelled_at is not None for job in jobs] == [job is asked for job in jobs]
    engine.dispose()


async def test_what_is_signed_has_a_record_of_its_own(
    settings: DispatcherSettings, node: Broker, tmp_path: Path
) -> None:
    """Signed are a message's very bytes."""
    await declare(node, "together")
    keys = Keys(tmp_path)
    keys.trust("ada")
    signing = settings.model_copy(update={"signing_key": keys.private["ada"]})
    jobs = [job("together") for _ in range(5)]
    async with Dispatcher.connect(signing) as dispatcher:
        assert [sent.error async for sent in dispatcher.dispatch_all(jobs)] == [None] * len(jobs)
    entries = await recorded(settings, jobs)
    assert [entry.body for entry in entries] == [job.body() for job in jobs]
    assert all(read_signatures(entry.signatures) for entry in entries)
    assert len(await drain(node, "together")) == len(jobs)


async def test_large_jobs_do_not_share_a_record_over_any_limit(
    dispatcher: Dispatcher, settings: DispatcherSettings, node: Broker
) -> None:
    await declare(node, "together")
    jobs = [job("together", comment="", command={"argv": ("x" * 100_000,)}) for _ in range(7)]
    assert [sent.error async for sent in dispatcher.dispatch_all(jobs)] == [None] * len(jobs)
    entries = await recorded(settings, jobs)
    assert [len(entry.records()) for entry in entries] == [2, 2, 2, 1]
    assert len(await drain(node, "together")) == len(jobs)


async def test_some_of_one_turn_have_many_targets(dispatcher: Dispatcher, node: Broker) -> None:
    """Of each, the targets without a queue are named."""
    await declare(node, "together", "lab")
    await declare(node, "together-2")
    ours = [workstation("together"), workstation("together-2")]
    jobs = [
        job(targets=(ours[0], group("lab"))),
        job(targets=(ours[0], group("none"), workstation("nowhere"))),
        job(targets=(ours[1],)),
        job(targets=(ours[0], ours[1], group("none"))),
        job(targets=(everyone, ours[1])),
    ]
    errors = [str(error) async for _, error in dispatcher.dispatch_all(jobs)]
    lost = "targets: no workstation is bound to {}; nothing was sent"
    assert errors == [
        "None",
        lost.format("group:none, workstation:nowhere"),
        "None",
        lost.format("group:none"),
        "None",
    ]
    assert sorted(await drain(node, "together")) == sorted([jobs[0].id, jobs[4].id])
    assert sorted(await drain(node, "together-2")) == sorted([jobs[2].id, jobs[4].id])


async def test_a_lost_ledger_is_made_good_from_a_record_of_many(
    dispatcher: Dispatcher, ws: Workstation
) -> None:
    """The stream has each accepted job, also of a batch in one message."""
    service = ws.start("service")
    due = datetime.now(UTC) + timedelta(hours=1)
    jobs = [ws.job("true", background=True, mandatory_at=due) for _ in range(3)]
    assert [sent.error async for sent in dispatcher.dispatch_all(jobs)] == [None] * len(jobs)
    service.wait_for("job.received", count=len(jobs))
    for one in jobs:
        assert (await anext(dispatcher.follow(one.id))).state is State.RECEIVED
    service.end(9)
    (ws.state_dir / "service" / "ledger.db").write_bytes(b"no ledger at all")
    (ws.state_dir / "service" / "ledger.db-wal").unlink(missing_ok=True)
    service = ws.start("service")
    service.wait_for("ledger.repaired")
    assert service.events("ledger.repaired")[0]["open"] == len(jobs)
