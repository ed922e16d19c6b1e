"""Publish administrators' orders: to the stream as a record, and to the agents."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.connection import Unroutable
from broker.amqp.publisher import Publisher
from broker.client.find_unroutable import find_unbound
from broker.stream import stream
from schemas import Cancellation, Job, Target, workstation
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.text import listed
from schemas.times import latest

if TYPE_CHECKING:
    from schemas import Rollout, RolloutOrder, Schedule, ScheduleRemoval, WaveEnded, WaveSent

    Plan = Schedule | ScheduleRemoval | Rollout | RolloutOrder | WaveSent | WaveEnded
    """A record that no agent receives."""

# All headers must fit into one frame of 131,072 bytes.
_KEYS_LIMIT = 120_000
_KEY_OVERHEAD = 5
_SHOWN = 10
_OLDEST = timedelta(days=30)
_MAX_TTL = 2**32 / 1000 - 1  # seconds; the broker's limit is 32 bits of milliseconds


class NotSendable(PcmError, ValueError):
    """A message cannot be sent: it is over the size limit, too old, or has expired."""


async def record_in_stream(
    publisher: Publisher,
    asked: "Job | Cancellation | Plan",
    headers: HeadersType | None = None,
    body: bytes | None = None,
) -> None:
    """Append an order or plan to the stream; `body`: in exactly these bytes.

    Raises:
        Unreachable: the broker's answer is not known.
    """
    message_id = asked.id if isinstance(asked, Job) else None
    body = asked.body() if body is None else body
    await stream.append(
        publisher, record_key(asked), body, kind=asked.kind, message_id=message_id, headers=headers
    )


def record_key(asked: "Job | Cancellation | Plan") -> str:
    """Return the routing key of an order or plan in the stream."""
    return f"{asked.kind}.{_subject(asked)}"


def _subject(asked: "Job | Cancellation | Plan") -> str:
    if asked.kind == "schedule" or asked.kind == "schedule_removal":  # noqa: PLR1714 - for mypy
        return asked.name
    if asked.kind == "job" or asked.kind == "rollout":  # noqa: PLR1714
        return asked.id
    return asked.job_id if asked.kind == "cancellation" else asked.rollout_id


def resend_header() -> HeadersType:
    """Return a header that makes a resent message different from the original."""
    return {"sent-again": uuid.uuid4().hex}


async def resend_job(
    publisher: Publisher, job: Job, body: bytes, headers: HeadersType | None = None
) -> None:
    """Publish a job again to all its targets, in the bytes of `body`.

    `headers`: with its signatures.

    Raises:
        Unroutable: no queue is bound for any of its targets.
        NotSendable: it is over the size limit, or has expired.
    """
    if len(body) > BODY_LIMIT:
        raise NotSendable(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise NotSendable(f"it expired at {job.expiry}")
    # The stream may have no record of it; without one the job cannot be followed or cancelled.
    await record_in_stream(publisher, job, headers, body)
    resent = {**resend_header(), **(headers or {})}
    await publish_order(publisher, job, job, expiration, body, headers=resent)


async def publish_order(
    publisher: Publisher,
    record: Job | Cancellation,
    job: Job,
    expiration: float | None = None,
    body: bytes | None = None,
    *,
    partly: bool = False,
    headers: HeadersType | None = None,
) -> None:
    """Publish a job or its cancellation under the job's keys.

    Raises:
        Unroutable: it reaches no queue.
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
    """Yield the messages of a job or its cancellation under the job's keys, usually one.

    A cancellation for some workstations has their keys; it still arrives behind the job in the
    same queue.
    """
    all_keys = topology.routing_keys(job)
    if isinstance(record, Cancellation) and record.workstations:
        all_keys = tuple(
            topology.routing_key(job, workstation(name)) for name in record.workstations
        )
    for keys in _split(all_keys):
        bcc: HeadersType = {"BCC": list(keys[1:])} if keys[1:] else {}
        yield publisher.outgoing(
            topology.JOBS,
            keys[0],
            body,
            kind=record.kind,
            message_id=job.id,
            headers={**(headers or {}), **bcc},
            expiration=expiration,
            unroutable_fails=isinstance(record, Job) and not partly,
        )


async def unbound_targets(publisher: Publisher, job: Job) -> list[Target]:
    """Return the targets that no queue is bound for."""
    unbound = await find_unbound(publisher, topology.routing_keys(job))
    return [job.targets[index] for index in unbound]


class BoundJob(NamedTuple):
    """A job without its unbound targets, and these targets."""

    job: Job
    unbound: list[Target]


def without_unbound(job: Job, unbound: Sequence[Target]) -> BoundJob:
    """Return a job without the targets that no queue is bound for.

    Raises:
        Unroutable: no target is left.
    """
    left_out = frozenset(unbound)
    targets = tuple(target for target in job.targets if target not in left_out)
    if not targets:
        names = listed([str(target) for target in unbound], _SHOWN)
        raise Unroutable(f"no workstation is bound to {names}; nothing was sent")
    return BoundJob(job.model_copy(update={"targets": targets}), list(unbound))


def unbound_message(targets: Iterable[Target]) -> str:
    """Return the error message for targets that no queue is bound for."""
    names = ", ".join(map(str, targets))
    return f"targets: no workstation is bound to {names}; nothing was sent"


def _split(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split keys into as few groups as possible, each of which fits into a header."""
    start = size = 0
    for index, key in enumerate(keys):
        size += len(key) + _KEY_OVERHEAD
        if size > _KEYS_LIMIT:
            yield keys[start:index]
            start, size = index, len(key) + _KEY_OVERHEAD
    yield keys[start:]


def check_sendable(job: Job, body: bytes | None = None) -> float | None:
    """Return a job's time to live in queues, in seconds; None: no limit.

    `body`: the bytes to send; default: the job's own.

    Raises:
        NotSendable: it is over the size limit, or has expired.
    """
    check_size(job, body)
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise NotSendable("expires_at: is in the past; the job could never start")
    if job.created_at < datetime.now(UTC) - _OLDEST:
        raise NotSendable(
            f"created_at: is over {_OLDEST.days} days ago; agents forget jobs of that age"
        )
    return expiration


def check_size(record: "Job | Plan", body: bytes | None = None) -> None:
    """Raise NotSendable if a message is over the size limit."""
    size = len(record.body() if body is None else body)
    if size > BODY_LIMIT:
        raise NotSendable(f"{record.kind}: {size} bytes are over the limit of {BODY_LIMIT}")


def _time_to_live(job: Job) -> float | None:
    """Return a job's time to live in queues, in seconds; None: no limit."""
    left = (latest(job.expiry) - datetime.now(UTC)).total_seconds()
    return left if left < _MAX_TTL else None
