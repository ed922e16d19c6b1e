"""A private RabbitMQ node: free ports, a folder of its own, loopback only; gone afterwards.

Tests that need a broker use a virtual host of one shared node, or of a broker that is given by
`PCM_TEST_AMQP_URL` (see `Broker`). Tests that break a broker start nodes of their own. All nodes
are of the version in the folder that `PCM_TEST_RABBITMQ_ROOT` names (see `_program`), or else of
the installed one.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from yarl import URL

from broker.amqp.management import Management
from broker.settings import ManagementSettings
from tests.support.waiting import LIMIT

_SBIN = Path("/usr/lib/rabbitmq/bin")
_ROOT = os.environ.get("PCM_TEST_RABBITMQ_ROOT", "")
_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users.guest = true
log.console = false
log.file.level = warning
"""
_NO_STATISTICS = "management_agent.disable_metrics_collector = true\n"
_MANAGEMENT = "rabbitmq_management"
_MANAGEMENT_CONFIG = """
management.tcp.ip = 127.0.0.1
management.tcp.port = {port}
"""
# One scheduler a core is plenty; the distribution, too, listens on loopback only.
_ERLANG = "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"


class NoRabbitMQ(Exception):
    """There is no rabbitmq-server on this machine, or it does not start."""


def free_port() -> int:
    """Return a port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> list[str]:
    """Return the command line of one of the broker's programs.

    `PCM_TEST_RABBITMQ_ROOT` names a root folder that has another version of them, made by
    debootstrap, with /proc, /dev and the folder of temporary files mounted in it.
    """
    if _ROOT:
        return ["chroot", _ROOT, "/usr/bin/epmd" if name == "epmd" else str(_SBIN / name)]
    # Debian's wrapper in /usr/sbin wants to be root; the program itself does not.
    path = _SBIN / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise NoRabbitMQ(f"{name} is not installed: apt-get install rabbitmq-server")
    return [found]


class Broker:
    """A virtual host of a broker that tests use: ours, or one that is given.

    `PCM_TEST_AMQP_URL` names a given one, `PCM_TEST_RABBITMQCTL` the command that administers it,
    such as `docker exec NAME rabbitmqctl`, and `PCM_TEST_MANAGEMENT_URL` its management API.
    """

    def __init__(
        self, url: str, management_url: str, ctl: list[str], environment: dict[str, str]
    ) -> None:
        self.url = url
        self.management_url = management_url
        self._ctl = ctl
        self._environment = environment

    @classmethod
    def given(cls) -> "Broker | None":
        """Return the broker that the environment names, if it names one."""
        url = os.environ.get("PCM_TEST_AMQP_URL")
        ctl = os.environ.get("PCM_TEST_RABBITMQCTL", "rabbitmqctl").split()
        management_url = os.environ.get("PCM_TEST_MANAGEMENT_URL", "")
        return cls(url, management_url, ctl, dict(os.environ)) if url else None

    @property
    def port(self) -> int:
        """Where it listens for AMQP."""
        return URL(self.url).port or 5672

    @property
    def virtual_host(self) -> str:
        """The virtual host's name."""
        return URL(self.url).path.removeprefix("/") or "/"

    def ctl(self, *words: str) -> str:
        """Run rabbitmqctl on it; return what it prints."""
        try:
            return subprocess.run(
                [*self._ctl, "-q", *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version."""
        if self.management_url:
            text = self.management().get("overview")["rabbitmq_version"]
        else:
            text = self.ctl("version").strip()
        return tuple(map(int, text.split(".")))

    def add_user(self, name: str, password: str) -> None:
        """Make a login that may do everything in the virtual host."""
        self.ctl("add_user", name, password)
        self.allow(name)

    def allow(self, user: str) -> None:
        """Allow a login everything in the virtual host."""
        self.ctl("set_permissions", "-p", self.virtual_host, user, ".*", ".*", ".*")

    def close_connections(self) -> None:
        """Close all connections to the virtual host."""
        self.ctl("close_all_connections", "-p", self.virtual_host, "a test")

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its messages."""
        self.ctl("delete_queue", "-p", self.virtual_host, name)

    @contextmanager
    def own_virtual_host(self, name: str) -> Iterator["Broker"]:
        """Make a virtual host, and delete it afterwards."""
        url = URL(self.url).with_path(f"/{name}")
        made = Broker(str(url), self.management_url, self._ctl, self._environment)
        if not self.management_url:
            made.ctl("add_vhost", name)
            made.allow(url.user or "guest")
            try:
                yield made
            finally:
                made.ctl("delete_vhost", name)
            return
        # Without a new Erlang node for each call, which takes a busy machine a minute.
        management = made.management()
        management.put("vhosts", name, body={})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        management.put("permissions", name, url.user or "guest", body=everything)
        try:
            yield made
        finally:
            management.delete("vhosts", name)

    def management(self) -> Management:
        """Return its management API."""
        return Management.of(
            ManagementSettings(amqp_url=(self.url,), management_url=self.management_url)
        )

    def shared(self) -> dict[str, Any]:
        """Return what another process makes a `Broker` of."""
        return {
            "url": self.url,
            "management_url": self.management_url,
            "ctl": self._ctl,
            "environment": self._environment,
        }

    def wait_until_up(self) -> None:
        """Wait until it answers.

        Raises:
            NoRabbitMQ: it does not.
        """
        deadline = time.monotonic() + LIMIT
        while not self.answers():
            if time.monotonic() > deadline:
                raise NoRabbitMQ(f"no broker answers at port {self.port}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether it talks AMQP."""
        url = URL(self.url)
        try:
            with socket.create_connection((url.host, self.port), timeout=1) as speaker:
                speaker.settimeout(5)
                speaker.sendall(b"AMQP\x00\x00\x09\x01")
                return speaker.recv(1) == b"\x01"
        except OSError:
            return False


@contextmanager
def or_skipped() -> Iterator[None]:
    """Skip tests where there is no rabbitmq-server; but not where one is promised, as in CI."""
    try:
        yield
    except NoRabbitMQ as error:
        if _ROOT or os.environ.get("CI"):
            raise
        _skip(str(error))


@contextmanager
def own_nodes() -> Iterator[None]:
    """Skip tests that start nodes where they cannot, or where another broker is to be tested.

    That is not ours to break, and nodes of this machine's version would show nothing about it.
    """
    if Broker.given() and not _ROOT:
        _skip("PCM_TEST_AMQP_URL: nodes are started only with PCM_TEST_RABBITMQ_ROOT")
    with or_skipped():
        yield


def _skip(reason: str) -> NoReturn:
    import pytest  # the demo, which starts nodes, too, has no need of it

    pytest.skip(reason)


class Node(Broker):
    """A node that runs from `start` to `stop`; its data outlive a `kill` and a new `start`."""

    def __init__(
        self, *plugins: str, configuration: str = "", statistics: bool = False, files: int = 0
    ) -> None:
        """Prepare.

        Args:
            plugins: come with RabbitMQ.
            configuration: lines of rabbitmq.conf.
            statistics: whether it counts what goes on in it.
            files: how many it may open; 0: as many as we may.
        """
        port = free_port()
        management_port = free_port() if _MANAGEMENT in plugins else 0
        management_url = (
            f"http://guest:guest@127.0.0.1:{management_port}" if management_port else ""
        )
        self._dist_port = free_port()
        self._epmd_port = free_port()
        self._name = f"pcm-{port}@localhost"
        self._folder = Path(tempfile.mkdtemp(prefix="pcm-rabbitmq-"))
        if not Path(f"{_ROOT}{self._folder}").exists():
            raise NoRabbitMQ(f"mount --bind {self._folder.parent} {_ROOT}{self._folder.parent}")
        super().__init__(
            f"amqp://guest:guest@127.0.0.1:{port}/",
            management_url,
            [*_program("rabbitmqctl"), "-n", self._name],
            self._variables(port),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        config = _CONFIG.format(port=port) + configuration
        if not statistics:
            config += _NO_STATISTICS
        if files:
            (self._folder / "env.conf").write_text(f"ulimit -n {files}\n")
        if management_port:
            config += _MANAGEMENT_CONFIG.format(port=management_port)
        (self._folder / "rabbitmq.conf").write_text(config)
        (self._folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Start it."""
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # A process that is ended by SIGTERM ends the node, too.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if self._epmd is None:
            self._epmd = subprocess.Popen(
                [*_program("epmd"), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with (self._folder / "boot.log").open("ab") as log:
            self._process = subprocess.Popen(
                _program("rabbitmq-server"),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def wait_until_up(self) -> None:
        """Wait until it answers.

        Raises:
            NoRabbitMQ: it has ended, or does not answer.
        """
        deadline = time.monotonic() + LIMIT
        while not self.answers():
            if self._process is None or self._process.poll() is not None:
                raise NoRabbitMQ(f"rabbitmq-server has ended:\n{self._boot_log()}")
            if time.monotonic() > deadline:
                raise NoRabbitMQ(f"rabbitmq-server does not answer:\n{self._boot_log()}")
            time.sleep(0.05)

    def _boot_log(self) -> str:
        return (self._folder / "boot.log").read_text(errors="replace")[-2000:]

    @property
    def data(self) -> Path:
        """The folder in which it keeps what it stores."""
        return self._folder / "data"

    @property
    def log(self) -> str:
        """What it logged."""
        return (self._folder / "log" / f"{self._name}.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process, and the parent of all of them; 0 where none runs."""
        return self._process.pid if self._process else 0

    def sync(self) -> None:
        """Make the broker write its pending metadata now, such as its queues."""
        self.ctl("eval", "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """End it as an administrator would."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it neither do nor close anything, until it is thawed."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its folder."""
        self._end(signal.SIGKILL)  # nothing of it is kept
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._signal(number)
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _variables(self, port: int) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{os.defpath}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }
