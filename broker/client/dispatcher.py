"""Publishes jobs and cancellations for administrators, and follows what comes of them."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from aio_pika.abc import HeadersType

from broker.amqp.connection import Unreachable, Unroutable
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.client.batch import IN_FLIGHT, Sender, Sent, send_all
from broker.client.follow import find, since, until_settled
from broker.client.progress import Progress
from broker.client.publishing import (
    check_sendable,
    check_size,
    nobody,
    publish,
    record,
    unbound_targets,
)
from broker.client.reconnect import DispatcherLink, Reconnector
from broker.client.sending import Sending
from broker.settings import DispatcherSettings, load
from broker.signing.signer import Signer, headers
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Cancellation, Job, Pause, Report, SignedJob, Target
from schemas.signature import HEADER

if TYPE_CHECKING:
    from broker.client.publishing import Plan
    from broker.history.workstations import WorkstationRow
    from broker.signing.signer import Signable
    from schemas import Schedule

_T = TypeVar("_T")


class Dispatcher:
    """Publishes jobs and cancellations, and follows the reports.

    It keeps one connection and makes it again when it is lost; a publish whose fate is not known
    is repeated with the same job id, which agents take for the same job.
    """

    def __init__(
        self, settings: DispatcherSettings, told: Callable[[str], None] | None = None
    ) -> None:
        self.settings = settings
        self._settle = settings.settle.total_seconds()
        self._signer = Signer.load(settings.signing_key)
        self._line = Reconnector(settings, told or (lambda _: None))
        self._sending = Sending(self._line, self.signed)

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
            WrongSetting: there is no such signing key.
        """
        dispatcher = cls(settings or load(DispatcherSettings), told)
        try:
            await dispatcher._line.persist(_reached)
            yield dispatcher
        finally:
            await dispatcher._line.close()

    def signed(self, asked: "Signable") -> HeadersType:
        """Return the headers that sign what is asked; none where we have no signing key."""
        return headers((self._signer.sign(asked),)) if self._signer else {}

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
            NotSendable: it is over the size limit, or has expired.
        """
        await self._sending.one(job, self._line.patience(), partly=partly)
        return job

    async def dispatch_signed(self, signed: SignedJob) -> Job:
        """Send a job as `dispatch` does, in the bytes and with the signatures of a file.

        Raises:
            InvalidMessage: it holds no job.
        """
        job = Job.read(signed.text)
        await self._sending.one(job, self._line.patience(), signed=signed)
        return job

    async def dispatch_all(
        self, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int = IN_FLIGHT
    ) -> AsyncGenerator[Sent, None]:
        """Send many jobs at once, each as `dispatch` does; yield what became of each, in order.

        A job that cannot be sent is yielded with its error (`Unroutable`, `NotSendable`), and the
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

    def sender(self) -> Sender:
        """Return what sends jobs that share one patience, and tells what became of each."""
        patience = self._line.patience()

        async def send(jobs: Sequence[Job]) -> list[Sent]:
            return await self._sending.all(jobs, patience)

        return send

    async def dispatch_occurrence(self, job: Job) -> list[Target]:
        """Send a job as `dispatch` does, but its record last, which then proves that it was sent.

        That is for jobs whose ids are known before: whoever finds no record sends it again.

        Returns:
            The targets that no queue is bound for: nobody is there to leave them out.

        Raises:
            Unroutable: that is so of all of them.
            Unreachable, NotSendable: as `dispatch` does.
        """
        expiration = check_sendable(job)
        told = self.signed(job)

        async def send(link: DispatcherLink) -> list[Target]:
            lost = await unbound_targets(link.publisher, job)
            if len(lost) == len(job.targets):
                raise Unroutable(nobody(lost))
            await publish(link.publisher, job, job, expiration, partly=True, headers=told)
            await record(link.publisher, job, told)
            return lost

        async with self._sending.turn(job):
            return await self._line.persist(send)

    async def unbound(self, job: Job) -> list[Target]:
        """Return a job's targets that no queue is bound for."""
        return await self._line.persist(lambda link: unbound_targets(link.publisher, job))

    async def record(self, plan: "Plan") -> None:
        """Put into the stream what is no workstation's business yet.

        Raises:
            Unreachable: the broker could not be reached in time; record it again.
            NotSendable: it is over the size limit.
        """
        from schemas import Rollout, Schedule, ScheduleRemoval

        check_size(plan)
        told = self.signed(plan) if isinstance(plan, Rollout | Schedule | ScheduleRemoval) else {}
        await self._line.persist(lambda link: record(link.publisher, plan, told))

    async def record_again(self, plan: "Plan", entry: StreamEntry) -> None:
        """Put into the stream what an entry of it said, with whose signatures it had: not ours.

        Raises:
            Unreachable: the broker could not be reached in time; record it again.
        """
        signed = bool(entry.signatures)
        told: HeadersType = {HEADER: entry.signatures} if signed else {}
        body = entry.body if signed else plan.body()
        await self._line.persist(lambda link: record(link.publisher, plan, told, body))

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
        told = self.signed(cancellation)

        async def send(link: DispatcherLink) -> None:
            found = job or await find(link, job_id)
            await record(link.publisher, cancellation, told)
            await publish(link.publisher, cancellation, found, headers=told)

        await self._line.persist(send)
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
        start: int | datetime | None = since(job_id)
        patience = self._line.patience()
        while True:
            link, mark = await self._line.persist(_marked)
            try:
                async with stream.read(link.connection, start) as entries:
                    look = partial(stream.mark, link.publisher)
                    async for entry in until_settled(entries, progress, mark, look, self._settle):
                        start = entry.offset + 1
                        patience.renew()
                        if entry.is_mark(mark):
                            progress.caught_up.set()
                        for record in entry.of_job(job_id):
                            if progress.add(record) and isinstance(record, Report):
                                yield record
                    return
            except Unreachable as failure:
                await self._line.drop(link)
                await patience.wait(failure)

    async def wait(self, job_id: str, limit: float | None = None) -> Progress:
        """Return how far a job has come, once it has ended wherever it went; see `follow`.

        Args:
            job_id: of which job.
            limit: seconds after which it is no longer waited for; `Progress.ended` says whether
                it has ended.

        Raises:
            UnknownJob: the broker has no record of it.
            Unreachable: the broker stayed out of reach.
        """
        progress = Progress(job_id)
        with suppress(TimeoutError):
            async with timeout(limit), aclosing(self.follow(job_id, progress)) as reports:
                async for _ in reports:
                    pass
        return progress

    async def pause(self, workstations: Iterable[str], reason: str = "") -> None:
        """Have workstations start nothing more until `resume`; what runs goes on.

        When this returns, the broker has stored the order in their queues.

        Args:
            workstations: their names.
            reason: shown there and by `pcm workstations`.

        Raises:
            Unroutable: one of them has no queue; nothing was sent to any.
            Unreachable: the broker could not be reached in time; pause them again.
        """
        await self._pause(workstations, reason, paused=True)

    async def resume(self, workstations: Iterable[str]) -> None:
        """Have paused workstations go on; nothing changes at others.

        Raises:
            Unroutable, Unreachable: as `pause` does.
        """
        await self._pause(workstations, "", paused=False)

    async def _pause(self, workstations: Iterable[str], reason: str, *, paused: bool) -> None:
        from broker.client.fleet_orders import tell

        now = datetime.now(UTC)
        orders = [
            Pause(workstation=name, paused=paused, reason=reason, created_at=now)
            for name in dict.fromkeys(workstations)
        ]
        await self.do(lambda publisher: tell(publisher, orders, self.signed))

    async def check_forgettable(
        self, workstations: Iterable[str], known: "Iterable[WorkstationRow]"
    ) -> None:
        """Check that `forget` would forget workstations; nothing is changed.

        Raises:
            NotForgettable, Unreachable: as `forget` does.
        """
        from broker.client.fleet_orders import check_forgettable, interactive_users

        rows = list(known)
        users = interactive_users(workstations, rows)
        names = {row.name for row in rows}
        await self.do(lambda publisher: check_forgettable(publisher, users, names))

    async def forget(self, workstations: Iterable[str], known: "Iterable[WorkstationRow]") -> None:
        """Delete the queues of workstations that are gone for good, and have the history forget.

        Jobs that waited there become unreachable.

        Args:
            workstations: their names.
            known: what the history has of them (`history.fleet.workstations(names)`): by it the
                queues of interactive agents are found.

        Raises:
            NotForgettable: one of them is not known, or an agent of it is up; nothing was done.
            Unreachable: the broker's answer is not known; forget them again.
        """
        from broker.client.fleet_orders import forget, interactive_users

        names, rows = list(workstations), list(known)
        await self.check_forgettable(names, rows)
        users = interactive_users(names, rows)
        await self.do(lambda publisher: forget(publisher, users))

    async def add_schedule(self, schedule: "Schedule") -> list[Target]:
        """Record a schedule; it replaces the one of its name, whose occurrences end now.

        Its occurrences are sent by `pcm collect` or `pcm schedule run`.

        Returns:
            The targets that no queue is bound for yet: nothing is sent to them until one is.

        Raises:
            Unreachable: the broker could not be reached in time; add it again.
            NotSendable: it is over the size limit.
        """
        await self.record(schedule)
        return await self.unbound(schedule.job)

    async def remove_schedule(self, name: str) -> None:
        """Record that a schedule has ended: nothing more of it is sent; what was sent goes on.

        Raises:
            Unreachable: the broker could not be reached in time; remove it again.
        """
        from schemas import ScheduleRemoval

        await self.record(ScheduleRemoval(name=name))

    async def do(self, work: Callable[[Publisher], Awaitable[_T]]) -> _T:
        """Do something over the connection; where that is lost, do it again over a new one.

        Raises:
            Unreachable: the broker could not be reached in time.
        """
        return await self._line.persist(lambda link: work(link.publisher))


async def _reached(_: DispatcherLink) -> None:
    """Ask nothing more than that there is a link."""


async def _marked(link: DispatcherLink) -> tuple[DispatcherLink, str]:
    return link, await stream.mark(link.publisher)
