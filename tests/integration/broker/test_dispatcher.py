"""Jobs are stored before `dispatch` returns, reach each target once, or fail by name."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest

from broker import (
    Dispatcher,
    DispatcherSettings,
    Progress,
    UnknownJob,
    Unreachable,
    Unroutable,
    send,
    send_and_wait,
)
from broker.amqp import publisher, topology
from broker.amqp.connection import connect
from broker.amqp.topology import AgentKind
from broker.stream import stream
from schemas import Cancellation, Command, Job, State, group, workstation
from tests.support.programs import ROOT
from tests.support.queues import until_queue
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT, Gate
from tests.support.workstation import Workstation, final, follow

EXAMPLES = ROOT / "docs" / "examples"


async def declare(node: Broker, name: str, *groups: str) -> None:
    """Declare a workstation's service queue, as its agent would."""
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        await topology.ensure(connection)
        queue = topology.agent_queue(AgentKind.SERVICE, name, "", groups, "classic", 600_000)
        await topology.declare_queue(channel, queue)


async def drain(node: Broker, name: str) -> list[str]:
    """Return the ids of the jobs in a workstation's service queue, and empty it."""
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        queue = await channel.get_queue(topology.queue_name(AgentKind.SERVICE, name))
        found = []
        while message := await queue.get(fail=False):
            await message.ack()
            if message.type != "probe":
                found.append(message.message_id or "")
        return found


async def test_a_job_for_many_is_one_copy_for_each(dispatcher: Dispatcher, node: Broker) -> None:
    """Q154861: one publish reaches all; who is addressed twice still gets one copy."""
    await declare(node, "many-1", "many")
    await declare(node, "many-2")
    job = Job(
        command=Command(argv=("true",)),
        targets=(group("many"), workstation("many-1"), workstation("many-2")),
    )
    await dispatcher.dispatch(job)
    assert await drain(node, "many-1") == [job.id]
    assert await drain(node, "many-2") == [job.id]


async def test_a_target_without_a_bound_queue_is_named(
    dispatcher: Dispatcher, node: Broker
) -> None:
    await declare(node, "bound-1", "bound")
    for targets, named in (
        ((workstation("nowhere"),), "workstation:nowhere"),
        ((group("bound"), group("nobody"), workstation("nowhere")),
         "group:nobody, workstation:nowhere"),
    ):  # fmt: skip
        job = Job(command=Command(argv=("true",)), targets=targets)
        with pytest.raises(Unroutable, match=f"bound to {named}; nothing was sent"):
            await dispatcher.dispatch(job)
    assert await drain(node, "bound-1") == []


@pytest.mark.full
async def test_more_targets_than_fit_into_one_header(dispatcher: Dispatcher, node: Broker) -> None:
    """Split by bytes: a larger header would close the connection."""
    await declare(node, "split-first")
    await declare(node, "split-last")
    connection = await aio_pika.connect(node.url)
    names = [f"split-{number:04}-{'x' * 40}" for number in range(1500)]
    async with connection, connection.channel() as channel:
        queue = await channel.get_queue(
            topology.queue_name(AgentKind.SERVICE, "split-first"), ensure=False
        )
        for name in names:
            await queue.bind(topology.JOBS, f"*.*.workstation.{name}")
    targets = tuple(map(workstation, ["split-first", *names, "split-last"]))
    job = Job(command=Command(argv=("true",)), targets=targets)
    assert sum(map(len, topology.routing_keys(job))) > 120_000
    await dispatcher.dispatch(job)
    assert set(await drain(node, "split-first")) == {job.id}
    assert await drain(node, "split-last") == [job.id]


async def test_a_job_over_the_size_limit_is_refused(dispatcher: Dispatcher) -> None:
    job = Job(command=Command(argv=("echo", *["x" * 100_000] * 11)), targets=(group("any"),))
    with pytest.raises(ValueError, match="over the limit of 1048576"):
        await dispatcher.dispatch(job)


async def test_an_expired_job_is_refused(dispatcher: Dispatcher) -> None:
    then = datetime.now(UTC) - timedelta(hours=1)
    job = Job(
        command=Command(argv=("true",)),
        targets=(group("any"),),
        created_at=then,
        expires_at=then + timedelta(minutes=1),
    )
    with pytest.raises(ValueError, match="expires_at: is in the past"):
        await dispatcher.dispatch(job)


