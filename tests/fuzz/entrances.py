"""Everywhere that bytes from outside are read: a line for each in `ENTRANCES`."""

import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.constants import FRAME_END, FRAME_HEADER
from pamqp.header import ContentHeader
from pydantic import TypeAdapter
from sqlalchemy.exc import DataError

import schemas
from agents.claims.claim_file import decision
from agents.claims.standings import Standing, Standings
from agents.identity import Identity
from agents.inbox.consumer import _delivery_count
from agents.inbox.messages import UnreadableMessage, job_id_of, read_order
from agents.inbox.trust import Trust
from agents.settings import AgentSettings
from agents.store.repair import open_ledger
from agents.store.transaction import JobRecord as Accepted
from agents.store.transaction import Transaction
from agents.user.control import RequestRejected, _read, read_reason, text_field
from agents.user.user_actions import _moment
from agents.window import address
from broker import settings
from broker.amqp.codec import decode_frame
from broker.amqp.consumer import Delivery
from broker.amqp.topology import AgentKind, routing_keys
from broker.dead_letters.letter import fingerprint, read_letter
from broker.history.engine import open_history
from broker.history.projection.projection import Projection
from broker.jobs.files.job_file import WrongJobFile, parse_jobs
from broker.rollouts.waves import read_waves
from broker.settings import HistorySettings, WrongSetting, load
from broker.stream.entry import _KINDS, StreamEntry
from schemas import (
    Cancellation,
    CheckIn,
    InvalidMessage,
    Job,
    Message,
    Report,
    Rollout,
    Schedule,
    WallClock,
)
from schemas import maintenance_windows as windows
from schemas.names import Target, check_name, check_text, check_user, user_of_word, user_word
from schemas.orders.command import Platform
from schemas.orders.rollout import check_limit
from schemas.orders.schedule import _check_cron, _check_zone
from schemas.orders.signature import read_signatures, write_signatures
from schemas.reports.report import first_line
from schemas.times import duration_text, parse_duration, parse_moment
from tests.fuzz import seeds
from tests.fuzz.seeds import NOW, WS

_READERS = (Identity(AgentKind.SERVICE, WS), Identity(AgentKind.INTERACTIVE, WS, "ada"))
_WORDS = tuple(
    f"{context}.{requirement}"
    for context in ("background", "foreground")
    for requirement in ("mandatory", "optional")
)
_FLAGS = struct.Struct(">H")


@dataclass(frozen=True)
class Entrance:
    """A place where bytes come in.

    Attributes:
        name: what comes in.
        enter: takes bytes; what it raises is one of `refuses`, or a defect.
        seeds: bytes as they ought to be.
        refuses: the documented ways to say no.
    """

    name: str
    enter: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refuses: tuple[type[Exception], ...] = ()

    def takes(self, data: bytes) -> bool:
        """Enter with bytes; return whether they were taken. A defect is an exception."""
        try:
            self.enter(data)
        except self.refuses:
            return False
        return True


@cache
def _folder() -> Path:
    """A folder of this process."""
    kept = tempfile.TemporaryDirectory(prefix="pcm-fuzz-")
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


# Messages


def _message(kind: type[Message], data: bytes) -> None:
    """A message that is read can be written and read again, is equal, and can be used."""
    message = kind.read(data, tolerant=True)
    assert kind.read(message.body()) == message
    match message:
        case Job():
            _work_with(message)
        case Rollout():
            for number in (1, len(message.waves)):
                _work_with(message.wave(number))
        case Schedule():
            message.explain()
            for occurrence in islice(message.coming(NOW), 2):
                _work_with(occurrence.job())
        case Report():
            first_line(message)
        case CheckIn():
            for group in message.facts.groups:
                check_name(group)
        case Cancellation():
            message.concerns(WS)


def _work_with(job: Job) -> None:
    assert job.digest() == Job.read(job.body()).digest()
    assert job.title
    routing_keys(job)
    for moment in (job.offer_at, job.mandatory_at, job.expires_at):
        if isinstance(moment, WallClock):
            moment.instant()


def _order(data: bytes) -> None:
    """An accepted order is for the agent, and its ledger can store it."""
    job_id = job_id_of(data, None)
    assert job_id is None or check_name(job_id) == job_id
    refusal: Exception | None = None
    for reader in _READERS:
        for words in _WORDS:
            try:
                order = read_order(data, f"{words}.workstation.{WS}", reader)
            except UnreadableMessage as poison:
                refusal = poison
                continue
            if isinstance(order, Job):
                assert reader.kind is AgentKind.SERVICE or not order.command.background
                _keep(order)
    if refusal:
        raise refusal


def _keep(job: Job) -> None:
    database = _ledger()
    database.execute("BEGIN")
    try:
        transaction = Transaction(database)
        accepted = transaction.accept(job, NOW.timestamp())
        assert isinstance(accepted, Accepted)
        assert [entry.job for entry in transaction.open_records()] == [job]
        assert accepted.offer_at <= accepted.expires_at or accepted.job.offer_at is None
    finally:
        database.rollback()


