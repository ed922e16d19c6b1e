"""Publish jobs and orders for administrators, and follow the reports."""

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
from broker.client.follow import earliest_record_time, find_job, until_settled
from broker.client.progress import Progress
from broker.client.publishing import (
    BoundJob,
    check_sendable,
    check_size,
    publish_order,
    record_in_stream,
    unbound_message,
    unbound_targets,
    without_unbound,
)
from broker.client.reconnect import DispatcherLink, Reconnector
from broker.client.sending import JobSender
from broker.settings import DispatcherSettings, load
from broker.signing.signer import Signer, signature_headers
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Cancellation, Job, Pause, Report, SignedJob, Target
from schemas.orders.signature import HEADER

if TYPE_CHECKING:
    from broker.client.publishing import Plan
    from broker.history.queries.workstations import WorkstationRow
    from broker.signing.signer import Signable
    from schemas import Schedule

_T = TypeVar("_T")


class Dispatcher:
    """Publish jobs and cancellations, and follow the reports.

    It keeps one connection, and reopens it when it is lost. A publish without an answer is repeated
    with the same job id, which agents accept only once.
    """

    def __init__(
        self,
        settings: DispatcherSettings,
        on_unreachable: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self._settle = settings.settle.total_seconds()
        self._signer = Signer.load(settings.signing_key)
        self._reconnector = Reconnector(settings, on_unreachable or (lambda _: None))
        self._jobs = JobSender(self._reconnector, self.sign)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: DispatcherSettings | None = None,
        on_unreachable: Callable[[str], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Connect, and declare the topology if it is missing.

        Args:
            settings: the settings; default: from the environment.
            on_unreachable: called with the reason, once each time the broker becomes unreachable
                and is retried.

        Raises:
            Unreachable: no broker answered in time (the `patience` setting).
            WrongSetting: the signing key cannot be used.
        """
        dispatcher = cls(settings or load(DispatcherSettings), on_unreachable)
        try:
            await dispatcher._reconnector.retry(_connected)
            yield dispatcher
        finally:
            await dispatcher._reconnector.close()

    def sign(self, message: "Signable") -> HeadersType:
        """Return the signature headers of a message; none without a signing key."""
        return signature_headers((self._signer.sign(message),)) if self._signer else {}

    async def dispatch(self, job: Job, *, partly: bool = False) -> Job:
        """Send a job; return when the broker has stored it in every queue that it reaches.

        The job's record is appended to the stream first, so that the job can be followed and
        cancelled by its id.

        Args:
            job: the job.
            partly: whether to skip targets that no queue is bound for.

        Raises:
            Unroutable: no queue is bound for a target, which the message names; nothing was sent.
            Unreachable: the broker could not be reached in time; send the same job again.
            NotSendable: it is over the size limit, or has expired.
        """
        await self._jobs.send(job, self._reconnector.retry_budget(), partly=partly)
        return job

    async def dispatch_signed(self, signed: SignedJob) -> Job:
        """Send a signed job of a file, with its bytes and signatures; see `dispatch`.

        Raises:
            InvalidMessage: the file holds no job.
        """
        job = Job.read(signed.text)
        await self._jobs.send(job, self._reconnector.retry_budget(), signed=signed)
        return job

    async def dispatch_all(
        self, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int = IN_FLIGHT
    ) -> AsyncGenerator[Sent, None]:
        """Send many jobs concurrently, each as `dispatch` does; yield their outcomes in order.

        A job that cannot be sent is yielded with its error (`Unroutable`, `NotSendable`); the
        others are still sent. If the broker stays unreachable, or the iteration stops early, jobs
        not yet yielded may have been sent; send the same jobs again.

        Args:
            jobs: the jobs; at most `in_flight` are taken in advance.
            in_flight: the maximum number of jobs that are unconfirmed or not yet yielded.

        Raises:
            Unreachable: the broker could not be reached in time.
            Refused: no permission.
            ValueError: `in_flight` is less than 1.
        """
        async with aclosing(send_all(self.sender(), jobs, in_flight)) as all_sent:
            async for sent in all_sent:
                yield sent

    def sender(self) -> Sender:
        """Return a function that sends jobs; all its calls share one retry budget."""
        budget = self._reconnector.retry_budget()

        async def send(jobs: Sequence[Job]) -> list[Sent]:
            return await self._jobs.send_all(jobs, budget)

        return send

    async def dispatch_occurrence(self, job: Job) -> list[Target]:
        """Send a job as `dispatch` does, with its record last, as a proof that it was sent.

        The ids of a schedule's jobs are computed: a job without a record is sent again.

        Returns:
            The targets that no queue is bound for; they are skipped.

        Raises:
            Unroutable: no queue is bound for any of its targets.
            Unreachable, NotSendable: as `dispatch` does.
        """
        expiration = check_sendable(job)
        headers = self.sign(job)

        async def send(link: DispatcherLink) -> list[Target]:
            unbound = await unbound_targets(link.publisher, job)
            if len(unbound) == len(job.targets):
                raise Unroutable(unbound_message(unbound))
            await publish_order(link.publisher, job, job, expiration, partly=True, headers=headers)
            await record_in_stream(link.publisher, job, headers)
            return unbound

        async with self._jobs.lock(job):
            return await self._reconnector.retry(send)

    async def unbound(self, job: Job) -> list[Target]:
        """Return a job's targets that no queue is bound for."""
        return await self._reconnector.retry(lambda link: unbound_targets(link.publisher, job))

    async def only_bound(self, job: Job) -> BoundJob:
        """Return a job without the targets that no queue is bound for; send nothing.

        Raises:
            Unroutable: no queue is bound for any of its targets.
            Unreachable: the broker could not be reached in time.
        """
        return without_unbound(job, await self.unbound(job))

    async def record(self, plan: "Plan") -> None:
        """Append a plan to the stream; agents do not receive it.

        Raises:
            Unreachable: the broker could not be reached in time; record it again.
            NotSendable: it is over the size limit.
        """
        from schemas import Rollout, Schedule, ScheduleRemoval

        check_size(plan)
        headers = self.sign(plan) if isinstance(plan, Rollout | Schedule | ScheduleRemoval) else {}
        await self._reconnector.retry(lambda link: record_in_stream(link.publisher, plan, headers))

    async def record_again(self, plan: "Plan", entry: StreamEntry) -> None:
        """Append a plan again from its entry, with the original signatures.

        Raises:
            Unreachable: the broker could not be reached in time; record it again.
        """
        is_signed = bool(entry.signatures)
        headers: HeadersType = {HEADER: entry.signatures} if is_signed else {}
        body = entry.body if is_signed else plan.body()
        await self._reconnector.retry(
            lambda link: record_in_stream(link.publisher, plan, headers, body)
        )

    async def cancel(
        self,
        job_id: str,
        reason: str = "",
        workstations: Sequence[str] = (),
        job: Job | None = None,
    ) -> Cancellation:
        """Cancel a job: it does not start any more, and is stopped where it runs.

        Args:
            job_id: the job's id.
            reason: sent to the workstations.
            workstations: cancel it only there; default: everywhere.
            job: the job itself, if it is known; default: its record in the stream.

        Raises:
            UnknownJob: the stream has no record of the job.
            Unreachable: the broker could not be reached in time; cancel again.
        """
        cancellation = Cancellation(job_id=job_id, reason=reason, workstations=tuple(workstations))
        headers = self.sign(cancellation)

        async def send(link: DispatcherLink) -> None:
            cancelled = job or await find_job(link, job_id)
            await record_in_stream(link.publisher, cancellation, headers)
            await publish_order(link.publisher, cancellation, cancelled, headers=headers)

        await self._reconnector.retry(send)
        return cancellation

    async def follow(
        self, job_id: str, progress: Progress | None = None
    ) -> AsyncGenerator[Report, None]:
        """Yield a job's reports, old and new, until it has ended everywhere.

        The job has ended on every workstation that received it or that it names, and no further
        workstation has reported for some seconds (the `settle` setting).

        Args:
            job_id: the job's id.
            progress: is updated with each record.

        Raises:
            UnknownJob: the stream has no record of the job.
            Unreachable: the broker stayed unreachable.
        """
        progress = progress or Progress(job_id)
        start: int | datetime | None = earliest_record_time(job_id)
        budget = self._reconnector.retry_budget()
        while True:
            link, marker = await self._reconnector.retry(_append_end_marker)
            try:
                async with stream.read_stream(link.connection, start) as entries:
                    append_marker = partial(stream.append_end_marker, link.publisher)
                    async for entry in until_settled(
                        entries, progress, marker, append_marker, self._settle
                    ):
                        start = entry.offset + 1
                        budget.reset()
                        if entry.is_end_marker(marker):
                            progress.caught_up.set()
                        for removal in entry.removals():
                            progress.remove(removal)
                        for record in entry.of_job(job_id):
                            if progress.add(record) and isinstance(record, Report):
                                yield record
                    return
            except Unreachable as failure:
                await self._reconnector.drop(link)
                await budget.wait(failure)

    async def wait(self, job_id: str, limit: float | None = None) -> Progress:
        """Wait until a job has ended everywhere; return its progress; see `follow`.

        Args:
            job_id: the job's id.
            limit: the maximum wait in seconds; `Progress.ended` shows whether the job has ended.

        Raises:
            UnknownJob: the stream has no record of the job.
            Unreachable: the broker stayed unreachable.
        """
        progress = Progress(job_id)
        with suppress(TimeoutError):
            async with timeout(limit), aclosing(self.follow(job_id, progress)) as reports:
                async for _ in reports:
                    pass
        return progress

    async def pause(self, workstations: Iterable[str], reason: str = "") -> None:
        """Pause workstations: they start no job until `resume`; running jobs continue.

        Return when the broker has stored the order in their queues.

        Args:
            workstations: their names.
            reason: shown there and by `pcm workstations`.

        Raises:
            Unroutable: a workstation has no queue; nothing was sent.
            Unreachable: the broker could not be reached in time; pause them again.
        """
        await self._pause(workstations, reason, paused=True)

    async def resume(self, workstations: Iterable[str]) -> None:
        """Resume paused workstations; others ignore it.

        Raises:
            Unroutable, Unreachable: as `pause` does.
        """
        await self._pause(workstations, "", paused=False)

    async def _pause(self, workstations: Iterable[str], reason: str, *, paused: bool) -> None:
        from broker.client.fleet_orders import send_pauses

        now = datetime.now(UTC)
        orders = [
            Pause(workstation=name, paused=paused, reason=reason, created_at=now)
            for name in dict.fromkeys(workstations)
        ]
        await self.retry(lambda publisher: send_pauses(publisher, orders, self.sign))

    async def check_forgettable(
        self, workstations: Iterable[str], known: "Iterable[WorkstationRow]"
    ) -> None:
        """Check that workstations can be forgotten, without a change.

        Raises:
            NotForgettable, Unreachable: as `forget` does.
        """
        from broker.client.fleet_orders import check_forgettable, interactive_users

        rows = list(known)
        users = interactive_users(workstations, rows)
        names = {row.name for row in rows}
        await self.retry(lambda publisher: check_forgettable(publisher, users, names))

    async def forget(self, workstations: Iterable[str], known: "Iterable[WorkstationRow]") -> None:
        """Forget removed workstations: delete their queues, and record it for the history.

        Jobs that waited there become unreachable.

        Args:
            workstations: their names.
            known: their rows in the history (`history.fleet.workstations(names)`), which name the
                queues of interactive agents.

        Raises:
            NotForgettable: a workstation is not known, or its agent is up; nothing was done.
            Unreachable: the broker's answer is not known; forget them again.
        """
        from broker.client.fleet_orders import forget, interactive_users

        names, rows = list(workstations), list(known)
        await self.check_forgettable(names, rows)
        users = interactive_users(names, rows)
        await self.retry(lambda publisher: forget(publisher, users))

    async def add_schedule(self, schedule: "Schedule") -> list[Target]:
        """Add a schedule, or replace the schedule of the same name.

        Its occurrences are sent by `pcm collect` or `pcm schedule run`.

        Returns:
            The targets that no queue is bound for yet; jobs skip them.

        Raises:
            Unreachable: the broker could not be reached in time; add it again.
            NotSendable: it is over the size limit.
        """
        await self.record(schedule)
        return await self.unbound(schedule.job)

    async def remove_schedule(self, name: str) -> None:
        """Remove a schedule: no further jobs are sent; those sent before stay valid.

        Raises:
            Unreachable: the broker could not be reached in time; remove it again.
        """
        from schemas import ScheduleRemoval

        await self.record(ScheduleRemoval(name=name))

    async def retry(self, work: Callable[[Publisher], Awaitable[_T]]) -> _T:
        """Call `work` with a publisher; when the connection is lost, call it again with a new one.

        Raises:
            Unreachable: the broker could not be reached in time.
        """
        return await self._reconnector.retry(lambda link: work(link.publisher))


async def _connected(_: DispatcherLink) -> None:
    """Do nothing: connecting is all."""


async def _append_end_marker(link: DispatcherLink) -> tuple[DispatcherLink, str]:
    return link, await stream.append_end_marker(link.publisher)
