"""Fixtures of all tests: one RabbitMQ, and workstations with real agent processes.

Where tests run in several processes (pytest -n), the first process starts the broker, and each of
the others has a virtual host of its own in it.
"""

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from broker import Dispatcher, DispatcherSettings
from tests.support.rabbitmq import Broker, Node, or_skipped, own_nodes
from tests.support.site import Site
from tests.support.terminal import OnTerminal
from tests.support.workstation import Workstation

# A slow moment of the machine is no defect; and the same code has the same outcome.
hypothesis_settings.register_profile(
    "full", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.register_profile(
    "quick", hypothesis_settings.get_profile("full"), max_examples=25
)
hypothesis_settings.load_profile("full")

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_TESTS = Path(__file__).parent
_ORDER = ["chaos", "faults", "attacks", "integration", "fuzz", "unit"]
_numbers = itertools.count(1)
_main_process = ExitStack()
_shared: list[Broker] = []

# In the background a shell has Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples the searches try."""
    if not config.option.collectonly and "not full" in config.option.markexpr:
        hypothesis_settings.load_profile("quick")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist has no types
    """Give a worker the broker's address; the first time, start a broker."""
    if not _shared:
        if (broker := Broker.given()) is None:
            broker = Node("rabbitmq_management")
            _main_process.callback(broker.stop)
            broker.launch()  # workers wait for it when they need it
        _shared.append(broker)
    node.workerinput["broker"] = _shared[0].shared()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a module's fixture in one process: it is made once.

    What takes longest comes first, so that no process is left with it at the end. What needs a
    broker of its own is left to `make test-all`.
    """
    items.sort(key=lambda item: _ORDER.index(item.path.relative_to(_TESTS).parts[0]))
    for item in items:
        known: dict[str, Any] = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
        if any(found[-1].scope == "module" for found in known.values()):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        if "own_node" in known:
            item.add_marker(pytest.mark.full)


def pytest_unconfigure() -> None:
    """Stop the broker that the main process started."""
    _main_process.close()


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A private RabbitMQ for all tests, or the one that is given; with its management API."""
    with or_skipped(), ExitStack() as stack:
        if known := getattr(request.config, "workerinput", {}).get("broker"):
            broker = Broker(**known)
        else:
            broker = Broker.given() or stack.enter_context(Node("rabbitmq_management"))
        broker.wait_until_up()
        host = f"tests-{_WORKER}-{os.getpid()}"
        yield stack.enter_context(broker.own_virtual_host(host))


@pytest.fixture(scope="module")
def own_node() -> Iterator[Node]:
    """A private RabbitMQ for the tests of one module, which may do it harm."""
    with own_nodes(), Node() as started:
        yield started


@pytest.fixture(scope="module")
def site(node: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A virtual host with its management API, for the tests of one module."""
    if not node.management_url:
        pytest.skip("PCM_TEST_MANAGEMENT_URL: where is the given broker's management API?")
    name = f"site-{next(_numbers)}-{os.getpid()}"
    found = Site(node, name, tmp_path_factory.mktemp(name))
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
def _log() -> Iterator[None]:
    """Programs in this process log as structlog is set up at their start, which is not at all."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _terminals() -> Iterator[None]:
    """End the programs that a failed test left on a terminal."""
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
