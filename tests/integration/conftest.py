"""Fixtures for tests of the history's commands."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from tests.support.rabbitmq import Broker
from tests.support.simulated_fleet import SimulatedFleet


@pytest.fixture
async def fleet(
    node: Broker, settings: DispatcherSettings, tmp_path: Path
) -> AsyncIterator[SimulatedFleet]:
    """A stream for records of workstations, and a history to query."""
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        yield SimulatedFleet(await Publisher.open(connection), node.url, tmp_path)