async def test_queues_keep_a_job_until_its_expiry(dispatcher: Dispatcher, node: Broker) -> None:
    await declare(node, "ttl")
    expires_at = datetime.now(UTC) + timedelta(seconds=2)
    targets = (workstation("ttl"),)
    job = Job(command=Command(argv=("true",)), targets=targets, expires_at=expires_at)
    await dispatcher.dispatch(job)
    await until_queue(node, topology.queue_name(AgentKind.SERVICE, "ttl"), ready=0)
    assert datetime.now(UTC) >= expires_at


async def test_a_cancellation_follows_its_job(dispatcher: Dispatcher, node: Broker) -> None:
    await declare(node, "cancel-1", "cancel")
    await declare(node, "cancel-2")
    job = Job(command=Command(argv=("true",)), targets=(group("cancel"),), id="my-own-id")
    await dispatcher.dispatch(job)
    await dispatcher.cancel("my-own-id", "mistake")
    assert await drain(node, "cancel-1") == ["my-own-id", "my-own-id"]
    assert await drain(node, "cancel-2") == []


async def test_what_was_never_sent_cannot_be_cancelled_or_followed(dispatcher: Dispatcher) -> None:
    for job_id in ("no-such-job", Job(command=Command(argv=("x",)), targets=(group("g"),)).id):
        with pytest.raises(UnknownJob, match=job_id):
            await dispatcher.cancel(job_id)
        with pytest.raises(UnknownJob, match=job_id):
            async for _ in dispatcher.follow(job_id):
                pass


async def test_it_survives_a_lost_connection(dispatcher: Dispatcher, node: Broker) -> None:
    """A publish without a known outcome is repeated with the same id."""
    await declare(node, "lost")
    await asyncio.to_thread(node.close_connections)
    job = Job(command=Command(argv=("true",)), targets=(workstation("lost"),))
    await dispatcher.dispatch(job)
    assert set(await drain(node, "lost")) == {job.id}


def steer(node: Broker, name: str, verb: str) -> None:
    """Suspend or resume the process that is a workstation's service queue in the broker."""
    queue = topology.queue_name(AgentKind.SERVICE, name)
    named = f'rabbit_misc:r(<<"{node.virtual_host}">>, queue, <<"{queue}">>)'
    found = f"{{ok, Q}} = rabbit_amqqueue:lookup({named})"
    node.ctl("eval", f"{found}, sys:{verb}(amqqueue:get_pid(Q)).")