def _signed(data: bytes) -> None:
    """With any signatures in front of an order, only what was signed is accepted."""
    header, _, body = data.partition(b"\n")
    for words in _WORDS:
        key = f"{words}.workstation.{WS}"
        with suppress(UnreadableMessage):
            read_order(body, key, _READERS[0], _trust(), header.decode(errors="replace"))
            assert body in {signed.partition(b"\n")[2] for signed in seeds.SIGNED}
            return
    raise UnreadableMessage("by no way")


@cache
def _trust() -> Trust:
    folder = _folder() / "trusted"
    folder.mkdir(mode=0o755)
    (folder / "ada.pub").write_bytes(seeds.TRUSTED.body())
    given = AgentSettings(workstation=WS, signed_within=timedelta(days=3650))
    return Trust(folder, given)


def _signatures(text: str) -> None:
    found = read_signatures(text)
    assert read_signatures(write_signatures(found)) == found


@cache
def _ledger() -> Any:
    return open_ledger(_folder() / "ledger.db")


def _entry(kind: str, data: bytes) -> None:
    """A view skips unreadable entries; the history records those that it cannot keep."""
    entry = StreamEntry(1, kind, "", data, "guest", f"{kind}.x")
    StreamEntry(1, kind, "", data, f"service@{WS}", f"{kind}.{WS}.service").records()
    records = entry.records()
    if not records:
        raise ValueError("there is nothing in it")
    for record in records:
        if isinstance(record, Job | Report):
            job_id = record.id if isinstance(record, Job) else record.job_id
            list(entry.of_job(job_id))
    with _history().connect() as connection:
        projection = Projection(connection)
        projection.add([entry])
        projection.flush()
        connection.rollback()


@cache
def _history() -> Any:
    return open_history(f"sqlite:///{_folder()}/history.db")


# What stands around a message


def properties(data: bytes) -> DeliveredMessage:
    """Return a message with the properties of a header frame, as it is delivered."""
    payload = struct.pack(">HHQ", 60, 0, 0) + data
    frame = struct.pack(">BHI", FRAME_HEADER, 1, len(payload)) + payload + bytes([FRAME_END])
    _, _, header = decode_frame(frame)
    assert isinstance(header, ContentHeader)
    deliver = commands.Basic.Deliver(delivery_tag=1, routing_key="", exchange="", consumer_tag="")
    return DeliveredMessage(delivery=deliver, header=header, body=b"", channel=None)  # type: ignore[arg-type]


def _properties(data: bytes) -> None:
    """Any properties that the broker passes on can be received and logged."""
    # Which properties follow is a word of bits; the lowest says that another follows.
    delivered = properties(_FLAGS.pack(_FLAGS.unpack(data[:2].ljust(2, b"\0"))[0] & ~1) + data[2:])
    message = IncomingMessage(delivered)
    letter = read_letter(message)
    assert letter.id == read_letter(message).id
    assert fingerprint(message) == fingerprint(message)
    said = (message.type or "", message.message_id or "", b"", message.user_id or "")
    entry = StreamEntry(1, *said, letter.routing_key)
    entry.records()
    assert entry.digest == StreamEntry(2, *said, letter.routing_key).digest
    _delivery_count(Delivery(1, "", delivered.header.properties, b""))


def _class(name: str) -> type[schemas.Message]:
    found: type[schemas.Message] = getattr(schemas, name)
    return found


# What people write


def _job_file(suffix: str, data: bytes) -> None:
    for job in parse_jobs(data, f"jobs{suffix}"):
        assert Job.read(job.body()) == job


def _environment(kind: type[settings.BrokerSettings], data: bytes) -> None:
    given = (line.partition(b"=") for line in data.replace(b"\0", b"").split(b"\n"))
    variables = {b"PCM_" + name.upper(): value for name, _, value in given if name}
    with (
        patch.dict(os.environb, variables, clear=True),
        patch.object(settings, "_SECRETS", _folder() / "none"),
    ):
        load(kind)


def _env_file(data: bytes) -> None:
    file = _folder() / ".env"
    file.write_bytes(data)
    with (
        chdir(_folder()),
        patch.dict(os.environ, clear=True),
        patch.object(settings, "_SECRETS", _folder() / "none"),
    ):
        load(AgentSettings)


def _secrets(data: bytes) -> None:
    secrets = _folder() / "secrets"
    secrets.mkdir(exist_ok=True)
    for name, value in zip(("PCM_AMQP_URL", "PCM_GROUPS"), data.split(b"\n\n"), strict=False):
        (secrets / name).write_bytes(value)
    with patch.dict(os.environ, clear=True), patch.object(settings, "_SECRETS", secrets):
        load(AgentSettings)


def _text(read: Callable[[str], object], data: bytes) -> None:
    read(os.fsdecode(data))  # as an argument of a program


def _duration(text: str) -> None:
    duration = parse_duration(text)
    assert parse_duration(duration_text(duration)) is not None


