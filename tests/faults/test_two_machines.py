"""Two machines with one name: the second receives nothing, and logs it."""

import signal
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.stream import stream
from schemas import CheckIn, State
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker
from tests.support.workstation import AgentProcess, Workstation, final, follow


@pytest.fixture
def ws(ws: Workstation) -> Workstation:
    """A workstation whose connection the broker drops three seconds after its last word."""
    ws.environment["PCM_AMQP_URL"] += "?heartbeat=1"
    return ws


def _other(ws: Workstation, folder: Path) -> Workstation:
    """Return another machine of the same name."""
    folder.mkdir()
    return Workstation(ws.name, ws.environment["PCM_AMQP_URL"], folder)


async def _ran_on(ws: Workstation, dispatcher: Dispatcher, agent: AgentProcess) -> None:
    """A job for this name is received by this agent."""
    received = len(agent.events("job.received"))
    job = ws.job("true", background=True)
    await dispatcher.dispatch(job)
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert len(agent.events("job.received")) == received + 1


@pytest.mark.full
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_the_second_machine_receives_nothing_and_says_so(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, tmp_path: Path,
    queue_type: str,
) -> None:  # fmt: skip
    other = _other(ws, tmp_path / "other")
    try:
        first = ws.start("service", queue_type=queue_type)
        second = other.start("service", connected=False, queue_type=queue_type, groups="lab")
        second.wait_for("queue.taken")
        (event,) = second.events("queue.taken")
        assert f"another machine named {ws.name} has the queue" in event["reason"]
        for _ in range(3):
            await _ran_on(ws, dispatcher, first)
        assert not second.events("job.received")
        machines = {}
        async with (
            connect(settings, "test") as connection,
            stream.read_stream(connection, None) as seen,
        ):
            async for entry in seen:
                for record in entry.records():
                    if isinstance(record, CheckIn) and record.workstation == ws.name:
                        assert record.machine is not None
                        machines[record.standby] = record.machine
                if len(machines) == 2:
                    break
        assert machines[True].id == event["machine"] != machines[False].id
        assert machines[True].address == event["address"] == "127.0.0.1"
        assert first.end() == 0
        second.wait_for("broker.connected")
        await _ran_on(ws, dispatcher, second)
    finally:
        other.stop()


@pytest.mark.full
async def test_a_machine_that_was_frozen_is_the_second_when_it_wakes(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    other = _other(ws, tmp_path / "other")
    try:
        first = ws.start("service")
        first.process.send_signal(signal.SIGSTOP)
        second = other.start("service", connected=True)
        await _ran_on(ws, dispatcher, second)
        first.process.send_signal(signal.SIGCONT)
        first.wait_for("queue.taken")
        await _ran_on(ws, dispatcher, second)
        assert not first.events("job.received")
        assert second.end() == 0
        first.wait_for("broker.connected", 2)
        await _ran_on(ws, dispatcher, first)
    finally:
        first.process.send_signal(signal.SIGCONT)
        other.stop()


async def test_an_agent_whose_network_was_cut_without_a_word_gets_its_queue_back(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, node: Broker
) -> None:
    """The broker still has the consumer of the lost connection; it is no second machine."""
    with Proxy(node.port) as proxy:
        service = ws.start("service", amqp_url=f"{proxy.by(node.url)}?heartbeat=1")
        proxy.freeze()
        assert service.end(signal.SIGKILL) < 0
        queue = topology.queue_name(topology.AgentKind.SERVICE, ws.name)
        async with connect(settings, "test") as connection:
            counts = await topology.count(connection, queue)
        assert counts is not None
        assert counts.consumers == 1
        job = await dispatcher.dispatch(ws.job("true", background=True))
        again = ws.start("service")
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        assert not again.events("queue.taken")


@pytest.mark.full
async def test_a_second_machine_still_reports_what_it_ran(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """It had the queue when it started the job, and has lost it since."""
    other = _other(ws, tmp_path / "other")
    gate = tmp_path / "go"
    with Proxy(int(ws.environment["PCM_AMQP_URL"].rpartition(":")[2].partition("/")[0])) as proxy:
        try:
            away = proxy.by(ws.environment["PCM_AMQP_URL"])
            first = ws.start("service", amqp_url=away)
            command = ("sh", "-c", f"until [ -e {gate} ]; do sleep 0.05; done")
            job = await dispatcher.dispatch(ws.job(*command, background=True))
            first.wait_for("job.started")
            proxy.freeze()
            other.start("service")
            proxy.thaw()
            first.wait_for("queue.taken")
            gate.touch()
            assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        finally:
            other.stop()