@pytest.mark.full
async def test_a_broker_that_takes_its_time_is_asked_once(
    dispatcher: Dispatcher, node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing a job for thousands takes long; a repeated publish would take longer."""
    await declare(node, "slow")
    monkeypatch.setattr(publisher, "CALL_LIMIT", 4.0)
    job = Job(command=Command(argv=("true",)), targets=(workstation("slow"),))
    await asyncio.to_thread(steer, node, "slow", "suspend")
    try:
        dispatching = asyncio.create_task(dispatcher.dispatch(job))
        ended, _ = await asyncio.wait({dispatching}, timeout=4.0 * 1.5)
        assert not ended  # longer than the broker may take to answer at all
    finally:
        await asyncio.to_thread(steer, node, "slow", "resume")
    await dispatching
    assert await drain(node, "slow") == [job.id]


@pytest.mark.full
async def test_a_queue_that_stores_nothing_is_reported_in_time(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare(node, "never")
    monkeypatch.setattr(publisher, "CALL_LIMIT", 1.0)
    monkeypatch.setattr(publisher, "STORE_LIMIT", 2.0)
    settings = DispatcherSettings(amqp_url=(node.url,), patience=timedelta(0))
    job = Job(command=Command(argv=("true",)), targets=(workstation("never"),))
    await asyncio.to_thread(steer, node, "never", "suspend")
    try:
        async with Dispatcher.connect(settings) as dispatcher:
            with pytest.raises(Unreachable, match=r"never: not stored in 2 s"):
                await dispatcher.dispatch(job)
    finally:
        await asyncio.to_thread(steer, node, "never", "resume")


@pytest.mark.full
async def test_a_stream_that_was_deleted_is_made_again(
    dispatcher: Dispatcher, node: Broker, ws: Workstation
) -> None:
    """Neither the job's record nor the reports are lost."""
    ws.start("service")
    await asyncio.to_thread(node.delete_queue, topology.REPORTS)
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED


@pytest.mark.full
async def test_reading_ends_when_the_broker_takes_the_consumer_away(
    settings: DispatcherSettings, node: Broker
) -> None:
    """The connection stays open: without an error, the reader would wait for ever."""
    async with Dispatcher.connect(settings):
        pass  # declares the stream
    async with (
        connect(settings, "test") as connection,
        stream.read_stream(connection, None) as entries,
        asyncio.timeout(LIMIT),
    ):
        await asyncio.to_thread(node.delete_queue, topology.REPORTS)
        with pytest.raises(Unreachable, match="was lost"):
            _ = [entry async for entry in entries]
    async with Dispatcher.connect(settings):
        pass  # makes it again


async def test_following_survives_a_lost_connection(
    dispatcher: Dispatcher, node: Broker, ws: Workstation
) -> None:
    ws.start("service")
    gate = Gate(ws.folder / "go")
    job = await dispatcher.dispatch(ws.job(gate.script, shell=True, background=True))
    states = []
    async for report in dispatcher.follow(job.id):
        states.append(report.state)
        if report.state is State.STARTED:
            await asyncio.to_thread(node.close_connections)
            gate.open()
    assert states == [State.RECEIVED, State.STARTED, State.SUCCEEDED]


async def test_all_urls_are_tried(node: Broker) -> None:
    """Q178662."""
    urls = ("amqp://127.0.0.1:1/", node.url)
    async with Dispatcher.connect(DispatcherSettings(amqp_url=urls)):
        pass


def test_scripts_that_are_not_async(ws: Workstation, settings: DispatcherSettings) -> None:
    ws.start("service")
    progress = send_and_wait(ws.job("echo", "hello", background=True), settings)
    assert progress.succeeded
    assert progress.workstations[ws.name].result is not None
    sent = send(ws.job("true", background=True), settings)
    assert sent.id


async def test_the_record_of_an_unroutable_job_says_so(dispatcher: Dispatcher) -> None:
    job = Job(command=Command(argv=("true",)), targets=(workstation("nowhere"),))
    with pytest.raises(Unroutable):
        await dispatcher.dispatch(job)
    progress = Progress(job.id)
    assert not [report async for report in dispatcher.follow(job.id, progress)]
    assert isinstance(progress.cancellation, Cancellation)
    assert "nothing was sent" in progress.cancellation.reason


@pytest.mark.full
@pytest.mark.parametrize("name", ["inventory", "cleanup", "ask_users"])
def test_the_examples_work(ws: Workstation, name: str) -> None:
    ws.start("service", groups=f"{ws.name}-group")
    ws.start("interactive", groups=f"{ws.name}-group", accept_offers="true")
    arguments = {
        "inventory": ["--to", str(ws.target)],
        "cleanup": ["--to", str(ws.target), "--folder", str(ws.folder)],
        "ask_users": [f"{ws.name}-group", "--", "echo", "hello"],
    }[name]
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        env={**ws.environment, "PCM_SETTLE": "500ms"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {
        "inventory": f"{ws.name} ",
        "cleanup": "at ",
        "ask_users": f"{ws.name}: ada ran it successfully",
    }[name]
    assert expected in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("name", ["inventory", "cleanup", "ask_users", "demo"])
def test_the_examples_help_and_send_nothing_unless_asked(ws: Workstation, name: str) -> None:
    """There is no broker here: sending would end with status 1."""
    wrong: dict[str, list[tuple[list[str], str]]] = {
        "inventory": [([], "--to"), (["--to", "x"], "not a target"), (["--to", "all", "x"], "x")],
        "cleanup": [
            ([], "--to"),
            (["/tmp"], "--to"),
            (["--to", "group:a b"], "not a name"),
            (["--to", "all", "--folder", "tmp"], "--folder"),
        ],
        "ask_users": [([], "GROUP"), (["lab"], "COMMAND"), (["a b", "--", "true"], "not a name")],
        "demo": [(["x"], "x")],
    }

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", *words],
            env={**ws.environment, "PCM_AMQP_URL": "amqp://127.0.0.1:1/", "PCM_PATIENCE": "0s"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    helped = run("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: ")
    for words, message in wrong[name]:
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
