"""Sends jobs: each is recorded first, then published to all it is for; many take one turn."""

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
from broker.client.find_unroutable import unbound
from broker.client.publishing import check_sendable, nobody, outgoing, record, record_key
from broker.client.reconnect import Reconnector
from broker.client.retry_budget import Patience
from broker.signing.signer import headers
from broker.stream import stream
from schemas import Cancellation, Job, SignedJob, Target

if TYPE_CHECKING:
    from broker.signing.signer import Signable

_TOGETHER = 256 * 1024
"""Bytes of jobs that share a record: whoever looks for one of them reads all."""


class _Ready(NamedTuple):
    """A job as it is sent."""

    job: Job
    body: bytes
    expiration: float | None
    headers: HeadersType


class Sending:
    """Sends jobs over a line, in whose name they are signed."""

    def __init__(self, line: Reconnector, signed: "Callable[[Signable], HeadersType]") -> None:
        self._line = line
        self._signed = signed
        # What the broker returns, it names by its id: two of the same id would be confused.
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, job: Job) -> asyncio.Lock:
        """Return what is held while a job of that id is sent."""
        return self._under_way.setdefault(job.id, asyncio.Lock())

    async def one(
        self,
        job: Job,
        patience: Patience,
        *,
        partly: bool = False,
        signed: SignedJob | None = None,
    ) -> None:
        """Send a job.

        Args:
            job: which.
            patience: with a broker that is out of reach.
            partly: whether targets that no queue is bound for are passed over.
            signed: the bytes and signatures that it has already.

        Raises:
            Unroutable: it reaches nobody, or, unless `partly`, not all its targets.
            ValueError: it cannot be sent.
        """
        ready = self._ready(job, signed)
        async with self.turn(job):
            (error,) = await self._persist([ready], patience, partly=partly)
        if error is not None:
            raise error

    async def all(self, jobs: Sequence[Job], patience: Patience) -> list[Sent]:
        """Send jobs together; tell what became of each."""
        errors: list[Exception | None] = [None] * len(jobs)
        ready: dict[int, _Ready] = {}
        turns: list[asyncio.Lock] = []
        later: list[int] = []
        try:
            for place, job in enumerate(jobs):
                turn = self.turn(job)
                if turn.locked():  # not waited for: who holds it may wait for one of ours
                    later.append(place)
                    continue
                try:
                    ready[place] = self._ready(job)
                except ValueError as error:
                    errors[place] = error
                else:
                    await turn.acquire()
                    turns.append(turn)
            found = await self._persist(list(ready.values()), patience)
        finally:
            for turn in turns:
                turn.release()
        for place, wrong in zip(ready, found, strict=True):
            errors[place] = wrong
        for place in later:
            try:
                await self.one(jobs[place], patience)
            except (Unroutable, ValueError) as error:
                errors[place] = error
        return list(map(Sent, jobs, errors))

    def _ready(self, job: Job, signed: SignedJob | None = None) -> _Ready:
        body = signed.job_body if signed else job.body()
        told = headers(signed.signatures) if signed else self._signed(job)
        return _Ready(job, body, check_sendable(job, body), told)

    async def _persist(
        self, ready: Sequence[_Ready], patience: Patience, *, partly: bool = False
    ) -> list[Unroutable | None]:
        return await self._line.persist(
            lambda link: self._send(link.publisher, ready, partly=partly), patience
        )

    async def _send(
        self, publisher: Publisher, ready: Sequence[_Ready], *, partly: bool
    ) -> list[Unroutable | None]:
        """Record jobs and publish them; return what is wrong with each."""
        errors: dict[str, Unroutable] = {}
        if not partly:
            for job, lost in await _lost(publisher, ready):
                errors[job.id] = Unroutable(nobody(lost))
        there = [one for one in ready if one.job.id not in errors]
        await stream.append_all(publisher, list(_records(publisher, there)))
        withdrawn: list[Job] = []
        messages = (
            outgoing(
                publisher, one.job, one.job, one.expiration, one.body,
                partly=partly, headers=one.headers,
            )
            for one in there
        )  # fmt: skip
        # Most jobs are one message; those of one id must not be on the way at the same time.
        for turn in zip_longest(*messages):
            on_the_way = [
                (one.job, message)
                for one, message in zip(there, turn, strict=True)
                if message is not None and one.job.id not in errors
            ]
            found = await publisher.publish_all([message for _, message in on_the_way])
            for (job, _), error in zip(on_the_way, found, strict=True):
                if error is not None:
                    errors[job.id] = Unroutable(nobody(job.targets))
                    withdrawn.append(job)
        for job in withdrawn:
            reason = nobody(job.targets)
            withdrawal = Cancellation(job_id=job.id, reason=reason, unsent=True)
            await record(publisher, withdrawal, self._signed(withdrawal))
        return [errors.get(one.job.id) for one in ready]


async def _lost(
    publisher: Publisher, ready: Sequence[_Ready]
) -> list[tuple[Job, Sequence[Target]]]:
    """Return the jobs with targets that reach no queue, which one publish to many cannot tell.

    One target needs no probe: its publish itself says so.
    """
    asked = [
        (one.job, target, key)
        for one in ready
        if len(one.job.targets) > 1
        for target, key in zip(one.job.targets, topology.routing_keys(one.job), strict=True)
    ]
    lost: dict[str, tuple[Job, list[Target]]] = {}
    for place in await unbound(publisher, [key for _, _, key in asked]):
        job, target, _ = asked[place]
        lost.setdefault(job.id, (job, []))[1].append(target)
    return list(lost.values())


def _records(publisher: Publisher, ready: Iterable[_Ready]) -> Iterator[Outgoing]:
    """Yield the messages that record jobs, a line each; what is signed stands alone, as it is."""
    lines: list[_Ready] = []
    size = 0
    for one in ready:
        if lines and (one.headers or lines[0].headers or size + len(one.body) > _TOGETHER):
            yield _record(publisher, lines)
            lines, size = [], 0
        lines.append(one)
        size += len(one.body)
    if lines:
        yield _record(publisher, lines)


def _record(publisher: Publisher, lines: Sequence[_Ready]) -> Outgoing:
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
