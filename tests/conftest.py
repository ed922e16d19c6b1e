"""What the tests share: one private RabbitMQ, and workstations with real agent processes."""

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from broker import Dispatcher, DispatcherSettings
from tests.rabbitmq import Broker, Node, broker, or_skipped
from tests.site import Site
from tests.terminal import OnTerminal
from tests.workstation import Workstation

# A slow moment of the machine is no defect; and the same code has the same outcome.
hypothesis_settings.register_profile(
    "pcm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("pcm")

_numbers = itertools.count(1)

# In the background a shell has Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def node() -> Iterator[Broker]:
    """A private RabbitMQ for all tests, or the one that is given."""
    with or_skipped(), broker() as started:
        yield started


@pytest.fixture(scope="module")
def own_node() -> Iterator[Node]:
    """A private RabbitMQ for the tests of one module, which may do it harm."""
    with or_skipped(), Node() as started:
        yield started


@pytest.fixture(scope="session")
def managed() -> Iterator[Broker]:
    """A private RabbitMQ with its management API, or the one that is given."""
    with or_skipped(), broker("rabbitmq_management") as started:
        if not started.management_url:
            pytest.skip("PCM_TEST_MANAGEMENT_URL: where is the given broker's management API?")
        yield started


@pytest.fixture(scope="module")
def site(managed: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A virtual host there, for the tests of one module."""
    name = f"site-{next(_numbers)}-{os.getpid()}"
    found = Site(managed, name, tmp_path_factory.mktemp(name))
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture
def settings(node: Broker) -> DispatcherSettings:
    """Settings that lead to it."""
    return DispatcherSettings(amqp_url=(node.url,))


@pytest.fixture
async def dispatcher(settings: DispatcherSettings) -> AsyncIterator[Dispatcher]:
    """A dispatcher connected to it."""
    async with Dispatcher.connect(settings) as connected:
        yield connected


@pytest.fixture(autouse=True)
def _terminals() -> Iterator[None]:
    """What a failed test left on a terminal is no other test's trouble."""
    yield
    OnTerminal.end_all()


@pytest.fixture
def ws(node: Broker, tmp_path: Path) -> Iterator[Workstation]:
    """A workstation of a name that no other test uses; what it runs is ended afterwards."""
    workstation = Workstation(f"ws-{next(_numbers)}-{os.getpid()}", node.url, tmp_path)
    try:
        yield workstation
    finally:
        workstation.stop()
