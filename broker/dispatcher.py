"""Publishes jobs and cancellations for administrators, and follows what comes of them."""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

from aio_pika.abc import AbstractConnection

from broker import stream, topology
from broker.batch import IN_FLIGHT, Sent, send_all
from broker.connection import (
    CALL_LIMIT,
    LoginRefused,
    Publisher,
    Unreachable,
    Unroutable,
    connect,
    translated,
)
from broker.patience import Patience
from broker.probes import unbound
from broker.progress import Progress
from broker.settings import DispatcherSettings, load
from schemas import (
    Cancellation,
    Job,
    Report,
    Rollout,
    RolloutOrder,
    Schedule,
    ScheduleRemoval,
    Target,
    WallClock,
    WaveSent,
    workstation,
)
from schemas.job import id_time, whoami
from schemas.message import BODY_LIMIT

# A header frame has to fit into one frame of 131,072 bytes.
_KEYS_LIMIT = 120_000
_KEY_OVERHEAD = 5
_MAX_TTL = 2**32 / 1000 - 1  # seconds: the broker counts in 32 bits of milliseconds
_CLOCK_SKEW = timedelta(minutes=10)
_SILENCE = 60.0  # seconds


class UnknownJob(Exception):
    """No job with this id was sent, or the broker no longer keeps its record."""


_T = TypeVar("_T")
_Asked = Schedule | ScheduleRemoval | Rollout | RolloutOrder | WaveSent


@dataclass(frozen=True)
class _Link:
    connection: AbstractConnection
    publisher: Publisher
    stack: AsyncExitStack


