"""An agent works on while the broker is away, and comes back by itself."""

import asyncio
from pathlib import Path

from broker import Dispatcher
from schemas import State
from tests.support.rabbitmq import Broker
from tests.support.waiting import until_true
from tests.support.workstation import Workstation, final, follow


async def test_a_lost_connection_costs_nothing(
    ws: Workstation, dispatcher: Dispatcher, node: Broker
) -> None:
    """A running command does not end with its connection."""
    service = ws.start("service")
    job = await dispatcher.dispatch(ws.job("sleep", "2", background=True))
    service.wait_for("job.started")
    await asyncio.to_thread(node.close_connections)
    service.wait_for("broker.connected", count=2)
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert len(service.events("broker.lost")) == 1


def test_a_refused_login_is_reported_once_and_not_repeated(ws: Workstation) -> None:
    """Q230242: repeated wrong logins lock accounts."""
    url = ws.environment["PCM_AMQP_URL"].replace("guest:guest", "guest:wrong")
    service = ws.start("service", connected=False, amqp_url=url)
    service.wait_for("broker.lost")
    (event,) = service.events("broker.lost")
    assert "the broker refused the login" in event["reason"]
    assert event["retry_in"] >= 60
    assert "wrong" not in service.log.read_text()
    assert service.end() == 0


def test_a_deleted_queue_is_made_again(ws: Workstation, node: Broker) -> None:
    service = ws.start("service")
    node.delete_queue(f"pcm.service.{ws.name}")
    service.wait_for("broker.connected", count=2)
    done = ws.run("pcm", "send", "--to", str(ws.target), "--background", "--wait", "--", "true")
    assert done.returncode == 0


def test_agents_leave_nothing_open(ws: Workstation) -> None:
    """Q163597: no file or process stays from a run."""
    service = ws.start("service")
    to = ["pcm", "send", "--to", str(ws.target), "--background", "--wait", "--"]
    ws.run(*to, "true")
    folder = Path(f"/proc/{service.process.pid}/fd")
    before = len(list(folder.iterdir()))
    for _ in range(5):
        ws.run(*to, "sh", "-c", "sleep 0.1 & exit 1")
    until_true(lambda: len(list(folder.iterdir())) == before)
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    until_true(lambda: children.read_text() == "")  # an orphan is waited for after its job's end
