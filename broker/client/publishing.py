"""How what administrators ask goes out: to the stream that keeps it, and to whom it is for."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.publisher import Publisher
from broker.client.find_unroutable import unbound
from broker.stream import stream
from schemas import Cancellation, Job, Target, workstation
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.times import latest

if TYPE_CHECKING:
    from schemas import Rollout, RolloutOrder, Schedule, ScheduleRemoval, WaveEnded, WaveSent

    Plan = Schedule | ScheduleRemoval | Rollout | RolloutOrder | WaveSent | WaveEnded
    """What is no workstation's business yet."""

# A header frame has to fit into one frame of 131,072 bytes.
_KEYS_LIMIT = 120_000
_KEY_OVERHEAD = 5
_OLDEST = timedelta(days=30)
_MAX_TTL = 2**32 / 1000 - 1  # seconds: the broker counts in 32 bits of milliseconds


class NotSendable(PcmError, ValueError):
    """A message cannot be sent: it is over the size limit, too old, or has expired."""


async def record(
    publisher: Publisher,
    asked: "Job | Cancellation | Plan",
    headers: HeadersType | None = None,
    body: bytes | None = None,
) -> None:
    """Put into the stream that something was asked; `body`: in these very bytes.

    Raises:
        Unreachable: the broker's answer is not known.
    """
    message_id = asked.id if isinstance(asked, Job) else None
    body = asked.body() if body is None else body
    await stream.append(
        publisher, record_key(asked), body, kind=asked.kind, message_id=message_id, headers=headers
    )


def record_key(asked: "Job | Cancellation | Plan") -> str:
    """Return the key under which it stands in the stream that something was asked."""
    return f"{asked.kind}.{_subject(asked)}"


def _subject(asked: "Job | Cancellation | Plan") -> str:
    if asked.kind == "schedule" or asked.kind == "schedule_removal":  # noqa: PLR1714 - for mypy
        return asked.name
    if asked.kind == "job" or asked.kind == "rollout":  # noqa: PLR1714
        return asked.id
    return asked.job_id if asked.kind == "cancellation" else asked.rollout_id


def sent_again() -> HeadersType:
    """Return headers that tell a message sent again from what was sent before."""
    return {"sent-again": uuid.uuid4().hex}


async def send_again(
    publisher: Publisher, job: Job, body: bytes, headers: HeadersType | None = None
) -> None:
    """Publish a job that was read from `body`, as it stands there, once more to all it is for.

    `headers`: those by which it is trusted.

    Raises:
        Unroutable: no queue is bound for any of its targets.
        NotSendable: it is over the size limit, or has expired.
    """
    if len(body) > BODY_LIMIT:
        raise NotSendable(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise NotSendable(f"it expired at {job.expires_at}")
    # Its record may be gone, or never was: without it nobody could follow or cancel the job.
    await record(publisher, job, headers, body)
    again = {**sent_again(), **(headers or {})}
    await publish(publisher, job, job, expiration, body, headers=again)


async def publish(
    publisher: Publisher,
    record: Job | Cancellation,
    job: Job,
    expiration: float | None = None,
    body: bytes | None = None,
    *,
    partly: bool = False,
    headers: HeadersType | None = None,
) -> None:
    """Publish a job, or its cancellation, under the job's keys.

    Raises:
        Unroutable: it reaches nobody.
    """
    body = record.body() if body is None else body
    for message in outgoing(
        publisher, record, job, expiration, body, partly=partly, headers=headers
    ):
        for error in await publisher.publish_all([message]):
            if error is not None:
                raise error


def outgoing(
    publisher: Publisher,
    record: Job | Cancellation,
    job: Job,
    expiration: float | None,
    body: bytes,
    *,
    partly: bool,
    headers: HeadersType | None,
) -> Iterator[Outgoing]:
    """Yield the messages of a job, or of its cancellation, under the job's keys: most often one.

    What is for some workstations only goes to those; whichever key it has, it comes to the queue
    behind the job.
    """
    keys_of_all = topology.routing_keys(job)
    if isinstance(record, Cancellation) and record.workstations:
        keys_of_all = tuple(
            topology.routing_key(job, workstation(name)) for name in record.workstations
        )
    for keys in _split(keys_of_all):
        more: HeadersType = {"BCC": list(keys[1:])} if keys[1:] else {}
        yield publisher.outgoing(
            topology.JOBS,
            keys[0],
            body,
            kind=record.kind,
            message_id=job.id,
            headers={**(headers or {}), **more},
            expiration=expiration,
            unroutable_fails=isinstance(record, Job) and not partly,
        )


async def unbound_targets(publisher: Publisher, job: Job) -> list[Target]:
    """Return the targets that reach no queue."""
    return [job.targets[place] for place in await unbound(publisher, topology.routing_keys(job))]


def nobody(targets: Iterable[Target]) -> str:
    """Return what to tell of targets that no queue is bound for."""
    names = ", ".join(map(str, targets))
    return f"targets: no workstation is bound to {names}; nothing was sent"


def _split(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield keys in as few groups as fit into one message's header each."""
    start = size = 0
    for index, key in enumerate(keys):
        size += len(key) + _KEY_OVERHEAD
        if size > _KEYS_LIMIT:
            yield keys[start:index]
            start, size = index, len(key) + _KEY_OVERHEAD
    yield keys[start:]


def check_sendable(job: Job, body: bytes | None = None) -> float | None:
    """Return the seconds for which queues keep a job; None: until it is fetched.

    `body`: in which bytes it is sent.

    Raises:
        NotSendable: it is over the size limit, or has expired.
    """
    check_size(job, body)
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise NotSendable("expires_at: is in the past, so the job could never start")
    if job.created_at < datetime.now(UTC) - _OLDEST:
        raise NotSendable(
            f"created_at: is over {_OLDEST.days} days ago: agents may forget so old jobs"
        )
    return expiration


def check_size(record: "Job | Plan", body: bytes | None = None) -> None:
    """Refuse what is over the size limit of a message, by NotSendable."""
    size = len(record.body() if body is None else body)
    if size > BODY_LIMIT:
        raise NotSendable(f"{record.kind}: {size} bytes are over the limit of {BODY_LIMIT}")


def _time_to_live(job: Job) -> float | None:
    """Return the seconds for which queues keep a job; None: until it is fetched."""
    if job.expires_at is None:
        return None
    left = (latest(job.expires_at) - datetime.now(UTC)).total_seconds()
    return left if left < _MAX_TTL else None