class Dispatcher:
    """Publishes jobs and cancellations, and follows the reports.

    It keeps one connection and makes it again when it is lost; a publish whose fate is not known
    is repeated with the same job id, which agents take for the same job.
    """

    def __init__(
        self, settings: DispatcherSettings, told: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._told = told or (lambda _: None)
        self._link: _Link | None = None
        self._linking = asyncio.Lock()
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: DispatcherSettings | None = None,
        told: Callable[[str], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Connect, and declare the topology where it is missing.

        Args:
            settings: how; default: from the environment.
            told: is told once why, when the broker is out of reach and tried again.

        Raises:
            Unreachable: no broker answered within the patience set.
        """
        dispatcher = cls(settings or load(DispatcherSettings), told)
        try:
            await dispatcher._persist(_reached)
            yield dispatcher
        finally:
            await dispatcher._unlink(dispatcher._link)

    async def dispatch(self, job: Job, *, partly: bool = False) -> Job:
        """Send a job; when this returns, the broker has stored it in every queue it reaches.

        The job's record goes to the stream first: whoever holds only its id can follow it,
        and cancel it wherever it went.

        Args:
            job: which job.
            partly: whether targets that no queue is bound for are passed over.

        Raises:
            Unroutable: no queue is bound for one of its targets, named in the message; nothing
                was sent.
            Unreachable: the broker could not be reached in time; send the same job again.
            ValueError: it is over the size limit, or has expired.
        """
        return await self._dispatch(job, self._patience(), partly=partly)

    async def dispatch_all(
        self, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int = IN_FLIGHT
    ) -> AsyncGenerator[Sent, None]:
        """Send many jobs at once, each as `dispatch` does; yield what became of each, in order.

        A job that cannot be sent is yielded with its error (`Unroutable`, `ValueError`), and the
        others go on. When the broker stays out of reach, or who iterates stops early, it is not
        known of the jobs not yet yielded whether they were sent; send the same jobs again.

        Args:
            jobs: which; no more of them are taken than can be on the way.
            in_flight: how many may be on the way, unconfirmed or not yet yielded.

        Raises:
            Unreachable: the broker could not be reached in time.
            Refused: no permission.
            ValueError: `in_flight` is less than 1.
        """
        async with aclosing(send_all(self.sender(), jobs, in_flight)) as all_sent:
            async for sent in all_sent:
                yield sent

    def sender(self) -> Callable[[Job], Coroutine[Any, Any, Sent]]:
        """Return what sends jobs that share one patience, and tells what became of each."""
        patience = self._patience()

        async def send(job: Job) -> Sent:
            try:
                await self._dispatch(job, patience)
            except (Unroutable, ValueError) as error:
                return Sent(job, error)
            return Sent(job, None)

        return send

    async def _dispatch(self, job: Job, patience: Patience, *, partly: bool = False) -> Job:
        expiration = check_sendable(job)

        async def send(link: _Link) -> None:
            if not partly:
                await _check_routes(link.publisher, job)
            await _record(link.publisher, f"job.{job.id}", job)
            try:
                await _publish(link.publisher, job, job, expiration, partly=partly)
            except Unroutable:
                lost = _nobody(job.targets)
                withdrawn = Cancellation(job_id=job.id, reason=lost)
                await _record(link.publisher, f"cancellation.{job.id}", withdrawn)
                raise Unroutable(lost) from None

        # What the broker returns, it names by its id: two of the same id would be confused.
        async with self._sending.setdefault(job.id, asyncio.Lock()):
            await self._persist(send, patience)
        return job

    async def dispatch_occurrence(self, job: Job) -> Job:
        """Send a job as `dispatch` does, but its record last, which then proves that it was sent.

        That is for jobs whose ids are known before: whoever finds no record sends it again.

        Raises:
            Unroutable, Unreachable, ValueError: as `dispatch` does.
        """
        expiration = check_sendable(job)

        async def send(link: _Link) -> None:
            await _check_routes(link.publisher, job)
            try:
                await _publish(link.publisher, job, job, expiration)
            except Unroutable:
                raise Unroutable(_nobody(job.targets)) from None
            await _record(link.publisher, f"job.{job.id}", job)

        async with self._sending.setdefault(job.id, asyncio.Lock()):
            await self._persist(send)
        return job

    async def unbound(self, job: Job) -> list[Target]:
        """Return a job's targets that no queue is bound for."""
        return await self._persist(lambda link: _unbound(link.publisher, job))

    async def record(self, record: _Asked) -> None:
        """Put into the stream what is no workstation's business yet.

        Raises:
            Unreachable: the broker could not be reached in time; record it again.
            ValueError: it is over the size limit.
        """
        _check_size(record)
        key = f"{record.kind}.{_subject(record)}"
        await self._persist(lambda link: _record(link.publisher, key, record))

    async def cancel(
        self,
        job_id: str,
        reason: str = "",
        workstations: Sequence[str] = (),
        job: Job | None = None,
    ) -> Cancellation:
        """Withdraw a job: it does not start, and is ended where it runs.

        Args:
            job_id: of which job.
            reason: told to the workstations.
            workstations: only there; default: wherever it went.
            job: the job itself, where that is known; else it is looked for in the stream.

        Raises:
            UnknownJob: the broker has no record of it.
            Unreachable: the broker could not be reached in time; cancel again.
        """
        cancellation = Cancellation(job_id=job_id, reason=reason, workstations=tuple(workstations))

        async def send(link: _Link) -> None:
            found = job or await _find(link, job_id)
            await _record(link.publisher, f"cancellation.{job_id}", cancellation)
            await _publish(link.publisher, cancellation, found)

        await self._persist(send)
        return cancellation

    async def follow(
        self, job_id: str, progress: Progress | None = None
    ) -> AsyncGenerator[Report, None]:
        """Yield a job's reports, old and new, until it has ended wherever it went.

        That is: on every workstation that received it or that it names, and then no further
        workstation was heard of for a while (the `settle` setting).

        Args:
            job_id: of which job.
            progress: takes in what is read; it can be looked at meanwhile.

        Raises:
            UnknownJob: the broker has no record of it.
            Unreachable: the broker stayed out of reach.
        """
        progress = progress or Progress(job_id)
        start: int | datetime | None = _since(job_id)
        patience = self._patience()
        while True:
            link, mark = await self._persist(_marked)
            try:
                async with stream.read(link.connection, start) as entries:
                    look = partial(stream.mark, link.publisher)
                    async for entry in _until_settled(entries, progress, mark, look, self._settle):
                        start = entry.offset + 1
                        patience.renew()
                        if entry.message_id == mark:
                            progress.caught_up.set()
                        for record in entry.of_job(job_id):
                            if progress.add(record) and isinstance(record, Report):
                                yield record
                    return
            except Unreachable as failure:
                await self._unlink(link)
                await patience.wait(failure)

    async def do(self, work: Callable[[Publisher], Awaitable[_T]]) -> _T:
        """Do something over the connection; where that is lost, do it again over a new one.

        Raises:
            Unreachable: the broker could not be reached in time.
        """
        return await self._persist(lambda link: work(link.publisher))

    @property
    def _settle(self) -> float:
        return self._settings.settle.total_seconds()

    async def _persist(
        self, send: Callable[[_Link], Awaitable[_T]], patience: Patience | None = None
    ) -> _T:
        """Do something over the link; when the link fails, do it again over a new one."""
        patience = patience or self._patience()
        while True:
            link = await patience.linked(self._linked)
            try:
                result = await send(link)
            except LoginRefused:
                raise
            except Unreachable as failure:
                await self._unlink(link)
                await patience.lost(link, failure)
            else:
                patience.renew()
                return result

    def _patience(self) -> Patience:
        return Patience(self._settings.patience.total_seconds(), self._told)

    async def _linked(self) -> _Link:
        async with self._linking:
            if self._link is None:
                async with AsyncExitStack() as stack:
                    connection = await stack.enter_async_context(
                        connect(self._settings, f"pcm {whoami()}")
                    )
                    with translated("declaring the topology"):
                        async with asyncio.timeout(CALL_LIMIT):
                            await topology.ensure(connection)
                    publisher = await Publisher.open(connection)
                    self._link = _Link(connection, publisher, stack.pop_all())
            return self._link

    async def _unlink(self, link: _Link | None) -> None:
        if link is not None:
            if self._link is link:
                self._link = None
            await link.stack.aclose()


async def _reached(_: _Link) -> None:
    """Ask nothing more than that there is a link."""


async def _marked(link: _Link) -> tuple[_Link, str]:
    return link, await stream.mark(link.publisher)


def _subject(record: _Asked) -> str:
    """Return what a record is about, as its key says."""
    if isinstance(record, Schedule | ScheduleRemoval):
        return record.name
    return record.id if isinstance(record, Rollout) else record.rollout_id


async def _record(publisher: Publisher, key: str, record: stream.Record) -> None:
    message_id = record.id if isinstance(record, Job) else None
    await stream.append(publisher, key, record.body(), kind=record.kind, message_id=message_id)


async def send_again(publisher: Publisher, job: Job, body: bytes) -> None:
    """Publish a job that was read from `body`, as it stands there, once more to all it is for.

    Raises:
        Unroutable: no queue is bound for any of its targets.
        ValueError: it is over the size limit, or has expired.
    """
    if len(body) > BODY_LIMIT:
        raise ValueError(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise ValueError(f"it expired at {job.expires_at}")
    # Its record may be gone, or never was: without it nobody could follow or cancel the job.
    await stream.append(publisher, f"job.{job.id}", body, kind=job.kind, message_id=job.id)
    await _publish(publisher, job, job, expiration, body)


async def _publish(
    publisher: Publisher,
    record: Job | Cancellation,
    job: Job,
    expiration: float | None = None,
    body: bytes | None = None,
    *,
    partly: bool = False,
) -> None:
    """Publish a job, or its cancellation, under the job's keys.

    What is for some workstations only goes to those; whichever key it has, it comes to the queue
    behind the job.
    """
    keys_of_all = topology.routing_keys(job)
    if isinstance(record, Cancellation) and record.workstations:
        keys_of_all = tuple(
            topology.routing_key(job, workstation(name)) for name in record.workstations
        )
    for keys in _split(keys_of_all):
        await publisher.publish(
            topology.JOBS,
            keys[0],
            record.body() if body is None else body,
            kind=record.kind,
            message_id=job.id,
            headers={"BCC": list(keys[1:])} if keys[1:] else None,
            expiration=expiration,
            unroutable_fails=isinstance(record, Job) and not partly,
        )


async def _check_routes(publisher: Publisher, job: Job) -> None:
    """Find the targets that reach no queue, which one publish to many cannot tell.

    One target needs no probe: its publish itself says so.
    """
    if len(job.targets) > 1 and (lost := await _unbound(publisher, job)):
        raise Unroutable(_nobody(lost))


async def _unbound(publisher: Publisher, job: Job) -> list[Target]:
    """Return the targets that reach no queue."""
    return [job.targets[place] for place in await unbound(publisher, topology.routing_keys(job))]


def _nobody(targets: Iterable[Target]) -> str:
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


def check_sendable(job: Job) -> float | None:
    """Return the seconds for which queues keep a job; None: until it is fetched.

    Raises:
        ValueError: it is over the size limit, or has expired.
    """
    _check_size(job)
    if (expiration := _time_to_live(job)) is not None and expiration <= 0:
        raise ValueError("expires_at: is in the past, so the job could never start")
    return expiration


def _check_size(record: Job | _Asked) -> None:
    size = len(record.body())
    if size > BODY_LIMIT:
        raise ValueError(f"{record.kind}: {size} bytes are over the limit of {BODY_LIMIT}")


def _time_to_live(job: Job) -> float | None:
    """Return the seconds for which queues keep a job; None: until it is fetched."""
    if job.expires_at is None:
        return None
    if isinstance(job.expires_at, WallClock):  # the last workstation's clock shows it then
        end = job.expires_at.local.replace(tzinfo=UTC) + timedelta(hours=12)
    else:
        end = job.expires_at
    left = (end - datetime.now(UTC)).total_seconds()
    return left if left < _MAX_TTL else None


def _since(job_id: str) -> datetime | None:
    made = id_time(job_id)
    return made - _CLOCK_SKEW if made else None


async def _find(link: _Link, job_id: str) -> Job:
    async with aclosing(
        stream.read_all(link.connection, link.publisher, _since(job_id))
    ) as entries:
        async for entry in entries:
            if entry.kind == "job" and entry.message_id == job_id:
                for record in entry.of_job(job_id):
                    if isinstance(record, Job):
                        return record
    raise UnknownJob(f"{job_id}: no such job was sent")


async def _until_settled(
    entries: AsyncIterator[stream.Entry],
    progress: Progress,
    mark: str,
    look: Callable[[], Awaitable[str]],
    settle: float,
) -> AsyncIterator[stream.Entry]:
    """Pass entries on until the job has ended and no report of it came for a while.

    Where it is silent for long, another mark is put to the stream's end: that it comes shows
    that there is nothing to be told, rather than nobody who tells it.
    """
    caught_up = False
    news = (caught_up, progress.reports)
    quiet_since = heard = time.monotonic()
    while True:
        left = min(_SILENCE, progress.until_over + settle)
        if not caught_up:  # what was there when we came: none of it is waited for
            left = CALL_LIMIT
        elif progress.ended:
            left = quiet_since + settle - time.monotonic()
            if left <= 0 or (progress.closed and not progress.over):
                return
        try:
            async with asyncio.timeout(left):
                entry = await anext(entries)
        except TimeoutError:
            if not caught_up:
                raise Unreachable(f"reading {topology.REPORTS}: nothing more comes") from None
            if time.monotonic() - heard >= _SILENCE:
                mark, caught_up = await look(), False
            continue
        heard = time.monotonic()
        yield entry
        caught_up = caught_up or entry.message_id == mark
        if caught_up and progress.unknown:
            raise UnknownJob(f"{progress.job_id}: no such job was sent")
        if (caught_up, progress.reports) != news:
            news = (caught_up, progress.reports)
            quiet_since = heard
