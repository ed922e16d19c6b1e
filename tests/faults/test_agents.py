"""Agents under broker faults: they reconnect by themselves, and each job runs once."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from schemas import State
from tests.support.faults import counting, held, logged_once, ran_once, succeeded_once, works
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Node, free_port
from tests.support.steering import check_ins
from tests.support.waiting import LIMIT, Gate, until
from tests.support.workstation import AgentProcess, Workstation, final, follow


@pytest.fixture(scope="module")
def node(own_node: Node) -> Node:
    """The broker that suffers here."""
    return own_node


@pytest.fixture
def settings(node: Node) -> DispatcherSettings:
    """Settings of a dispatcher that waits for the broker to come back."""
    return DispatcherSettings(
        amqp_url=(node.url,), patience=timedelta(seconds=LIMIT), settle=timedelta(seconds=0.5)
    )


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file to which commands add a line."""
    return tmp_path / "ran"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds commands."""
    return Gate(tmp_path / "go")


@pytest.mark.parametrize("end", [Node.shut_down, Node.kill])
async def test_the_broker_stops_and_starts_again(
    end: Callable[[Node], None],
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    """Running commands continue, and accepted jobs run at their time."""
    service = ws.start("service", concurrency="1")
    interactive = ws.start("interactive", no_window="yes")
    node.sync()
    running, later = held(ws, ran, gate, 1), counting(ws, ran, 2)
    for job in (running, later):
        await dispatcher.dispatch(job)
    service.wait_for("job.received", count=2)
    service.wait_for("job.started")
    await asyncio.to_thread(end, node)
    gate.open()
    try:
        await asyncio.to_thread(service.wait_for, "job.ended", 2)
    finally:
        await asyncio.to_thread(node.start)
    for agent in (service, interactive):
        await asyncio.to_thread(agent.wait_for, "broker.connected", 2)
    await works(ws, dispatcher)
    await succeeded_once(settings, [running, later])
    ran_once(ran, [1, 2])
    for agent in (service, interactive):
        logged_once(agent)


async def test_connections_cut_in_the_middle_of_frames(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, node: Node, ran: Path
) -> None:
    """Nothing is lost and nothing is run twice, at any point of a cut."""
    sizes = random.Random(7)
    jobs = [counting(ws, ran, number) for number in range(120)]
    with Proxy(node.port) as proxy:
        service = ws.start("service", amqp_url=proxy.url())
        for number in range(0, len(jobs), 10):
            cuts = proxy.cuts
            proxy.cut_after(sizes.choice([200, 2_000, 5_000, 10_000, 15_000]) + number)
            for job in jobs[number : number + 10]:
                await dispatcher.dispatch(job)
            await until(lambda cuts=cuts: proxy.cuts > cuts)  # type: ignore[misc]
        await succeeded_once(settings, jobs)
        ran_once(ran, range(120))
        await works(ws, dispatcher)
        logged_once(service)


async def test_the_broker_freezes(
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    """The connection to a silent broker is closed, and a report waits for the next one."""
    service = ws.start("service", amqp_url=f"{node.url}?heartbeat=1")
    job = await dispatcher.dispatch(held(ws, ran, gate))
    service.wait_for("job.started")
    node.freeze()
    gate.open()
    try:
        await asyncio.to_thread(service.wait_for, "job.ended")
        await asyncio.to_thread(service.wait_for, "broker.lost", 2)  # it was tried again
    finally:
        node.thaw()
    await asyncio.to_thread(service.wait_for, "broker.connected", 2)
    await works(ws, dispatcher)
    await succeeded_once(settings, [job])
    ran_once(ran, [1])
    logged_once(service)


@contextmanager
def alarm(node: Node, kind: str) -> Iterator[None]:
    """Let the broker run low."""
    low, well = {
        "disk": (["set_disk_free_limit", "9000000GB"], ["set_disk_free_limit", "1MB"]),
        "memory": (["set_vm_memory_high_watermark", "0.0001"],
                   ["set_vm_memory_high_watermark", "0.4"]),
    }[kind]  # fmt: skip
    node.ctl(*low)
    try:
        yield
    finally:
        node.ctl(*well)


def takes_nothing(ws: Workstation) -> None:
    """A job cannot be sent now, and `pcm send` says why."""
    to = ["--to", str(ws.target), "--background"]
    sent = ws.run("pcm", "send", *to, "--", "true", patience="1s")
    assert sent.returncode == 3
    assert sent.stdout == ""
    *trying, last = sent.stderr.splitlines()
    assert last == (
        "pcm: the broker is unreachable: "
        "the broker accepts no messages: is its disk space or memory low?"
    )
    assert len(trying) <= 1


def stayed(agent: AgentProcess) -> None:
    """It stayed connected, and logged once that the broker blocked it."""
    assert len(agent.events("broker.connected")) == 1
    assert len(agent.events("broker.blocked")) == 1
    assert not agent.events("broker.lost")


async def test_the_broker_runs_out_of_disk(
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    """The broker accepts no messages: the agent works, stays connected, and reports afterwards."""
    service = ws.start("service", watch_interval="1s")
    job = await dispatcher.dispatch(held(ws, ran, gate))
    service.wait_for("job.started")
    with alarm(node, "disk"):
        await asyncio.to_thread(takes_nothing, ws)
        gate.open()
        await asyncio.to_thread(service.wait_for, "job.ended")
        await asyncio.to_thread(service.wait_for, "broker.blocked")
        ran_once(ran, [1])
        assert not service.events("broker.unblocked")
    await asyncio.to_thread(service.wait_for, "broker.unblocked")
    await works(ws, dispatcher)
    await succeeded_once(settings, [job])
    ran_once(ran, [1])
    stayed(service)


async def test_an_agent_starts_while_the_broker_is_out_of_memory(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, node: Node, ran: Path
) -> None:
    """It has reports, a job and unreadable messages, and processes all of them."""
    former = ws.start("service")
    job = await dispatcher.dispatch(ws.job("sleep", "600", background=True))
    former.wait_for("job.started")
    former.end(signal.SIGKILL)
    await unreadable(node, ws, 3)
    waiting = await dispatcher.dispatch(counting(ws, ran, 2))
    with alarm(node, "memory"):
        service = ws.start("service", watch_interval="1s")
        await asyncio.to_thread(takes_nothing, ws)  # takes longer than a call may take
        await asyncio.to_thread(service.wait_for, "job.ended", 2)
        await asyncio.to_thread(service.wait_for, "broker.blocked")
        ran_once(ran, [2])
    await asyncio.to_thread(service.wait_for, "broker.unblocked")
    await works(ws, dispatcher)
    await succeeded_once(settings, [waiting])
    assert final(await follow(dispatcher, job)).state is State.INTERRUPTED
    ran_once(ran, [2])
    stayed(service)


async def test_a_check_in_that_the_broker_does_not_take_blocks_nothing(
    ws: Workstation, settings: DispatcherSettings, node: Node
) -> None:
    with alarm(node, "memory"):
        service = ws.start("service", watch_interval="1s", check_in="1s")
        leaving = ws.start("interactive", watch_interval="1s", check_in="1s")
        await asyncio.to_thread(takes_nothing, ws)  # takes longer than a call may take
        assert await asyncio.to_thread(leaving.end) == 0
        assert not leaving.events("outbox.unsent")
    async with check_ins(settings, ws) as heard:
        after = datetime.now(UTC)
        while not (said := await heard.next()).up or said.at < after:
            pass
    for agent in (service, leaving):
        assert not agent.events("broker.lost")
        assert not agent.events("check_in.failed")


async def unreadable(node: Node, ws: Workstation, count: int) -> None:
    """Put messages into a service agent's queue that it cannot read."""
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.JOBS)
        for _ in range(count):
            key = f"background.optional.workstation.{ws.name}"
            await exchange.publish(aio_pika.Message(b"?", type="job"), key)