def _moment_of(text: str) -> None:
    parse_moment(text, NOW)


def _windows(text: str) -> None:
    read = windows.parse_windows(text)
    assert windows.parse_windows(str(read)) == read
    assert read.start(NOW.timestamp(), 60.0, UTC) >= NOW.timestamp()


def _cron(text: str) -> None:
    job = Job.read(seeds.JOB)
    schedule = Schedule(name="s", repeat=_check_cron(text), job=job, zone="Europe/Berlin")
    schedule.explain()
    list(islice(schedule.coming(NOW), 2))


def _target(text: str) -> None:
    target = Target.parse(text)
    assert Target.parse(str(target)) == target


def _user(text: str) -> None:
    word = user_word(check_user(text))
    assert user_of_word(word) == (word if "::" in word else text)


def _word(text: str) -> None:
    user = user_of_word(text)
    assert user is None or user_word(user) == text


# What other users of the machine can write


def _standing(data: bytes) -> None:
    ada, ben = (Standings(_folder(), Identity(AgentKind.INTERACTIVE, "ws", u)) for u in "ab")
    ada.publish({"job": Standing(due_at=0, accepted=False, answered=False, shown_at=0)})
    next((_folder() / "claims").glob("*interactive-b")).write_bytes(data)
    assert ada.prefers_other("job", 0) in {True, False}
    ada.close()
    ben.close()


def _claim(data: bytes) -> None:
    claims = _folder() / "claims"
    claims.mkdir(exist_ok=True)
    (claims / "job").write_bytes(data)
    found = decision(_folder(), "job")
    assert (found is None) == (not data)
    if found is not None:
        assert found.running in {True, False}


def _request(data: bytes) -> None:
    request = _read(data)
    for read in (
        lambda: text_field(request, "job"),
        lambda: text_field(request, "do"),
        lambda: read_reason(request.get("reason", "")),
        lambda: _moment(request, "until"),
    ):
        with suppress(RequestRejected):
            read()


_PLATFORM: TypeAdapter[str] = TypeAdapter(Platform)

_UNKEPT = (DataError, OverflowError, ValueError)

ENTRANCES = (
    *(
        Entrance(f"message:{kind.__name__}", partial(_message, kind), given, (InvalidMessage,))
        for kind, given in seeds.MESSAGES.items()
    ),
    *(
        Entrance(
            f"entry:{kind}",
            partial(_entry, kind),
            seeds.MESSAGES[_class(message)],
            _UNKEPT,
        )
        for kind, message in _KINDS.items()
    ),
    *(
        Entrance(f"job file {suffix or '-'}", partial(_job_file, suffix), given, (WrongJobFile,))
        for suffix, given in seeds.FILES.items()
    ),
    *(
        Entrance(kind.__name__, partial(_environment, kind), seeds.VARIABLES, (WrongSetting,))
        for kind in (AgentSettings, HistorySettings)
    ),
    *(
        Entrance(name, partial(_text, read), given, (ValueError,))
        for name, read, given in (
            ("duration", _duration, seeds.DURATIONS),
            ("moment", _moment_of, seeds.MOMENTS),
            ("cron", _cron, seeds.CRONS),
            ("zone", _check_zone, (b"Europe/Berlin", b"UTC", b"../../etc/passwd")),
            ("windows", _windows, seeds.WINDOWS),
            ("name", check_name, (b"ws-042", b"A_b")),
            ("text", check_text, (b"text",)),
            ("user", _user, (b"ada", b"Ada.Lovelace@example.com", b"EXAMPLE\\ada")),
            ("user's word", _word, (b"ada:2elovelace", b"ada", b"x::00")),
            ("target", _target, (b"all", b"group:lab", b"workstation:ws-1")),
            ("platform", _PLATFORM.validate_python, (b"linux", b"linux/AMD64")),
            ("waves", read_waves, (b"1,10%,50%,100%", b"3")),
            ("limit", check_limit, (b"5%", b"3")),
            ("signatures", _signatures, seeds.SIGNATURES),
            ("address", address.parse_address, (b"localhost:8000", b"[::1]:80")),
        )
    ),
    Entrance("order", _order, seeds.ORDERS, (UnreadableMessage,)),
    Entrance("signed order", _signed, seeds.SIGNED, (UnreadableMessage,)),
    Entrance("properties", _properties, seeds.PROPERTIES),
    Entrance(".env", _env_file, seeds.ENV_FILES, (WrongSetting,)),
    Entrance("secrets", _secrets, seeds.SECRETS, (WrongSetting,)),
    Entrance("claim", _claim, seeds.CLAIMS),
    Entrance("standing", _standing, (b'{"job": [1.0, true, true, 0.5]}',)),
    Entrance("request", _request, seeds.REQUESTS, (RequestRejected,)),
)
"""Add a line here for each new reader of untrusted bytes."""


BY_NAME = {entrance.name: entrance for entrance in ENTRANCES}
