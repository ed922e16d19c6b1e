"""What tests of the history's commands share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from tests.support.rabbitmq import Broker
from tests.support.told import Told


@pytest.fixture
async def told(node: Broker, settings: DispatcherSettings, tmp_path: Path) -> AsyncIterator[Told]:
    """A stream to tell things to, and a history to ask."""
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        yield Told(await Publisher.open(connection), node.url, tmp_path)
