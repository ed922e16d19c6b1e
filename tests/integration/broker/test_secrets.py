"""No password of broker or database is in anything that the programs write."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from tests.support.rabbitmq import Broker
from tests.support.workstation import Workstation, follow

SECRET = "Secr3tOfTheirs"


@pytest.fixture
def url(node: Broker) -> Iterator[str]:
    """A broker's address, with the password of a user who may do everything."""
    name = f"secretive-{os.getpid()}"
    node.add_user(name, SECRET)
    yield node.url.replace("guest:guest", f"{name}:{SECRET}")
    node.ctl("delete_user", name)


async def test_no_password_is_in_what_agents_and_commands_write(
    url: str, node: Broker, tmp_path: Path
) -> None:
    database = f"postgresql://ada:{SECRET}@127.0.0.1:1/pcm?sslpassword={SECRET}"
    ws = Workstation(f"ws-secret-{os.getpid()}", url, tmp_path)
    agent = ws.start("service")
    try:
        show = "tr '\\0' '\\n' < /proc/$PPID/cmdline; env"
        job = ws.job("/bin/sh", "-c", show, background=True)
        async with Dispatcher.connect(DispatcherSettings(amqp_url=(url,))) as dispatcher:
            await dispatcher.dispatch(job)
            await follow(dispatcher, job)
        output = ws.run("pcm", "output", job.id)
        assert "PATH=" in output.stdout
        printed = [output.stdout, output.stderr]
        for words in (
            ("jobs", "--json"),
            ("show", job.id, "--json"),
            ("history", "status", "--json"),
            ("why", job.id, ws.name),
            ("workstations", "--json"),
            ("dead", "list", "--json"),
            ("topology", "show"),
            ("--help",),
        ):
            done = ws.run("pcm", *words)
            assert done.returncode == 0, done.stderr
            printed += [done.stdout, done.stderr]
        for wrong in (database, f"{database}&sslmode={SECRET}x", f"postgresql://a:{SECRET}"):
            done = ws.run("pcm", "history", "status", history_url=wrong)
            assert done.returncode in (1, 2)
            printed += [done.stdout, done.stderr.replace(f"{SECRET}x", "")]
        printed.append(ws.run("pcm-agent", "history", "--json").stdout)
        printed.append(node.ctl("list_connections", "user", "client_properties"))
        printed.append(command_line(agent.process.pid))
        agent.end()
    finally:
        ws.stop()
    assert agent.events("broker.connected")
    assert files_with_the_secret(tmp_path) == []
    assert SECRET not in "".join(printed)


def command_line(pid: int) -> str:
    line = Path(f"/proc/{pid}/cmdline").read_text()
    assert "pcm-agent" in line
    return line


def files_with_the_secret(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"history.db", "service-0.log"} <= {path.name for path in files}
    return [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("amqp://guest:{}@{}/", 1),  # refused
        ("amqps://guest:{}@{}/", 3),  # no TLS there
        ("amqp://guest:{}@127.0.0.1:1/", 3),  # no broker there
        ("amqp://guest:{}@no-such-host.invalid/", 3),
        ("amqp://guest:{}@{}/no-such-host", 1),
        ("http://guest:{}@{}/", 2),
        ("amqp:guest:{}@{}/", 2),
        ("amqp://guest:{}", 2),
        ("amqp://guest:{},{}", 2),
        ("amqp://guest:1/{}@{}/", 2),
        ("amqp://guest:1#{}@{}/", 2),
        ("amqp://guest:1?{}@{}/", 2),
        ("amqps://guest:{}@{}/?no_verify_ssl=1", 2),
        ("amqps://guest:{}@{}/?cafile=/", 2),
        ("amqp://guest:{}@{}:99999/", 2),
    ],
)
def test_no_wrong_address_is_reported_with_its_password(
    node: Broker, tmp_path: Path, wrong: str, status: int
) -> None:
    address = f"127.0.0.1:{node.port}"
    ws = Workstation("ws", wrong.format(SECRET, address), tmp_path)
    done = ws.run("pcm", "dead", "list")
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("pcm: ")
    assert len(done.stderr.splitlines()) == 1
    assert SECRET.lower() not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("wrong", ["amqp://guest:{}@{}/", "amqps://guest:{}@{}/"])
def test_no_agent_tells_the_password_with_which_it_does_not_get_in(
    node: Broker, tmp_path: Path, wrong: str
) -> None:
    address = f"127.0.0.1:{node.port}"
    ws = Workstation("ws", wrong.format(SECRET, address), tmp_path)
    agent = ws.start("service", connected=False)
    try:
        agent.wait_for("broker.lost")
    finally:
        ws.stop()
    assert SECRET.lower() not in agent.log.read_text().lower()


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://ada:{}@127.0.0.1:1/pcm",
        "postgresql://ada:x@{}@127.0.0.1:1/pcm",
        "postgresql://127.0.0.1:1/pcm?user=ada&password={}",
        "postgresql://ada:{}@127.0.0.1:port/pcm",
        "postgresql:ada:{}@127.0.0.1/pcm",
        "postgres://ada:{}@127.0.0.1/pcm",
        "mysql://ada:{}@127.0.0.1/pcm",
        "postgresql://ada:{}",
        "{}",
        "sqlite://ada:{}@/pcm",
    ],
)
def test_no_wrong_database_is_reported_with_its_password(
    node: Broker, tmp_path: Path, wrong: str
) -> None:
    ws = Workstation("ws", node.url, tmp_path)
    done = ws.run("pcm", "history", "status", "--json", history_url=wrong.format(SECRET))
    assert done.returncode in (1, 2), done.stderr
    assert "PCM_HISTORY_URL" in done.stderr
    assert SECRET.lower() not in (done.stdout + done.stderr).lower()
