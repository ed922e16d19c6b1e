"""An agent works on while the broker is away, and comes back by itself."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.faults import counting, held, logged_once, ran_once
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Node, own_nodes
from tests.support.waiting import LIMIT, Gate, until
from tests.support.workstation import Workstation, final, follow


@pytest.fixture
def node() -> Iterator[Node]:
    """A node that is not started yet."""
    with own_nodes():
        made = Node()
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.full
async def test_without_a_broker_the_agent_waits_works_and_reports_later(
    node: Node, tmp_path: Path
) -> None:
    """Q188578, Q164877, Q173073: it stays, says so once, runs what is due, sends it later."""
    proxy = Proxy(node.port)
    ws = Workstation("away", proxy.url(), tmp_path)
    settings = DispatcherSettings(amqp_url=(node.url,), patience=timedelta(seconds=LIMIT))
    ran, gate = tmp_path / "ran", Gate(tmp_path / "go")
    try:
        service = ws.start("service", connected=False, concurrency="1")
        await until(lambda: proxy.accepted >= 3)
        logged_once(service)
        node.start()
        service.wait_for("broker.connected")
        async with Dispatcher.connect(settings) as dispatcher:
            node.sync()
            jobs = [held(ws, ran, gate, 1), counting(ws, ran, 2)]
            for job in jobs:
                await dispatcher.dispatch(job)
            service.wait_for("job.received", 2)
            node.kill()
            gate.open()
            service.wait_for("job.ended", 2)
            ran_once(ran, [1, 2])
            node.start()
            for job in jobs:
                assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
            ran_once(ran, [1, 2])
            again = await dispatcher.dispatch(ws.job("true", background=True))
            assert final(await follow(dispatcher, again)).state is State.SUCCEEDED
    finally:
        ws.stop()
        proxy.close()
