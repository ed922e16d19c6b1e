"""Gather the data of all checks.

At the broker, only two temporary queues are declared.
"""

import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity
from pydantic import Field
from yarl import URL

from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, BrokerError, Refused, blocked, connect, map_errors
from broker.amqp.management import Management
from broker.amqp.timeouts import timeout
from broker.doctor.snapshot import (
    BrokerSnapshot,
    FileInfo,
    LocalFiles,
    ManagementData,
    Row,
    Unchecked,
)
from broker.history.engine import HistoryError
from broker.history.history import History
from broker.history.queries.workstations import WorkstationRow
from broker.run_in_thread import run_in_thread
from broker.settings import HistorySettings, ManagementSettings

_ENABLE_MANAGEMENT = (
    "enable it (rabbitmq-plugins enable rabbitmq_management), and set PCM_MANAGEMENT_URL"
)
_AGENT_FOLDER = re.compile(r"service|interactive-.+")
_MAX_FILES = 10_000  # of a folder


class DoctorSettings(HistorySettings, ManagementSettings):
    """The settings of `diagnose`."""

    state_dir: Path = Field(
        default=Path("/var/lib/pcm"), description="the state folder of this machine's agents"
    )


def take_broker_snapshot(settings: DoctorSettings) -> BrokerSnapshot:
    """Gather the data of the broker and of this machine.

    Raises:
        Unreachable: the broker is unreachable.
    """
    unchecked: list[Unchecked] = []
    managed = _managed(settings, unchecked)
    has_alarms = managed is not None and any(map(has_alarm, managed.nodes))
    amqp = run_in_thread(_by_amqp(settings, can_publish=not has_alarms))
    fleet = None
    if has_alarms or amqp.blocked:
        why = "the broker accepts no messages"
        remedy = "free disk space or memory there"
        unchecked.append(Unchecked("clocks, and the agents' check-ins", why, remedy))
    else:
        if amqp.clock_offset is None:
            why = "the login cannot declare a queue, or a message did not expire in it"
            remedy = "use an administrator's login"
            unchecked.append(Unchecked("the broker's clock", why, remedy))
        if not amqp.missing:  # the history would declare the topology
            fleet = _fleet(settings, unchecked)
    return BrokerSnapshot(
        now=time.time(),
        urls=[URL(text) for text in settings.amqp_url],
        virtual_host=settings.virtual_host,
        version=amqp.version,
        clock_offset=amqp.clock_offset,
        missing=amqp.missing,
        dead_letters=amqp.dead_letters,
        managed=managed,
        fleet=fleet,
        local_files=read_local_files(settings.state_dir, settings.trusted_keys),
        unchecked=unchecked,
    )


# With any login


@dataclass(frozen=True)
class _AmqpData:
    version: tuple[int, ...]
    missing: list[str]
    dead_letters: int | None
    clock_offset: float | None
    blocked: bool


async def _by_amqp(settings: DoctorSettings, *, can_publish: bool) -> _AmqpData:
    async with connect(settings, "pcm doctor") as connection:
        transport: Any = connection.transport
        text = str(transport.connection.server_properties.get("version", ""))
        version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
        missing, dead_letters = await _missing(connection)
        clock_offset = await _clock_offset(connection) if can_publish else None
        return _AmqpData(version, missing, dead_letters, clock_offset, await blocked(connection))


async def _missing(connection: AbstractConnection) -> tuple[list[str], int | None]:
    """Return the missing exchanges and queues of the topology, and the number of dead letters."""
    missing: list[str] = []
    dead_letters = None
    for name in (exchange.name for exchange in topology.EXCHANGES):
        with map_errors(f"checking {name}"):
            try:
                async with timeout(CALL_LIMIT), connection.channel() as channel:
                    await channel.declare_exchange(name, passive=True)
            except ChannelNotFoundEntity:
                missing.append(f"exchange {name}")
    for name in (queue.name for queue in topology.central_queues()):
        with map_errors(f"checking {name}"):
            try:
                async with timeout(CALL_LIMIT), connection.channel() as channel:
                    queue = await channel.declare_queue(name, passive=True)
            except ChannelNotFoundEntity:
                missing.append(f"queue {name}")
                continue
        if name == topology.DEAD:
            dead_letters = queue.declaration_result.message_count
    return missing, dead_letters


