"""Gathers what the checks look at; changes nothing at the broker but for a queue of an instant."""

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
from broker.amqp.connection import CALL_LIMIT, BrokerError, Refused, blocked, connect, translated
from broker.amqp.management import Management
from broker.amqp.run_in_thread import run_in_thread
from broker.amqp.timeouts import timeout
from broker.doctor.snapshot import BrokerSnapshot, Machine, Managed, Row, Surroundings, Unseen
from broker.history.history import History
from broker.history.schema import HistoryError
from broker.history.workstations import WorkstationRow
from broker.settings import HistorySettings, ManagementSettings

_MANAGEMENT = "enable it (rabbitmq-plugins enable rabbitmq_management), and set PCM_MANAGEMENT_URL"
_PRIVATE = re.compile(r"service|interactive-.+")
_MOST = 10_000  # files of a folder


class DoctorSettings(HistorySettings, ManagementSettings):
    """What is looked at, and how it is reached."""

    state_dir: Path = Field(
        default=Path("/var/lib/pcm"), description="where this machine's agents keep their state"
    )


def gather(settings: DoctorSettings) -> BrokerSnapshot:
    """Look at the broker and at this machine.

    Raises:
        Unreachable: the broker is out of reach.
    """
    unseen: list[Unseen] = []
    managed = _managed(settings, unseen)
    alarmed = managed is not None and any(map(has_alarm, managed.nodes))
    told = run_in_thread(_by_amqp(settings, takes=not alarmed))
    fleet = None
    if alarmed or told.blocked:
        why = "the broker takes no messages"
        unseen.append(Unseen("clocks, and what agents say of themselves", why, "make room there"))
    else:
        if told.ahead is None:
            why = "the login may not declare a queue of its own, and let a message expire in it"
            unseen.append(Unseen("the broker's clock", why, "look as an administrator"))
        if not told.missing:  # or asking would declare it
            fleet = _fleet(settings, unseen)
    return BrokerSnapshot(
        now=time.time(),
        urls=[URL(text) for text in settings.amqp_url],
        virtual_host=settings.virtual_host,
        version=told.version,
        ahead=told.ahead,
        missing=told.missing,
        letters=told.letters,
        managed=managed,
        fleet=fleet,
        machine=look_here(settings.state_dir, settings.trusted_keys),
        unseen=unseen,
    )


# What any login sees


@dataclass(frozen=True)
class _Told:
    version: tuple[int, ...]
    missing: list[str]
    letters: int | None
    ahead: float | None
    blocked: bool


async def _by_amqp(settings: DoctorSettings, *, takes: bool) -> _Told:
    async with connect(settings, "pcm doctor") as connection:
        underlay: Any = connection.transport
        text = str(underlay.connection.server_properties.get("version", ""))
        version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
        missing, letters = await _missing(connection)
        ahead = await _ahead(connection) if takes else None
        return _Told(version, missing, letters, ahead, await blocked(connection))


async def _missing(connection: AbstractConnection) -> tuple[list[str], int | None]:
    """Return what of the topology is not there, and how many dead letters wait."""
    missing: list[str] = []
    letters = None
    for name in (exchange.name for exchange in topology.EXCHANGES):
        with translated(f"looking at {name}"):
            try:
                async with timeout(CALL_LIMIT), connection.channel() as channel:
                    await channel.declare_exchange(name, passive=True)
            except ChannelNotFoundEntity:
                missing.append(f"exchange {name}")
    for name in (queue.name for queue in topology.central_queues()):
        with translated(f"looking at {name}"):
            try:
                async with timeout(CALL_LIMIT), connection.channel() as channel:
                    queue = await channel.declare_queue(name, passive=True)
            except ChannelNotFoundEntity:
                missing.append(f"queue {name}")
                continue
        if name == topology.DEAD:
            letters = queue.declaration_result.message_count
    return missing, letters


