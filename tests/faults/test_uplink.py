"""An agent works on while the broker is away, and comes back by itself."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.rabbitmq import Node
from tests.support.workstation import Workstation, final, follow


async def test_without_a_broker_the_agent_waits_works_and_reports_later(tmp_path: Path) -> None:
    """Q188578, Q164877, Q173073: it stays, says so once, runs what is due, sends it later."""
    node = Node()
    ws = Workstation("away", node.url, tmp_path)
    settings = DispatcherSettings(amqp_url=(node.url,), patience=timedelta(seconds=60))
    ran = tmp_path / "ran"
    try:
        service = ws.start("service", connected=False)
        service.wait_for("broker.lost")
        await asyncio.sleep(3)
        assert len(service.events("broker.lost")) == 1
        node.start()
        service.wait_for("broker.connected")
        async with Dispatcher.connect(settings) as dispatcher:
            # A node killed within a second of declaring a queue may not know it afterwards.
            await asyncio.sleep(2)
            due = datetime.now(UTC) + timedelta(seconds=2)
            job = ws.job(f"echo x >> {ran}", shell=True, background=True, mandatory_at=due)
            await dispatcher.dispatch(job)
            service.wait_for("job.received")
            node.kill()
            service.wait_for("job.ended")
            assert ran.read_text() == "x\n"
            node.start()
            reports = await follow(dispatcher, job)
            assert final(reports).state is State.SUCCEEDED
            assert ran.read_text() == "x\n"
            again = await dispatcher.dispatch(ws.job("true", background=True))
            assert final(await follow(dispatcher, again)).state is State.SUCCEEDED
    finally:
        ws.stop()
        node.stop()