async def _clock_offset(connection: AbstractConnection) -> float | None:
    """Return how far the broker's clock is ahead, by the time of a message that expires.

    Both queues are exclusive: the broker deletes them with the connection.
    """
    try:
        async with timeout(CALL_LIMIT), connection.channel() as channel:
            expired = await channel.declare_queue(
                exclusive=True, arguments={"x-queue-type": "classic"}
            )
            queue = await channel.declare_queue(
                exclusive=True,
                arguments={
                    "x-queue-type": "classic",
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": expired.name,
                    "x-message-ttl": 0,
                },
            )
            before = time.time()
            await channel.default_exchange.publish(Message(b""), queue.name)
            async with expired.iterator(no_ack=True) as messages:
                deaths: Any = (await anext(messages)).headers.get("x-death")
            stamp: float = deaths[0]["time"].timestamp()  # in whole seconds
    except (ChannelClosed, TimeoutError):
        return None
    if before - 1 <= stamp <= time.time():
        return 0.0
    return stamp - before


# With an administrator's login


def _managed(settings: DoctorSettings, unchecked: list[Unchecked]) -> ManagementData | None:
    management, host = Management.of(settings), settings.virtual_host
    everything = "logins, permissions, queues and bindings"
    try:
        overview = management.get("overview")
        users = _users(management, unchecked)
        return ManagementData(
            url=management_url(settings),
            overview=overview,
            nodes=management.get("nodes"),
            virtual_host=management.get("vhosts", host) or {},
            flags=management.get("feature-flags") or [],
            exchanges=management.get("exchanges", host) or [],
            queues=management.get("queues", host) or [],
            bindings=management.get("bindings", host) or [],
            policies=[
                *(management.get("policies", host) or []),
                *(management.get("operator-policies", host) or []),
            ],
            connections=management.get("connections") or [],
            users=users,
            permissions=[] if users is None else _of(host, management.get("permissions")),
            topic_permissions=(
                [] if users is None else _of(host, management.get("topic-permissions"))
            ),
        )
    except Refused as error:
        remedy = "use a login with the tag administrator (PCM_MANAGEMENT_URL)"
        unchecked.append(Unchecked(everything, str(error), remedy))
    except BrokerError as error:
        unchecked.append(Unchecked(everything, str(error), _ENABLE_MANAGEMENT))
    return None


def has_alarm(node: Row) -> bool:
    """Whether a node blocks publishers, for lack of disk space or memory."""
    return node.get("disk_free_alarm") is True or node.get("mem_alarm") is True


def management_url(settings: ManagementSettings) -> URL:
    """Return the URL of the management API, without a login."""
    if settings.management_url:
        return URL(settings.management_url).with_user(None)
    broker = URL(settings.amqp_url[0])
    scheme = "https" if broker.scheme == "amqps" else "http"
    return URL.build(scheme=scheme, host=broker.host or "")


def _users(management: Management, unchecked: list[Unchecked]) -> list[Row] | None:
    try:
        users: list[Row] = management.get("users")
    except Refused as error:
        remedy = "use a login with the tag administrator (PCM_MANAGEMENT_URL)"
        unchecked.append(Unchecked("logins and their permissions", str(error), remedy))
        return None
    return users


def _of(host: str, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["vhost"] == host]


def _fleet(settings: DoctorSettings, unchecked: list[Unchecked]) -> list[WorkstationRow] | None:
    try:
        with History.read(settings) as history:
            return history.fleet.workstations()
    except (HistoryError, BrokerError) as error:
        unchecked.append(Unchecked("the agents' check-ins", str(error), "see pcm history status"))
        return None


# On this machine


def read_local_files(state_dir: Path, trusted_keys: Path | None) -> LocalFiles:
    """Return the files of this machine; leave out those that we cannot read."""
    agents = [folder for folder in _children(state_dir) if _AGENT_FOLDER.fullmatch(folder.name)]
    return LocalFiles(
        user=os.geteuid(),
        shared=_file_infos([state_dir, state_dir / "claims"]),
        private=_file_infos([*agents, *(file for folder in agents for file in _children(folder))]),
        keys=_file_infos([trusted_keys, *_children(trusted_keys)] if trusted_keys else []),
        settings=_file_infos([Path(".env")]),
    )


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MAX_FILES]
    except OSError:
        return []


def _file_infos(paths: Iterable[Path]) -> list[FileInfo]:
    infos = []
    for path in paths:
        with suppress(OSError):
            status = path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            if not stat.S_ISLNK(status.st_mode):
                mode = stat.S_IMODE(status.st_mode)
                infos.append(FileInfo(str(path), mode, status.st_uid, is_folder=is_folder))
    return infos
