"""Send the occurrences of schedules when they are due.

A scheduler has no state of its own. The history holds the schedules and the jobs that were sent,
and the id of an occurrence's job is derived from its schedule and its time. So any number of
schedulers can run and be killed: an occurrence that two of them send is one job.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from broker.amqp.connection import Backoff, BrokerError, Refused, Unreachable, Unroutable
from broker.client.dispatcher import Dispatcher
from broker.history.collector import refresh
from broker.history.engine import HistoryError, UnusableHistory, engine_of, prepare
from broker.history.position import is_collected
from broker.log import get_logger
from broker.schedules.queries import ScheduleRecord, in_force, running_before, sent
from broker.settings import HistorySettings, WrongSetting, load
from broker.signing.resign_policy import Recorded, ResignPolicy
from broker.stream.entry import StreamEntry
from schemas import Job, Schedule, ScheduleRemoval, Target
from schemas.orders.schedule import Occurrence

TOLERANCE = timedelta(minutes=5)
"""How late an occurrence can be sent without being missed; covers a restart of the broker."""

OLDEST = timedelta(days=30)
"""The age limit of a missed occurrence: agents remember jobs and the stream keeps them longer."""

_WINDOWS = (timedelta(hours=2), timedelta(days=1), OLDEST)
_MINUTE = 60.0
_WAKE_UP_DELAY = 0.05  # an early timer must not wake us before the minute
_log = get_logger()


async def run_scheduler(settings: HistorySettings | None = None) -> None:
    """Send the due jobs of all schedules until cancelled, as `pcm schedule run` does.

    It retries while the broker or the database is unreachable. `run_collector` does the same.
    Several may run: no job is sent twice.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        UnusableHistory: this program cannot use the database.
        WrongSetting: a setting is wrong.
    """
    settings = settings or load(HistorySettings)
    engine = engine_of(settings.history_url)
    try:
        await ScheduleRunner(settings, engine).run()
    finally:
        engine.dispose()


class ScheduleRunner:
    """Sends the due occurrences of all schedules.

    Args:
        settings: the broker's settings.
        engine: the history.
        collected: whether a collector keeps the history up to date.

    Raises:
        WrongSetting: the signing key or the trusted keys cannot be read.
    """

    def __init__(
        self, settings: HistorySettings, engine: Engine, *, collected: bool = False
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._collected = collected
        self._done: set[str] = set()
        self._waiting: set[str] = set()
        self._state = ""
        self._resign_policy = ResignPolicy.from_settings(settings)
        self._untrusted: set[tuple[int, str]] = set()

    async def run(self) -> None:
        """Send due occurrences until cancelled; retry while broker or database is unreachable.

        Raises:
            UnusableHistory: this version cannot use the database.
        """
        backoff = Backoff()
        while True:
            try:
                await self.send_due(datetime.now(UTC))
            except UnusableHistory:
                raise
            except (BrokerError, HistoryError, WrongSetting) as failure:
                self._log_state("scheduler.retrying", str(failure))
                await asyncio.sleep(backoff.failed())
            else:
                self._log_state("scheduler.up_to_date")
                backoff.reset()
                await asyncio.sleep(_MINUTE - time.time() % _MINUTE + _WAKE_UP_DELAY)

    async def send_due(self, now: datetime) -> None:
        """Send the occurrences that are due and were not sent.

        Raises:
            BrokerError: the broker is unreachable, or refuses.
            HistoryError: the database cannot be used.
        """
        if not self._collected:  # a collector must find out itself that the tables are empty
            await asyncio.to_thread(prepare, self._engine)
        if self._collected and not await asyncio.to_thread(is_collected, self._engine):
            raise Unreachable("the collector has not caught up")
        await refresh(self._settings, self._engine)  # the collector can be another broker's
        if due := await asyncio.to_thread(self._due, now):
            async with Dispatcher.connect(self._settings) as dispatcher:
                for occurrence in due:
                    await self._send(dispatcher, occurrence, now)

    def _due(self, now: datetime) -> list[Occurrence]:
        oldest = min(OLDEST, self._settings.history_keep)
        self._resign_policy = ResignPolicy.from_settings(self._settings)  # keys can change
        due = {
            occurrence.id: occurrence
            for record, entry in in_force(self._engine, self._counts).values()
            if isinstance(record, Schedule) and self._may_send(record, entry, now)
            for occurrence in due_occurrences(record, now, oldest)
        }
        self._done &= due.keys()
        self._waiting &= due.keys()
        done = self._done | sent(self._engine, due.keys())
        return [occurrence for job_id, occurrence in due.items() if job_id not in done]

    def _counts(self, schedule_record: ScheduleRecord, replaced: ScheduleRecord | None) -> bool:
        """Whether a record ends the schedule that it replaces or removes, if any.

        This is asked as of its own time: that its key expires later must not undo a removal.
        """
        record, entry = schedule_record
        removal = ScheduleRemoval(name=record.name)
        former = replaced and replaced.record
        targets = former.job.targets if isinstance(former, Schedule) else ()
        return self._is_permitted(record, entry, removal, targets, record.created_at)

    def _may_send(self, schedule: Schedule, entry: StreamEntry, now: datetime) -> bool:
        """Whether we may sign the jobs of a schedule now.

        Groups are not believed: anyone who can claim one in a check-in would widen a key.
        """
        job = schedule.job
        return self._is_permitted(schedule, entry, job, job.targets, now)

    def _is_permitted(
        self,
        record: Schedule | ScheduleRemoval,
        entry: StreamEntry,
        order: Job | ScheduleRemoval,
        targets: tuple[Target, ...],
        now: datetime,
    ) -> bool:
        recorded = Recorded(record, entry.body, entry.signatures)
        reason = self._resign_policy.refusal_reason(recorded, order, targets, now)
        if reason and (entry.offset, reason) not in self._untrusted:
            self._untrusted.add((entry.offset, reason))
            _log.warning("schedule.untrusted", schedule=record.name, reason=reason)
        return not reason

    async def _send(self, dispatcher: Dispatcher, occurrence: Occurrence, now: datetime) -> None:
        log = _log.bind(schedule=occurrence.schedule.name, job=occurrence.id)
        if occurrence.ends_at is not None and occurrence.ends_at <= now:
            log.info("occurrence.skipped", reason="its expiry has passed")
        elif earlier := await asyncio.to_thread(self._overlapped, occurrence, now):
            if occurrence.schedule.overlap == "queue":
                if occurrence.id not in self._waiting:
                    log.info("occurrence.waits", reason=f"{earlier} still runs")
                self._waiting.add(occurrence.id)
                return
            log.info("occurrence.skipped", reason=f"{earlier} still ran at its time")
        elif await asyncio.to_thread(self._is_missed, occurrence, now):
            log.info("occurrence.skipped", reason="it was missed")
        else:
            try:
                unbound = await dispatcher.dispatch_occurrence(occurrence.job())
            except (Unroutable, Refused, ValueError) as error:
                log.warning("occurrence.failed", reason=str(error))
            else:
                late = round((now - occurrence.send_at).total_seconds())
                targets = ", ".join(map(str, unbound)) or None
                log.info("occurrence.sent", late=late if late >= _MINUTE else None, unbound=targets)
        self._done.add(occurrence.id)

    def _overlapped(self, occurrence: Occurrence, now: datetime) -> str | None:
        """Return the earlier job because of which an occurrence is not sent now.

        Whether it is skipped follows from the history, and is the same for all schedulers. Where
        the time is that of each workstation's clock, its agent decides.
        """
        overlap = occurrence.schedule.overlap
        if overlap == "allow" or occurrence.instant is None:
            return None
        at = now if overlap == "queue" else occurrence.send_at
        return running_before(self._engine, occurrence, at.timestamp())

    def _is_missed(self, occurrence: Occurrence, now: datetime) -> bool:
        """Whether an occurrence that nothing held up is too late for a schedule that skips such."""
        limit = now - TOLERANCE
        if occurrence.schedule.missed == "once" or occurrence.begins_at > limit:
            return False
        held_up = (occurrence.send_at, limit)  # from its time until a moment ago
        return not all(running_before(self._engine, occurrence, at.timestamp()) for at in held_up)

    def _log_state(self, state: str, reason: str | None = None) -> None:
        """Log the scheduler's state when it changes."""
        if self._state != state:
            self._state = state
            _log.info(state, reason=reason)


def due_occurrences(
    schedule: Schedule, now: datetime, oldest: timedelta = OLDEST
) -> list[Occurrence]:
    """Return the occurrences that are to be sent by now, without those sent long ago.

    These are all occurrences that are not missed. If the schedule sends missed occurrences, the
    last missed one is included, unless a later one has begun. An occurrence is missed if it was
    not sent within the tolerance after it began on the earliest clock. If occurrences must not
    overlap, only the last is returned: several would run at the same time.
    """
    for window in _WINDOWS:
        start = max(schedule.created_at, now - min(window, oldest))
        found = list(schedule.times(start, now))
        begun = [occurrence for occurrence in found if occurrence.begins_at <= now]
        if begun or start == schedule.created_at:
            break
    limit = now - TOLERANCE
    not_missed = [occurrence for occurrence in found if occurrence.begins_at > limit]
    may_wait = schedule.overlap == "queue" and schedule.zone is not None
    if (schedule.missed == "once" or may_wait) and begun and begun[-1].begins_at <= limit:
        return [begun[-1], *not_missed]
    return not_missed if schedule.overlap == "allow" or schedule.zone is None else not_missed[-1:]