_CONSUMING = "[{consumer_count, N}] <- [rabbit_channel:info(P, [consumer_count])], N > 0"


@pytest.mark.parametrize("which", [_CONSUMING, "true"], ids=["the consumer's", "all"])
async def test_channels_go_behind_our_back(
    which: str,
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    """The connection stays open without a consumer; only the check of the consumer detects it."""
    service = ws.start("service", watch_interval="1s")
    job = await dispatcher.dispatch(held(ws, ran, gate))
    service.wait_for("job.started")
    node.ctl("eval", f"[rabbit_channel:shutdown(P) || P <- rabbit_channel:list(), {which}].")
    gate.open()
    await asyncio.to_thread(service.wait_for, "broker.connected", 2)
    await works(ws, dispatcher)
    await succeeded_once(settings, [job])
    ran_once(ran, [1])
    logged_once(service)


async def test_the_queue_is_deleted(
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    service = ws.start("service")
    job = await dispatcher.dispatch(held(ws, ran, gate))
    service.wait_for("job.started")
    node.delete_queue(f"pcm.service.{ws.name}")
    gate.open()
    await asyncio.to_thread(service.wait_for, "broker.connected", 2)
    await works(ws, dispatcher)
    await succeeded_once(settings, [job])
    ran_once(ran, [1])
    logged_once(service)


async def test_the_broker_closes_the_channel_of_a_slow_consumer(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, node: Node, ran: Path
) -> None:
    """Delivered messages are delivered again; the same id is the same job."""
    if node.version >= (4, 3):
        pytest.skip("from RabbitMQ 4.3 on, classic queues have no consumer timeout")
    for name, value in {"consumer_timeout": 1000, "channel_tick_interval": 500}.items():
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    service = ws.start("service", amqp_url=f"{node.url}?heartbeat=0")
    try:
        service.process.send_signal(signal.SIGSTOP)
        jobs = [counting(ws, ran, number) for number in range(3)]
        for job in jobs:
            await dispatcher.dispatch(job)
        await until(lambda: "timed out waiting for" in node.log)
    finally:
        for name, value in {"consumer_timeout": 1_800_000, "channel_tick_interval": 60_000}.items():
            node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
        service.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(service.wait_for, "broker.connected", 2)
    await works(ws, dispatcher)
    await succeeded_once(settings, jobs)
    ran_once(ran, range(3))
    logged_once(service)


async def test_the_password_is_changed_and_changed_back(
    ws: Workstation, settings: DispatcherSettings, node: Node, ran: Path, gate: Gate
) -> None:
    """It is not tried more often than the pause allows: repeated wrong logins lock accounts."""
    with Proxy(node.port) as proxy:
        node.add_user(ws.name, "first")
        url = proxy.url(ws.name, "first")
        service = ws.start("service", amqp_url=url, login_pause="1s")
        async with Dispatcher.connect(settings) as dispatcher:
            job = await dispatcher.dispatch(held(ws, ran, gate))
            service.wait_for("job.started")
            node.ctl("change_password", ws.name, "second")
            before, began = proxy.accepted, time.monotonic()
            node.ctl("close_all_user_connections", ws.name, "test")
            gate.open()
            await until(lambda: proxy.accepted >= before + 2)
            # One came at once, and the other after a pause.
            assert proxy.accepted - before <= 1 + (time.monotonic() - began)
            node.ctl("change_password", ws.name, "first")
            await asyncio.to_thread(service.wait_for, "broker.connected", 2)
            await works(ws, dispatcher)
        await succeeded_once(settings, [job])
        ran_once(ran, [1])
        logged_once(service)
        refused = [
            event
            for event in service.events("broker.lost")
            if "refused the login" in event["reason"]
        ]
        assert len(refused) == 1


async def test_the_first_of_two_brokers_refuses(ws: Workstation, dispatcher: Dispatcher) -> None:
    url = ws.environment["PCM_AMQP_URL"]
    service = ws.start("service", amqp_url=f"amqp://127.0.0.1:{free_port()}/,{url}")
    await works(ws, dispatcher)
    assert not service.events("broker.lost")


async def test_the_first_of_two_brokers_lets_it_in_and_no_further(
    ws: Workstation, dispatcher: Dispatcher, node: Node
) -> None:
    """A node that is cut off from its cluster accepts connections, too, and is left."""
    node.ctl("add_user", "outsider", "secret")
    node.ctl("set_permissions", "outsider", "^$", "^$", "^$")
    with Proxy(node.port) as proxy:
        first = proxy.url("outsider", "secret")
        service = ws.start("service", amqp_url=f"{first},{node.url}")
        await works(ws, dispatcher)
    (lost,) = service.events("broker.lost")
    assert "refused for user 'outsider'" in lost["reason"]


async def test_the_first_of_two_brokers_falls_silent(
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
    gate: Gate,
) -> None:
    """During work, and then for each new connection."""
    with Proxy(node.port) as proxy:
        service = ws.start("service", amqp_url=f"{proxy.url(heartbeat=1)},{node.url}")
        job = await dispatcher.dispatch(held(ws, ran, gate))
        service.wait_for("job.started")
        proxy.freeze()
        gate.open()
        await asyncio.to_thread(service.wait_for, "broker.connected", 2)
        first, second = service.events("broker.connected")
        assert first["broker"] == f"127.0.0.1:{proxy.port}"
        assert second["broker"] == f"127.0.0.1:{node.port}"
        await works(ws, dispatcher)
        await succeeded_once(settings, [job])
        ran_once(ran, [1])
        logged_once(service)


async def test_all_brokers_are_tried_and_named(ws: Workstation) -> None:
    ports = [free_port(), free_port()]
    urls = ",".join(f"amqp://127.0.0.1:{port}/" for port in ports)
    service = ws.start("service", connected=False, amqp_url=urls)
    service.wait_for("broker.lost")
    (event,) = service.events("broker.lost")
    assert all(f"127.0.0.1:{port}" in event["reason"] for port in ports)


_ALL = ["pcm.jobs", "pcm.reports", "pcm.dead"]


@pytest.mark.parametrize(
    ("exchanges", "queues"),
    [(_ALL, ["pcm.reports", "pcm.dead"]), (["pcm.jobs"], []), (["pcm.reports"], []),
     ([], ["pcm.reports"])],
    ids=["all", "jobs", "reports", "stream"],
)  # fmt: skip
async def test_the_topology_is_deleted(
    exchanges: list[str],
    queues: list[str],
    ws: Workstation,
    settings: DispatcherSettings,
    node: Node,
    ran: Path,
) -> None:
    """The agents declare it again, also if they have nothing to report when it is deleted."""
    service = ws.start("service", watch_interval="1s")
    interactive = ws.start("interactive", no_window="yes", watch_interval="1s")
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        for name in exchanges:
            await channel.exchange_delete(name)
        for name in queues:
            await channel.queue_delete(name)
    # The first to connect declares it again; the others must notice that their bindings are gone.
    async with Dispatcher.connect(settings) as dispatcher:
        await until(lambda: _bound(node, ws))
        job = await dispatcher.dispatch(counting(ws, ran, 1))
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        offer = await dispatcher.dispatch(ws.job("true", background=False))
        await asyncio.to_thread(interactive.wait_for, "job.offered")
        await dispatcher.cancel(offer.id)
        await follow(dispatcher, offer)
    ran_once(ran, [1])
    for agent in (service, interactive):
        logged_once(agent)


def _bound(node: Node, ws: Workstation) -> bool:
    found = node.ctl("list_bindings", "source_name", "destination_name")
    queues = (f"pcm.service.{ws.name}", f"pcm.interactive.{ws.name}.ada", "pcm.reports")
    return all(
        f"{source}\t{queue}\n" in found
        for source, queue in zip(("pcm.jobs", "pcm.jobs", "pcm.reports"), queues, strict=True)
    )


async def test_the_bindings_of_the_stream_are_taken_away(
    ws: Workstation, settings: DispatcherSettings, node: Node, ran: Path
) -> None:
    """Exchange and stream exist, but are not bound; the next publisher binds them again."""
    ws.start("service")
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        for name in ("pcm.reports", "pcm.dead"):
            queue = await channel.get_queue(name)
            for key in (*topology.STREAM_KEYS, topology.DEAD_KEY):
                await queue.unbind("pcm.reports", key)
    async with Dispatcher.connect(settings) as dispatcher:
        job = await dispatcher.dispatch(counting(ws, ran, 1))
        await succeeded_once(settings, [job])
    ran_once(ran, [1])
