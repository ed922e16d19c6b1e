"""Send jobs: record each in the stream, then publish it to its targets, in batches."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.connection import Unroutable
from broker.amqp.publisher import Publisher
from broker.client.batch import Sent
from broker.client.find_unroutable import find_unbound
from broker.client.publishing import (
    check_sendable,
    outgoing,
    record_in_stream,
    record_key,
    unbound_message,
)
from broker.client.reconnect import Reconnector
from broker.client.retry_budget import RetryBudget
from broker.signing.signer import signature_headers
from broker.stream import stream
from schemas import Cancellation, Job, SignedJob, Target

if TYPE_CHECKING:
    from broker.signing.signer import Signable

_RECORD_BYTES = 256 * 1024
"""Size limit of a record of several jobs: a search for one of them reads all."""


class _PreparedJob(NamedTuple):
    """A job with its message's body, expiration and headers."""

    job: Job
    body: bytes
    expiration: float | None
    headers: HeadersType


class JobSender:
    """Send jobs over a connection that is reopened when it is lost."""

    def __init__(self, reconnector: Reconnector, sign: "Callable[[Signable], HeadersType]") -> None:
        self._reconnector = reconnector
        self._sign = sign
        # A returned message is identified by its id: send no two of one id concurrently.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, job: Job) -> asyncio.Lock:
        """Return the lock to hold while a job of this id is sent."""
        return self._locks.setdefault(job.id, asyncio.Lock())

    async def send(
        self,
        job: Job,
        budget: RetryBudget,
        *,
        partly: bool = False,
        signed: SignedJob | None = None,
    ) -> None:
        """Send a job.

        Args:
            job: the job.
            budget: limits the retries while the broker is unreachable.
            partly: whether to skip targets that no queue is bound for.
            signed: its bytes and signatures, if it is signed already.

        Raises:
            Unroutable: it reaches no queue, or, unless `partly`, not all its targets.
            ValueError: it cannot be sent.
        """
        prepared = self._prepare(job, signed)
        async with self.lock(job):
            (error,) = await self._retry([prepared], budget, partly=partly)
        if error is not None:
            raise error

    async def send_all(self, jobs: Sequence[Job], budget: RetryBudget) -> list[Sent]:
        """Send jobs together; return the outcome of each."""
        errors: list[Exception | None] = [None] * len(jobs)
        prepared: dict[int, _PreparedJob] = {}
        locks: list[asyncio.Lock] = []
        postponed: list[int] = []
        try:
            for index, job in enumerate(jobs):
                lock = self.lock(job)
                if lock.locked():  # waiting here could deadlock: its holder may wait for our locks
                    postponed.append(index)
                    continue
                try:
                    prepared[index] = self._prepare(job)
                except ValueError as error:
                    errors[index] = error
                else:
                    await lock.acquire()
                    locks.append(lock)
            unroutable = await self._retry(list(prepared.values()), budget)
        finally:
            for lock in locks:
                lock.release()
        for index, failure in zip(prepared, unroutable, strict=True):
            errors[index] = failure
        for index in postponed:
            try:
                await self.send(jobs[index], budget)
            except (Unroutable, ValueError) as error:
                errors[index] = error
        return list(map(Sent, jobs, errors))

    def _prepare(self, job: Job, signed: SignedJob | None = None) -> _PreparedJob:
        body = signed.job_body if signed else job.body()
        headers = signature_headers(signed.signatures) if signed else self._sign(job)
        return _PreparedJob(job, body, check_sendable(job, body), headers)

    async def _retry(
        self, jobs: Sequence[_PreparedJob], budget: RetryBudget, *, partly: bool = False
    ) -> list[Unroutable | None]:
        return await self._reconnector.retry(
            lambda link: self._send(link.publisher, jobs, partly=partly), budget
        )

    async def _send(
        self, publisher: Publisher, jobs: Sequence[_PreparedJob], *, partly: bool
    ) -> list[Unroutable | None]:
        """Record jobs and publish them; return the error of each."""
        errors: dict[str, Unroutable] = {}
        if not partly:
            for job, targets in await _find_unbound(publisher, jobs):
                errors[job.id] = Unroutable(unbound_message(targets))
        routable = [one for one in jobs if one.job.id not in errors]
        await stream.append_all(publisher, list(_records(publisher, routable)))
        unsent: list[Job] = []
        messages = (
            outgoing(
                publisher, one.job, one.job, one.expiration, one.body,
                partly=partly, headers=one.headers,
            )
            for one in routable
        )  # fmt: skip
        # Most jobs are one message. Messages of one id must not be in flight together.
        for batch in zip_longest(*messages):
            in_flight = [
                (one.job, message)
                for one, message in zip(routable, batch, strict=True)
                if message is not None and one.job.id not in errors
            ]
            results = await publisher.publish_all([message for _, message in in_flight])
            for (job, _), error in zip(in_flight, results, strict=True):
                if error is not None:
                    errors[job.id] = Unroutable(unbound_message(job.targets))
                    unsent.append(job)
        for job in unsent:
            reason = unbound_message(job.targets)
            cancellation = Cancellation(job_id=job.id, reason=reason, unsent=True)
            await record_in_stream(publisher, cancellation, self._sign(cancellation))
        return [errors.get(one.job.id) for one in jobs]


async def _find_unbound(
    publisher: Publisher, jobs: Sequence[_PreparedJob]
) -> list[tuple[Job, Sequence[Target]]]:
    """Return the jobs with targets that no queue is bound for.

    A publish to several keys is returned only if all are unroutable. A single target needs no
    probe.
    """
    probes = [
        (one.job, target, key)
        for one in jobs
        if len(one.job.targets) > 1
        for target, key in zip(one.job.targets, topology.routing_keys(one.job), strict=True)
    ]
    unbound: dict[str, tuple[Job, list[Target]]] = {}
    for index in await find_unbound(publisher, [key for _, _, key in probes]):
        job, target, _ = probes[index]
        unbound.setdefault(job.id, (job, []))[1].append(target)
    return list(unbound.values())


def _records(publisher: Publisher, jobs: Iterable[_PreparedJob]) -> Iterator[Outgoing]:
    """Yield the messages that record jobs, one a line; a signed job has a message of its own."""
    lines: list[_PreparedJob] = []
    size = 0
    for one in jobs:
        if lines and (one.headers or lines[0].headers or size + len(one.body) > _RECORD_BYTES):
            yield _record(publisher, lines)
            lines, size = [], 0
        lines.append(one)
        size += len(one.body)
    if lines:
        yield _record(publisher, lines)


def _record(publisher: Publisher, lines: Sequence[_PreparedJob]) -> Outgoing:
    first = lines[0]
    return publisher.outgoing(
        topology.REPORTS,
        record_key(first.job),
        b"\n".join(one.body for one in lines),
        kind=first.job.kind,
        message_id=first.job.id,
        headers=first.headers,
        unroutable_fails=True,
    )
