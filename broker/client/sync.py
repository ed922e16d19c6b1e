"""The dispatcher for scripts that are not async: the same, on an event loop in its own thread."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from broker.client.asyncio_thread import Feed, LoopThread, result
from broker.client.batch import IN_FLIGHT, Sent, check_in_flight
from broker.client.dispatcher import Dispatcher
from broker.client.progress import Progress
from broker.settings import DispatcherSettings, load
from schemas import Cancellation, Job, Report, SignedJob, Target

if TYPE_CHECKING:
    from broker.history.workstations import WorkstationRow
    from schemas import Schedule

_T = TypeVar("_T")
_Given = ParamSpec("_Given")


class SyncDispatcher:
    """A `Dispatcher` whose methods wait for what comes of them; open inside `with`, once.

    Several threads may use it at the same time. It may be used where an event loop runs already,
    too; that loop stands still meanwhile.
    """

    def __init__(
        self,
        settings: DispatcherSettings | None = None,
        told: Callable[[str], None] | None = None,
    ) -> None:
        """See `Dispatcher.connect`; `told` is called in another thread."""
        settings = settings or load(DispatcherSettings)
        self._thread = LoopThread(lambda: Dispatcher.connect(settings, told))

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
        """Disconnect; what other threads still wait for is given up."""
        self._thread.close()

    def dispatch(self, job: Job, *, partly: bool = False) -> Job:
        """Send a job; see `Dispatcher.dispatch`."""
        return self._call(lambda dispatcher: dispatcher.dispatch(job, partly=partly))

    def dispatch_signed(self, signed: SignedJob) -> Job:
        """Send a job that was signed and saved; see `Dispatcher.dispatch_signed`."""
        return self._call(lambda dispatcher: dispatcher.dispatch_signed(signed))

    def dispatch_all(self, jobs: Iterable[Job], in_flight: int = IN_FLIGHT) -> Iterator[Sent]:
        """Send many jobs at once, yield what became of each; see `Dispatcher.dispatch_all`.

        The jobs are taken in the thread that iterates.
        """
        check_in_flight(in_flight)
        dispatcher = self._thread.held
        feed: Feed[Job] = self._thread.feed()
        told: SimpleQueue[Sent | None] = SimpleQueue()

        async def send() -> None:
            async with aclosing(dispatcher.dispatch_all(feed, in_flight)) as all_sent:
                async for sent in all_sent:
                    told.put(sent)

        def next_told() -> Sent:
            if (sent := told.get()) is None:
                result(sending)
                raise AssertionError("it ended before all were told")
            return sent

        sending = self._thread.submit(send)
        sending.add_done_callback(lambda _: told.put(None))
        on_the_way = 0
        try:
            for job in jobs:
                feed.put(job)
                on_the_way += 1
                while on_the_way and (on_the_way >= in_flight or not told.empty()):
                    yield next_told()
                    on_the_way -= 1
            feed.end()
            while on_the_way:
                yield next_told()
                on_the_way -= 1
        finally:
            sending.cancel()

    def cancel(
        self, job_id: str, reason: str = "", workstations: Sequence[str] = ()
    ) -> Cancellation:
        """Withdraw a job; see `Dispatcher.cancel`."""
        return self._call(lambda dispatcher: dispatcher.cancel(job_id, reason, workstations))

    def follow(self, job_id: str, progress: Progress | None = None) -> Iterator[Report]:
        """Yield a job's reports until it has ended wherever it went; see `Dispatcher.follow`."""
        reports = self._thread.held.follow(job_id, progress)
        try:
            while report := result(self._thread.submit(lambda: anext(reports, None))):
                yield report
        finally:
            with suppress(RuntimeError):  # it is closed, and so are they
                self._thread.submit(reports.aclose)

    def wait(self, job_id: str, limit: float | None = None) -> Progress:
        """Return how far a job has come, once it has ended; see `Dispatcher.wait`."""
        return self._call(lambda dispatcher: dispatcher.wait(job_id, limit))

    def pause(self, workstations: Iterable[str], reason: str = "") -> None:
        """Have workstations start nothing more; see `Dispatcher.pause`."""
        self._call(lambda dispatcher: dispatcher.pause(workstations, reason))

    def resume(self, workstations: Iterable[str]) -> None:
        """Have paused workstations go on; see `Dispatcher.resume`."""
        self._call(lambda dispatcher: dispatcher.resume(workstations))

    def forget(self, workstations: Iterable[str], known: "Iterable[WorkstationRow]") -> None:
        """Forget workstations that are gone for good; see `Dispatcher.forget`."""
        self._call(lambda dispatcher: dispatcher.forget(workstations, known))

    def add_schedule(self, schedule: "Schedule") -> list[Target]:
        """Add a schedule, or replace the one of its name; see `Dispatcher.add_schedule`."""
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
        """Wait for an async function that is given a `Dispatcher`; return what it returns.

        So scripts that are not async call the async functions of `broker`:
        `dispatcher.run(start_rollout, plan)`. The function, and what it calls, such as
        `on_state`, run in the dispatcher's thread.
        """
        return self._call(lambda dispatcher: call(dispatcher, *args, **options))

    def _call(self, call: Callable[[Dispatcher], Awaitable[_T]]) -> _T:
        dispatcher = self._thread.held
        return result(self._thread.submit(lambda: call(dispatcher)))


def send(job: Job, settings: DispatcherSettings | None = None) -> Job:
    """Send a job, from a script that is not async; see `Dispatcher.dispatch`."""
    with SyncDispatcher(settings) as dispatcher:
        return dispatcher.dispatch(job)


def send_and_wait(job: Job, settings: DispatcherSettings | None = None) -> Progress:
    """Send a job and wait until it has ended wherever it went; see `Dispatcher.follow`."""
    with SyncDispatcher(settings) as dispatcher:
        dispatcher.dispatch(job)
        return dispatcher.wait(job.id)