async def _ahead(connection: AbstractConnection) -> float | None:
    """Return how far the broker's clock is ahead: it notes when it gives a message up.

    Both queues are this connection's own, and go with it.
    """
    try:
        async with timeout(CALL_LIMIT), connection.channel() as channel:
            end = await channel.declare_queue(exclusive=True, arguments={"x-queue-type": "classic"})
            begin = await channel.declare_queue(
                exclusive=True,
                arguments={
                    "x-queue-type": "classic",
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": end.name,
                    "x-message-ttl": 0,
                },
            )
            before = time.time()
            await channel.default_exchange.publish(Message(b""), begin.name)
            async with end.iterator(no_ack=True) as arriving:
                deaths: Any = (await anext(arriving)).headers.get("x-death")
            stamp: float = deaths[0]["time"].timestamp()  # in whole seconds
    except (ChannelClosed, TimeoutError):
        return None
    if before - 1 <= stamp <= time.time():
        return 0.0
    return stamp - before


# What an administrator sees


def _managed(settings: DoctorSettings, unseen: list[Unseen]) -> Managed | None:
    management, host = Management.of(settings), settings.virtual_host
    everything = "logins, permissions, queues and bindings"
    try:
        overview = management.get("overview")
        users = _users(management, unseen)
        return Managed(
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
        remedy = "look as a login with the tag administrator (PCM_MANAGEMENT_URL)"
        unseen.append(Unseen(everything, str(error), remedy))
    except BrokerError as error:
        unseen.append(Unseen(everything, str(error), _MANAGEMENT))
    return None


def has_alarm(node: Row) -> bool:
    """Whether a node is so low on disk or memory that nothing can be published."""
    return node.get("disk_free_alarm") is True or node.get("mem_alarm") is True


def management_url(settings: ManagementSettings) -> URL:
    """Return where the management API is, without a login."""
    if settings.management_url:
        return URL(settings.management_url).with_user(None)
    broker = URL(settings.amqp_url[0])
    scheme = "https" if broker.scheme == "amqps" else "http"
    return URL.build(scheme=scheme, host=broker.host or "")


def _users(management: Management, unseen: list[Unseen]) -> list[Row] | None:
    try:
        found: list[Row] = management.get("users")
    except Refused as error:
        remedy = "look as a login with the tag administrator (PCM_MANAGEMENT_URL)"
        unseen.append(Unseen("logins and their permissions", str(error), remedy))
        return None
    return found


def _of(host: str, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["vhost"] == host]


def _fleet(settings: DoctorSettings, unseen: list[Unseen]) -> list[WorkstationRow] | None:
    try:
        with History.read(settings) as history:
            return history.fleet.workstations()
    except (HistoryError, BrokerError) as error:
        unseen.append(Unseen("what agents say of themselves", str(error), "see pcm history status"))
        return None


# What is on this machine


def look_here(state_dir: Path, trusted_keys: Path | None) -> Machine:
    """Return what is on this machine; what is not there, or not for us to see, is left out."""
    agents = [folder for folder in _inside(state_dir) if _PRIVATE.fullmatch(folder.name)]
    return Machine(
        user=os.geteuid(),
        shared=_places([state_dir, state_dir / "claims"]),
        private=_places([*agents, *(file for folder in agents for file in _inside(folder))]),
        keys=_places([trusted_keys, *_inside(trusted_keys)] if trusted_keys else []),
        settings=_places([Path(".env")]),
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MOST]
    except OSError:
        return []


def _places(paths: Iterable[Path]) -> list[Surroundings]:
    found = []
    for path in paths:
        with suppress(OSError):
            status = path.lstat()
            folder = stat.S_ISDIR(status.st_mode)
            if not stat.S_ISLNK(status.st_mode):
                mode = stat.S_IMODE(status.st_mode)
                found.append(Surroundings(str(path), mode, status.st_uid, is_folder=folder))
    return found
