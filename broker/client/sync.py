"""A dispatcher for scripts that are not async, on an event loop in a thread."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from broker.client.asyncio_thread import LoopQueue, LoopThread, wait_for_result
from broker.client.batch import IN_FLIGHT, Sent, check_in_flight
from broker.client.dispatcher import Dispatcher
from broker.client.progress import Progress
from broker.client.publishing import BoundJob
from broker.settings import DispatcherSettings, load
from schemas import Cancellation, Job, Report, SignedJob, Target

if TYPE_CHECKING:
    from broker.history.queries.workstations import WorkstationRow
    from schemas import Schedule

_T = TypeVar("_T")
_Given = ParamSpec("_Given")


class SyncDispatcher:
    """A `Dispatcher` whose methods block. Open it once, by `with`.

    Several threads can use it at the same time. It also works in a thread with a running event
    loop, which it blocks.
    """

    def __init__(
        self,
        settings: DispatcherSettings | None = None,
        on_unreachable: Callable[[str], None] | None = None,
    ) -> None:
        """See `Dispatcher.connect`; `on_unreachable` is called in another thread."""
        settings = settings or load(DispatcherSettings)
        self._thread = LoopThread(lambda: Dispatcher.connect(settings, on_unreachable))

    def __enter__(self) -> Self:
        """Connect; see `Dispatcher.connect`."""
        self._thread.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect; cancel the calls of other threads."""
        self._thread.close()

    def dispatch(self, job: Job, *, partly: bool = False) -> Job:
        """Send a job; see `Dispatcher.dispatch`."""
        return self._call(lambda dispatcher: dispatcher.dispatch(job, partly=partly))

    def dispatch_signed(self, signed: SignedJob) -> Job:
        """Send a signed job of a file; see `Dispatcher.dispatch_signed`."""
        return self._call(lambda dispatcher: dispatcher.dispatch_signed(signed))

    def dispatch_all(self, jobs: Iterable[Job], in_flight: int = IN_FLIGHT) -> Iterator[Sent]:
        """Send many jobs, and yield the outcome of each; see `Dispatcher.dispatch_all`.

        The jobs are taken in the thread that iterates.
        """
        check_in_flight(in_flight)
        dispatcher = self._thread.resource
        queue: LoopQueue[Job] = self._thread.queue()
        outcomes: SimpleQueue[Sent | None] = SimpleQueue()

        async def send() -> None:
            async with aclosing(dispatcher.dispatch_all(queue, in_flight)) as all_sent:
                async for sent in all_sent:
                    outcomes.put(sent)

        def next_outcome() -> Sent:
            if (sent := outcomes.get()) is None:
                wait_for_result(sending)
                raise AssertionError("it ended before the last outcome")
            return sent

        sending = self._thread.submit(send)
        sending.add_done_callback(lambda _: outcomes.put(None))
        pending = 0
        try:
            for job in jobs:
                queue.put(job)
                pending += 1
                while pending and (pending >= in_flight or not outcomes.empty()):
                    yield next_outcome()
                    pending -= 1
            queue.end()
            while pending:
                yield next_outcome()
                pending -= 1
        finally:
            sending.cancel()

    def only_bound(self, job: Job) -> BoundJob:
        """Return a job without unbound targets; see `Dispatcher.only_bound`."""
        return self._call(lambda dispatcher: dispatcher.only_bound(job))

    def cancel(
        self, job_id: str, reason: str = "", workstations: Sequence[str] = ()
    ) -> Cancellation:
        """Cancel a job; see `Dispatcher.cancel`."""
        return self._call(lambda dispatcher: dispatcher.cancel(job_id, reason, workstations))

    def follow(self, job_id: str, progress: Progress | None = None) -> Iterator[Report]:
        """Yield a job's reports until it has ended everywhere; see `Dispatcher.follow`."""
        reports = self._thread.resource.follow(job_id, progress)
        try:
            while report := wait_for_result(self._thread.submit(lambda: anext(reports, None))):
                yield report
        finally:
            with suppress(RuntimeError):  # the dispatcher is closed
                self._thread.submit(reports.aclose)

    def wait(self, job_id: str, limit: float | None = None) -> Progress:
        """Wait until a job has ended; return its progress; see `Dispatcher.wait`."""
        return self._call(lambda dispatcher: dispatcher.wait(job_id, limit))

    def pause(self, workstations: Iterable[str], reason: str = "") -> None:
        """Pause workstations; see `Dispatcher.pause`."""
        self._call(lambda dispatcher: dispatcher.pause(workstations, reason))

    def resume(self, workstations: Iterable[str]) -> None:
        """Resume workstations; see `Dispatcher.resume`."""
        self._call(lambda dispatcher: dispatcher.resume(workstations))

    def forget(self, workstations: Iterable[str], known: "Iterable[WorkstationRow]") -> None:
        """Forget removed workstations; see `Dispatcher.forget`."""
        self._call(lambda dispatcher: dispatcher.forget(workstations, known))

    def add_schedule(self, schedule: "Schedule") -> list[Target]:
        """Add or replace a schedule; see `Dispatcher.add_schedule`."""
        return self._call(lambda dispatcher: dispatcher.add_schedule(schedule))

    def remove_schedule(self, name: str) -> None:
        """End a schedule; see `Dispatcher.remove_schedule`."""
        self._call(lambda dispatcher: dispatcher.remove_schedule(name))

    def run(
        self,
        call: Callable[Concatenate[Dispatcher, _Given], Awaitable[_T]],
        *args: _Given.args,
        **options: _Given.kwargs,
    ) -> _T:
        """Call an async function with a `Dispatcher`, and return its result.

        This makes the async functions of `broker` available to scripts that are not async:
        `dispatcher.run(start_rollout, plan)`. The function and its callbacks, such as `on_state`,
        run in the dispatcher's thread.
        """
        return self._call(lambda dispatcher: call(dispatcher, *args, **options))

    def _call(self, call: Callable[[Dispatcher], Awaitable[_T]]) -> _T:
        dispatcher = self._thread.resource
        return wait_for_result(self._thread.submit(lambda: call(dispatcher)))


def send(job: Job, settings: DispatcherSettings | None = None) -> Job:
    """Send a job, from a script that is not async; see `Dispatcher.dispatch`."""
    with SyncDispatcher(settings) as dispatcher:
        return dispatcher.dispatch(job)


def send_and_wait(job: Job, settings: DispatcherSettings | None = None) -> Progress:
    """Send a job, and wait until it has ended everywhere; see `Dispatcher.follow`."""
    with SyncDispatcher(settings) as dispatcher:
        dispatcher.dispatch(job)
        return dispatcher.wait(job.id)
